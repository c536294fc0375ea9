"""The little statistics that reports need: correlation, and the interval of a paired difference."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["correlation", "paired_interval"]


def correlation(a: Tensor, b: Tensor) -> float | None:
    """Pearson's correlation of two float[S]; None where one of them is constant.

    Example:
        >>> correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0]))
        1.0
    """
    value = torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1].item()
    return None if math.isnan(value) else value


def paired_interval(
    first: Tensor, second: Tensor, group: Tensor, seed: int, draws: int = 2000
) -> tuple[float, float]:
    """95 % interval of the accuracy of `second` minus that of `first`, by a paired bootstrap.

    Images made from one scan are not independent, so whole scans are drawn, with replacement, each
    with the answers of both networks to all its images (Efron and Tibshirani, An Introduction to
    the Bootstrap, 1993).

    Args:
        first, second: bool[S], whether each network was right.
        group: int64[S], what is drawn together, e.g. `Split.scan`.
        seed: of the drawing.
        draws: bootstrap samples.

    Example:
        >>> right = torch.tensor([True, False, True, True])
        >>> paired_interval(right, right, torch.tensor([0, 0, 1, 1]), seed=0)
        (0.0, 0.0)
    """
    _, index = group.unique(return_inverse=True)
    groups = int(index.max()) + 1
    zeros = torch.zeros(groups, dtype=torch.float64)
    gain = zeros.index_add(0, index, second.double() - first.double())
    count = zeros.index_add(0, index, torch.ones(len(index), dtype=torch.float64))
    drawn = torch.randint(groups, (draws, groups), generator=torch.Generator().manual_seed(seed))
    differences = gain[drawn].sum(1) / count[drawn].sum(1)
    low, high = torch.quantile(differences, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
