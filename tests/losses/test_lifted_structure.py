"""Lifted structured losses: values and gradient on the six points, reference sets, memory for wide classes."""

from __future__ import annotations

import math

import pytest
import torch

import oracles
from distmetric.losses import GeneralizedLiftedStructureLoss, LiftedStructureLoss
from losses.points import p6

RAW = {"normalize_embeddings": False}


def test_value_and_gradient_on_the_six_points() -> None:
    embeddings, labels = p6()
    loss = LiftedStructureLoss(**RAW)(embeddings, labels)
    loss.backward()
    assert loss.item() == pytest.approx(3.438783, abs=1e-6)
    assert embeddings.grad[0].tolist() == pytest.approx([0.075640, -0.161554], abs=1e-6)


def test_the_unsquared_form_of_hermans_on_the_six_points() -> None:
    loss = LiftedStructureLoss(squared=False, reduction="sum", **RAW)
    assert loss(*p6()).item() / 2 == pytest.approx(14.769826, abs=1e-6)  # both directions of 6 pairs


def test_the_generalized_form_on_the_six_points() -> None:
    assert GeneralizedLiftedStructureLoss(**RAW)(*p6()).item() == pytest.approx(2.541265, abs=1e-6)


def test_against_a_reference_set_the_far_end_has_its_negatives_among_the_anchors() -> None:
    generator = torch.Generator().manual_seed(0)
    anchors = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    columns = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    labels, column_labels = [0, 1, 0, 2], [0, 1, 1, 2, 3]
    rows, references = anchors.tolist(), columns.tolist()
    terms = []
    for i, label in enumerate(labels):
        for j in (j for j, other in enumerate(column_labels) if other == label):
            pushes = [
                math.exp(1 - oracles.distance(rows[i], references[k]))
                for k, other in enumerate(column_labels)
                if other != label
            ] + [
                math.exp(1 - oracles.distance(references[j], rows[k]))
                for k, other in enumerate(labels)
                if other != label
            ]
            lifted = math.log(sum(pushes)) + oracles.distance(rows[i], references[j])
            terms.append(max(0.0, lifted) ** 2 / 2)
    loss = LiftedStructureLoss(**RAW)
    value = loss(anchors, torch.tensor(labels), ref_emb=columns, ref_labels=torch.tensor(column_labels))
    assert value.item() == pytest.approx(oracles.mean(terms), rel=1e-9)
