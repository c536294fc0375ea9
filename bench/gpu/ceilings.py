"""What the machine itself allows, beside which the other rows are read: launches, copies, multiplications."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from . import graphs
from .graphs import DTYPE, replayed, row, unchanged

NODES = 200
COPIED = 1 << 30  # bytes
SIDE = 8192


def ceiling_rows() -> Iterator[dict[str, Any]]:
    """A node of a graph, bytes a second of a copy, and operations a second of a matrix product."""
    one = torch.zeros(1, device=graphs.DEVICE)
    yield row("graph_node", "cuda_graph", 1, replayed(lambda i: one.fill_(1.0), unchanged, NODES), {})
    source = torch.empty(COPIED, dtype=torch.uint8, device=graphs.DEVICE)
    target = torch.empty_like(source)
    timed = replayed(lambda i: target.copy_(source), unchanged, 2)
    yield row("copy", "cuda_graph", 1, timed, {}) | {"tb_per_s": 2 * COPIED / timed.median / 1e9}
    a, b = (torch.randn(SIDE, SIDE, device=graphs.DEVICE, dtype=DTYPE) for _ in range(2))
    timed = replayed(lambda i: torch.mm(a, b), unchanged, 2)
    yield row("matmul", "cublas_graph", 1, timed, {}) | {"tflops": 2 * SIDE**3 / timed.median / 1e9}
