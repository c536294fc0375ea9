"""Lists of the open channels of each sample, made from bool[N, G] masks over channel groups.

Kernels walk such a list instead of testing every channel: the cost of a gated layer then follows
the number of open channels. Lists have a fixed length, filled up with a pad entry, so that no
size depends on data and nothing has to be read back from a device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddi_kernels.backends import no_native_kernel, use_native
from ddi_kernels.checks import argument_error, check_at_least, check_tensor, describe
from ddi_kernels.registry import Op, register

_NAME = "active_channels"


def expand_groups(values: Tensor, channels: int, group_size: int) -> Tensor:
    """Repeats what stands per group, [N, G], for each of its channels, [N, channels]."""
    if group_size == 1:
        return values
    return values.repeat_interleave(group_size, dim=1)[:, :channels]


def group_count(channels: int, group_size: int) -> int:
    """ceil(channels / group_size): the last group may be short."""
    return -(-channels // group_size)


def active_channels(open: Tensor, channels: int | None = None, group_size: int = 1) -> tuple[Tensor, Tensor]:
    """Lists the open channels of each sample.

    Args:
        open: bool[N, G], the open channel groups, G = ceil(channels / group_size).
        channels: number of channels C; by default G * group_size.
        group_size: channels per group; the last group may be short.

    Returns:
        index: int32[N, C], the open channels ascending, filled up with the pad entry C.
        count: int32[N], the number of open channels.

    Raises:
        ValueError: an argument has the wrong type, shape or range.

    Example:
        >>> import torch
        >>> from ddi_kernels import active_channels
        >>> index, count = active_channels(torch.tensor([[True, False, True]]), 5, group_size=2)
        >>> index.tolist(), count.tolist()
        ([[0, 1, 4, 5, 5]], [3])
    """
    if channels is None:
        check_tensor(_NAME, "open", open, dims=2)
        channels = open.shape[1] * group_size
    if use_native(_NAME, _unsupported(open)):
        try:
            return _OP(open, channels, group_size)
        except RuntimeError:
            _check(open, channels, group_size)
            raise
    return reference(open, channels, group_size)


def _unsupported(open: Any) -> str | None:
    return no_native_kernel(_NAME, open) if isinstance(open, Tensor) else None


def _check(open: Any, channels: int, group_size: int) -> None:
    check_at_least(_NAME, "channels", channels, 1)
    check_at_least(_NAME, "group_size", group_size, 1)
    check_tensor(_NAME, "open", open, dims=2)
    groups = group_count(channels, group_size)
    if open.dtype != torch.bool or open.shape[1] != groups:
        expected = f"torch.bool of shape (N, ceil(channels / group_size)) = (N, {groups})"
        raise argument_error(_NAME, "open", describe(open), expected)


def reference(open: Tensor, channels: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Plain torch `active_channels`, the specification of all other implementations."""
    _check(open, channels, group_size)
    mask = expand_groups(open, channels, group_size)
    count = mask.sum(1, dtype=torch.int32)
    # A stable sort of "closed" puts the open channels first, in ascending order.
    order = mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    position = torch.arange(channels, device=open.device)
    index = torch.where(position < count[:, None], order, channels).to(torch.int32)
    return index, count


def _fake(open: Tensor, channels: int, group_size: int) -> tuple[Tensor, Tensor]:
    _check(open, channels, group_size)
    n = open.shape[0]
    return (
        open.new_empty((n, channels), dtype=torch.int32),
        open.new_empty((n,), dtype=torch.int32),
    )


_OP = register(
    Op(
        name=_NAME,
        schema="(Tensor open, int channels, int group_size) -> (Tensor index, Tensor count)",
        reference=reference,
        fake=_fake,
    )
)
