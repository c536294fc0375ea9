"""How good a network is and what it costs on a data set: gated, under budgets, frozen."""

from .evaluate import Evaluation, evaluate, has_exits

__all__ = ["Evaluation", "evaluate", "has_exits"]
