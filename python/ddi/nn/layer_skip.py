"""Per-sample skipping of any shape-preserving block: only the kept samples of a batch run it."""

from __future__ import annotations

import torch
import torch.nn as nn
from torch import Tensor

from ddi_kernels import gather_samples, scatter_samples

from ..gating.decision import Decision
from .prepared import runs_sparse

__all__ = ["LayerSkip", "mix_kept"]


def mix_kept(y: Tensor, x: Tensor, decision: Decision) -> Tensor:
    """The dense form of skipping: y where the block is kept, x where not, differentiable in the gate."""
    keep = decision.keep_weights()
    if keep is None:
        return y
    keep = keep.to(y.dtype)[:, None, None, None]
    return keep * y + (1 - keep) * x


class LayerSkip(nn.Module):
    """Runs `block` on the kept samples; the others pass through unchanged.

    At inference the kept samples are gathered, run and scattered back, which reads how many there are on the
    host: on a GPU this synchronises, and cannot be captured in a CUDA graph.

    Args:
        block: any module that maps float[N, C, H, W] to the same shape.

    Example:
        >>> skip = LayerSkip(nn.Conv2d(8, 8, 3, padding=1)).eval()
        >>> y = skip(torch.randn(2, 8, 4, 4), ddi.Decision(keep=torch.tensor([True, False])))
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, decision: Decision) -> Tensor:
        if decision.keep is None:
            return self._checked(self.block(x), x)
        if not runs_sparse(x, self, decision):
            return mix_kept(self._checked(self.block(x), x), x, decision)
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "LayerSkip: a foreign block must read the number of kept samples on the host, which a CUDA "
                "graph cannot; convert the block with ddi.convert_, or run eagerly"
            )
        index = decision.keep.nonzero().flatten()
        if index.numel() == 0:
            return x
        if index.numel() == x.shape[0]:
            return self._checked(self.block(x), x)
        rows = gather_samples(x, index)
        return scatter_samples(x, self._checked(self.block(rows), rows), index)

    def _checked(self, y: Tensor, x: Tensor) -> Tensor:
        if y.shape != x.shape:
            raise ValueError(
                f"LayerSkip: the block must keep its input's shape {tuple(x.shape)}, it returned "
                f"{tuple(y.shape)}; a block that changes shape cannot be skipped"
            )
        return y
