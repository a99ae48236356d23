"""Losses that look at attributes beside identities: what they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from distmetric.functional.joint_batch import single_batch
from distmetric.functional.tuples import Tuples
from distmetric.losses.base import MetricLoss, loss_value


class AttributeLoss(MetricLoss):
    """A loss over predicted logits or true values of attributes; `attributes` are the names of those it uses.

    In training the model and the catalog provide them; `forward` takes them beside embeddings and labels.
    """

    over_pairs = False  # a memory holds embeddings, no attributes
    attributes: tuple[str, ...] = ()

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Sequence[Tensor] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        logits: Mapping[str, Tensor] | None = None,
        attributes: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The loss of one process's batch.

        Args:
            embeddings: (B, D) embeddings.
            labels: (B,) integer labels.
            indices_tuple: Not looked at: what a miner chooses are pairs of identities.
            ref_emb: Not taken, because a reference set has no attributes.
            ref_labels: Not taken.
            logits: Name of an attribute -> (B, V) predicted logits.
            attributes: Name of an attribute -> (B,) int64 true values, 0 .. V - 1, or -1 where unknown.

        Returns:
            Scalar; 0 with a live graph where the batch has no valid term.

        Raises:
            ValueError: If shapes do not fit together, or logits or values that the loss needs are missing.
        """
        if ref_emb is not None or ref_labels is not None:
            raise ValueError(
                "losses over attributes compare a batch with itself: leave ref_emb and ref_labels out"
            )
        tuples = None if indices_tuple is None else Tuples.of(indices_tuple)
        given, values = dict(logits or {}), dict(attributes or {})
        batch = replace(
            single_batch(embeddings, labels, None, None, tuples),
            logits=given,
            column_logits={name: part.detach() for name, part in given.items()},
            attributes=values,
            column_attributes=values,
        )
        return loss_value(self.parts(batch))


def named(given: Mapping[str, Tensor], names: Sequence[str], what: str, loss: nn.Module) -> list[Tensor]:
    """The tensors of some attributes.

    Args:
        given: Name -> tensor.
        names: Which are wanted.
        what: What they are, for the message.
        loss: Who wants them, for the message.

    Raises:
        ValueError: If one is missing, or none is wanted.
    """
    missing = [name for name in names if name not in given]
    if missing or not names:
        wanted = f"the {what} of {missing[0]!r}" if missing else f"the {what} of attributes"
        known = ", ".join(given) or "none"
        raise ValueError(f"{type(loss).__name__} needs {wanted}, but the batch has those of: {known}")
    return [given[name] for name in names]


def check_names(attributes: Sequence[str]) -> None:
    """Raise ValueError if a name comes twice."""
    if len(set(attributes)) < len(attributes):
        raise ValueError(f"attributes={list(attributes)} names one twice: name each once")
