"""Accuracy of a model under a budget, over a split: which exits answer, and whether the budget holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from tqdm import tqdm

from ..budgets.budget import Budget, budget
from ..data import Dataset, Split

__all__ = ["BudgetEvaluation", "evaluate_budget"]


@dataclass(frozen=True)
class BudgetEvaluation:
    """Results over a split of S samples, in calls of a batch each.

    Args:
        correct: bool[S].
        macs: float64[S] multiply-adds of each sample, classifiers included.
        exits: int64[S], the classifier that answered.
        ms: float64[calls], milliseconds of each.
        joules: float64[S] of each sample, where they were limited; else None.
        limits: what a call was allowed.
    """

    correct: Tensor
    macs: Tensor
    exits: Tensor
    ms: Tensor
    joules: Tensor | None
    limits: Budget

    @property
    def accuracy(self) -> float:
        return self.correct.double().mean().item()

    @property
    def within_ms_share(self) -> float | None:
        """Of the calls, those that met the deadline; None without one."""
        return None if self.limits.ms is None else (self.ms <= self.limits.ms).double().mean().item()

    def summary(self) -> dict[str, Any]:
        """JSON-ready; exits are the shares of the samples that each answered, shallowest first."""
        count = int(self.exits.max()) + 1
        p50, p99 = self.ms.quantile(torch.tensor([0.5, 0.99], dtype=torch.float64)).tolist()
        return {
            "budget_macs": self.limits.macs,
            "budget_ms": self.limits.ms,
            "budget_joules": self.limits.joules,
            "confidence": self.limits.confidence,
            "images": len(self.correct),
            "accuracy": self.accuracy,
            "mean_macs": self.macs.mean().item(),
            "most_macs": self.macs.max().item(),
            "p50_ms": p50,
            "p99_ms": p99,
            "mean_joules": None if self.joules is None else self.joules.mean().item(),
            "within_ms_share": self.within_ms_share,
            "exits": [(self.exits == i).double().mean().item() for i in range(count)],
        }


def evaluate_budget(
    model: nn.Module,
    dataset: Dataset,
    split: Split,
    limits: Budget,
    batch_size: int = 1,
    progress: bool = False,
) -> BudgetEvaluation:
    """Runs a backbone over a split, each call under the same budget.

    Args:
        model: of `ddi.create_model`, in eval mode.
        batch_size: images a call, which all halt together, but for a confidence.

    Example:
        >>> data = ddi.data.get_dataset("scene_digits")
        >>> evaluate_budget(model, data, data.test(), ddi.Budget(macs=20_000_000)).accuracy
    """
    if batch_size < 1:
        raise ValueError(f"evaluate: batch must be at least 1, got {batch_size}")
    answers = []
    starts = range(0, len(split), batch_size)
    for start in tqdm(starts, disable=None if progress else True, desc="evaluate"):
        x = dataset.normalize(split.images[start : start + batch_size])
        answers.append(budget(model, x, limits))
    logits = torch.cat([answer.logits for answer in answers])
    return BudgetEvaluation(
        logits.argmax(1) == split.labels,
        torch.cat([answer.macs for answer in answers]),
        torch.cat([answer.exits for answer in answers]),
        torch.tensor([answer.ms for answer in answers], dtype=torch.float64),
        None if limits.joules is None else torch.cat([a.joules for a in answers if a.joules is not None]),
        limits,
    )
