"""What a registered model says of itself, and when one version is better than another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from distmetric.secrets import masked


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What there is to know of an exported embedder.

    Args:
        run_name: The run that trained it.
        step: Optimizer steps done.
        metrics: Of the evaluation at that step; empty where there was none.
        headline: The metric, higher is better, by which two models are compared.
        protocol: How it was evaluated.
        fingerprint: Of the data.
        calibration: Distance `threshold` up to which two images are of one class, and its error rates; may be empty.
        weights: Digest of the weights.
        checkpoint: Where they came from.
        version: The distmetric that wrote them.
        embedding_dim: Length of an embedding.
        image: Shape of the images it takes.
        loss: Name of the loss.
        model: Name of the trunk.
    """

    run_name: str
    step: int
    metrics: Mapping[str, float]
    headline: str
    protocol: str
    fingerprint: str
    calibration: Mapping[str, float] = field(default_factory=dict)
    weights: str
    checkpoint: str
    version: str
    embedding_dim: int
    image: str
    loss: str
    model: str

    def tags(self) -> dict[str, str]:
        """As texts by name, without what is not known; numbers to the last digit, because versions are compared."""
        known = {
            **{name: repr(float(value)) for name, value in self.metrics.items()},
            **{name: repr(value) for name, value in self.calibration.items()},
            "headline": self.headline,
            "protocol": self.protocol,
            "data_fingerprint": self.fingerprint,
            "step": str(self.step),
            "run_name": self.run_name,
            "checkpoint": self.checkpoint,
            "weights_sha256": self.weights,
            "loss": self.loss,
            "model": self.model,
            "image": self.image,
            "embedding_dim": str(self.embedding_dim),
            "distmetric": self.version,
        }
        return masked({name: value for name, value in known.items() if value})

    def note(self) -> str:
        """A few lines of Markdown."""
        score = self.metrics.get(self.headline)
        first = "not evaluated" if score is None else f"**{self.headline} {score:.4f}** ({self.protocol})"
        threshold = self.calibration.get("threshold")
        lines = [
            f"{first}, step {self.step} of run {self.run_name}.",
            f"Embeddings of length {self.embedding_dim} for images of {self.image}; {self.model}, {self.loss}.",
        ]
        if threshold is not None:
            lines.append(
                f"Two images are of one class up to a distance of {threshold:.4f} "
                f"(false accept rate {self.calibration.get('far', float('nan')):.2g})."
            )
        lines.append(
            'Input: a table with the column "image", the content of image files. '
            f"Loads wherever distmetric {self.version} is installed."
        )
        return masked("\n\n".join(lines))


def reason_to_stay(new: Mapping[str, str], current: Mapping[str, str]) -> str | None:
    """Why an alias for the best version stays where it is; None where the new version is better.

    Better means a higher headline metric, measured in the same way on the same data: anything else cannot be compared.

    Args:
        new: Tags of the new version, as `ModelCard.tags` makes them.
        current: Tags of the version that the alias points to.

    Returns:
        A clause that names what stands against it.
    """
    for key, what in (("headline", "metric"), ("protocol", "protocol"), ("data_fingerprint", "data")):
        if new.get(key) != current.get(key):
            return f"another {what} ({current.get(key, 'unknown')} there, {new.get(key, 'unknown')} here)"
    name = new["headline"]
    if name not in new:
        return f"no {name} was measured at its step"
    if name in current and not float(new[name]) > float(current[name]):
        return f"{name} {float(new[name]):.4f} is not above {float(current[name]):.4f}"
    return None
