"""Losses beside cross entropy: of a gated model's resource target, of branch classifiers, of a teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cost import Resource
from ..cost.record import Record

__all__ = ["branch_loss", "budget_loss", "distillation_loss"]


def budget_loss(
    rec: Record,
    target: float,
    resource: str | Resource = "macs",
    mean: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Sign-controlled resource penalty of Dual Dynamic Inference (arXiv 1907.04523).

    s * mean(cost) / dense cost, s = +1 while the batch's measured share is above the target and -1 at or
    below it, so that training settles at the target. The gradient reaches the gates through the
    straight-through bits, each weighted by the cost that it decides over.

    Args:
        rec: of the training step's forward pass, taken with gradients enabled.
        target: wanted share of the dense cost, in (0, 1].
        resource: "macs", "ms", "joules", or a `ddi.cost.Resource`; see `Record.cost`.
        mean: takes a scalar's mean over the processes that a batch is spread over, so that the sign is that
            of the whole batch in all of them; None: this process has all of it.

    Returns:
        Scalar to weigh and add to the task loss.

    Raises:
        ValueError: target is no share; see also `Record.cost`.

    Example:
        >>> with ddi.record(model) as rec:
        ...     logits = model(images)
        >>> loss = F.cross_entropy(logits, labels) + 2.0 * ddi.budget_loss(rec, target=0.3)
    """
    if not 0.0 < target <= 1.0:
        raise ValueError(f"budget_loss: target must lie in (0, 1], got {target!r}")
    return signed(rec.cost(resource).share, target, mean)


def signed(share: Tensor, target: float, mean: Callable[[Tensor], Tensor] | None) -> Tensor:
    """A share with the sign of its penalty, which the mean share of the whole batch decides."""
    measured = share.detach() if mean is None else mean(share.detach())
    return share if measured.item() > target else -share


def branch_loss(logits: Sequence[Tensor], labels: Tensor, equalise: bool = True) -> Tensor:
    """Sum of the branch classifiers' cross entropies, as Dual Dynamic Inference trains them with the network
    (arXiv 1907.04523).

    Args:
        logits: float[N, classes] of each branch classifier; not the main ones.
        labels: int64[N].
        equalise: scale each loss to their mean. The gradient of a shallow branch, whose loss stays large,
            then does not outweigh those of deep ones. The value of the sum is the same.

    Returns:
        Scalar to weigh and add to the main loss.

    Example:
        >>> *branches, main = model.forward_exits(images)
        >>> loss = F.cross_entropy(main, labels) + ddi.branch_loss(branches, labels)
    """
    if not logits:
        raise ValueError("branch_loss: logits is empty; create the model with exits")
    losses = torch.stack([F.cross_entropy(one.float(), labels) for one in logits])
    if equalise:
        own = losses.detach()
        losses = losses * (own.mean() / own.clamp_min(1e-8))
    return losses.sum()


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """How far a network's outputs are from those of a teacher (Hinton et al., arXiv 1503.02531).

    temperature^2 * KL(softmax(teacher_logits / temperature) || softmax(logits / temperature)), mean over the
    images; the factor keeps its gradients as large as those of cross entropy at any temperature.

    Args:
        logits: float[N, classes].
        teacher_logits: float[N, classes], taken as constants.
        temperature: higher ones weigh the classes that the teacher thinks unlikely.

    Returns:
        Scalar.

    Raises:
        ValueError: the shapes differ, or temperature is not positive.

    Example:
        >>> loss = F.cross_entropy(logits, labels) + ddi.distillation_loss(logits, teacher(images))
    """
    if logits.shape != teacher_logits.shape:
        raise ValueError(
            f"distillation_loss: logits are {tuple(logits.shape)}, teacher_logits "
            f"{tuple(teacher_logits.shape)}; give both for the same images and classes"
        )
    if not temperature > 0:
        raise ValueError(f"distillation_loss: temperature must be positive, got {temperature!r}")
    soft = F.log_softmax(teacher_logits.detach().float() / temperature, dim=1)
    own = F.log_softmax(logits.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(own, soft, reduction="batchmean", log_target=True)
