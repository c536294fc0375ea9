"""Training losses that hold a gated model to a resource target."""

from __future__ import annotations

from torch import Tensor

from .record import Record

__all__ = ["budget_loss"]


def budget_loss(rec: Record, target: float) -> Tensor:
    """Sign-controlled resource penalty of Dual Dynamic Inference (arXiv 1907.04523).

    s * mean(MACs) / dense MACs, s = +1 while the batch's measured share is above the target and -1 at or
    below it, so that training settles at the target. The gradient reaches the gates through the
    straight-through bits, each weighted by the MACs it decides over.

    Args:
        rec: of the training step's forward pass, taken with gradients enabled.
        target: wanted share of the dense MACs, in (0, 1].

    Returns:
        Scalar to weigh and add to the task loss.

    Example:
        >>> with ddi.record(model) as rec:
        ...     logits = model(images)
        >>> loss = F.cross_entropy(logits, labels) + 2.0 * ddi.budget_loss(rec, target=0.3)
    """
    if not 0.0 < target <= 1.0:
        raise ValueError(f"budget_loss: target must lie in (0, 1], got {target!r}")
    share = rec.macs.mean() / rec.dense_macs
    return share if share.item() > target else -share
