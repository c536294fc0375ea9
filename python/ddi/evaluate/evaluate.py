"""Accuracy and cost of a model over a split, at its hard decisions."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor
from tqdm import tqdm

from ..cost import Cost, Resource, as_resource, dense_macs
from ..cost.record import Record, record
from ..data import Dataset, Split
from ..eval_mode import eval_mode
from ..gating.decision import Decision
from ..gating.stand_in import is_converted

__all__ = ["Evaluation", "evaluate", "has_exits"]


def has_exits(model: nn.Module) -> bool:
    """Whether a model has branch classifiers."""
    return bool(getattr(model, "exit_positions", ()))


@dataclass(frozen=True)
class Evaluation:
    """Results over a split of S samples.

    Args:
        logits: float[S, classes].
        correct: bool[S].
        macs: float64[S] multiply-adds of each sample.
        dense_macs: multiply-adds per sample without gates.
        keep: bool[S, skippable blocks] and their names; empty for a plain model.
        open_share: float[S, gated blocks], the share of open interior channels where the block ran, else 0.
        exit_correct: bool[S, E] of the branch classifiers, shallowest first; E = 0 without any.
        resource: "macs", "ms" or "joules".
        cost: in the resource, float[S] and dense.
    """

    logits: Tensor
    correct: Tensor
    macs: Tensor
    dense_macs: int
    keep: Tensor
    keep_names: list[str]
    open_share: Tensor
    block_names: list[str]
    exit_correct: Tensor
    resource: str
    cost: Cost

    @property
    def exit_accuracy(self) -> list[float]:
        """Of each branch classifier."""
        return self.exit_correct.double().mean(0).tolist()

    @property
    def accuracy(self) -> float:
        return self.correct.double().mean().item()

    @property
    def mac_ratio(self) -> float:
        return self.dense_macs / self.macs.mean().item()


def _bits(rec: Record) -> tuple[Tensor, list[str], Tensor, list[str]]:
    """Keep bits and open shares of all recorded passes, sample by sample."""
    first = rec.passes[0]
    keep_names = [b.name for b in first if b.decision.keep is not None]
    keep, share = [], []
    for blocks in rec.passes:
        kept = {b.name: b.decision.keep for b in blocks if b.decision.keep is not None}
        rows = blocks[0].shape[0]
        keep.append(torch.stack([*kept.values()], 1) if kept else torch.empty(rows, 0).bool())
        share.append(torch.stack([_open_share(b.decision, rows) for b in blocks], 1))
    return torch.cat(keep).cpu(), keep_names, torch.cat(share).cpu(), [b.name for b in first]


def _open_share(decision: Decision, rows: int) -> Tensor:
    share = torch.ones(rows)
    for mask in decision.masks:
        share = share * mask.open.float().mean(1)
    return share if decision.keep is None else share * decision.keep


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    dataset: Dataset,
    split: Split,
    batch_size: int = 256,
    progress: bool = False,
    device: torch.device | str = "cpu",
    resource: str | Resource = "macs",
) -> Evaluation:
    """Runs a model in eval mode over a split; gated models take the sparse path. Branch classifiers run, too,
    and are not among the costs, which are told in MACs and in the resource; see `Record.cost`.

    Example:
        >>> data = ddi.data.get_dataset("scene_digits")
        >>> evaluate(model, data, data.test()).accuracy
    """
    prices = as_resource(resource)
    gated = is_converted(model)
    logits: list[Tensor] = []
    answers: list[Tensor] = []
    starts = range(0, len(split.labels), batch_size)
    with eval_mode(model), record(model) if gated else nullcontext() as rec:
        for start in tqdm(starts, disable=None if progress else True, desc="evaluate"):
            x = dataset.normalize(split.images[start : start + batch_size]).to(device)
            exits = model(x, all_exits=True) if has_exits(model) else (model(x),)
            answers.append(torch.stack([one.argmax(1) for one in exits], 1).cpu())
            logits.append(exits[-1].float().cpu())
    scores = torch.cat(logits)
    dense = dense_macs(model, (1, *split.images.shape[1:]))
    right = torch.cat(answers) == split.labels[:, None]
    right_early, correct = right[:, :-1], right[:, -1]
    if rec is None:
        macs = torch.full((len(correct),), float(dense), dtype=torch.float64)
        whole = prices.dense(model, (batch_size, *split.images.shape[1:]))
        cost, empty = Cost(torch.full_like(macs, whole), whole), torch.empty(len(correct), 0)
        bits: tuple[Tensor, list[str], Tensor, list[str]] = (empty.bool(), [], empty, [])
    else:
        macs, cost, bits = rec.macs.double().cpu(), rec.cost(prices), _bits(rec)
    return Evaluation(scores, correct, macs, dense, *bits, right_early, prices.name, cost)
