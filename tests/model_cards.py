"""A model card for tests of what is done with one."""

from __future__ import annotations

from distmetric.tracking.model_card import ModelCard

CARD = ModelCard(
    run_name="glyphs-triplet",
    step=400,
    metrics={"recall_at_1": 0.1 + 0.2, "map_at_r": 0.5},
    headline="recall_at_1",
    protocol="leave-one-out",
    fingerprint="abc",
    calibration={"threshold": 0.875, "target_far": 1e-3, "far": 0.00099, "tar": 0.5},
    weights="123",
    checkpoint="/runs/a/checkpoints/step_00000400",
    version="0.1.0",
    embedding_dim=16,
    image="1 x 28 x 28",
    loss="triplet",
    model="conv",
)
