"""Our side of the operator bench: gated_conv2d, each call with the next masks of a pool of 256."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ddi.measure.turns import Provider
from ddi_kernels import backend, gated_conv2d, prepack_conv2d

from .cases import DTYPES, Case
from .opponents import dense_float64

POOL = 256


@dataclass(frozen=True)
class Gating:
    """Masks bool[POOL, N, groups] over the channels of a case, before and after its convolution."""

    case: Case
    group_size: int
    in_masks: Tensor
    out_masks: Tensor

    @classmethod
    def draw(cls, case: Case, keep_in: float, keep_out: float, group_size: int) -> Gating:
        """Random masks, the same number of groups open in each sample: see `draw_masks`."""
        in_masks = draw_masks(case.batch, case.channels_in, keep_in, group_size)
        return cls(
            case, group_size, in_masks, draw_masks(case.batch, case.channels_out, keep_out, group_size)
        )

    @property
    def mac_ratio(self) -> float:
        """Mean dense over mean gated MACs of the pool."""
        return 1 / (self._share_in() * self._share_out()).mean().item()

    @property
    def share_in(self) -> float:
        """Mean open part of the input channels."""
        return self._share_in().mean().item()

    def _share_in(self) -> Tensor:
        return expand_mask(self.in_masks, self.case.channels_in, self.group_size).double().mean(-1)

    def _share_out(self) -> Tensor:
        return expand_mask(self.out_masks, self.case.channels_out, self.group_size).double().mean(-1)

    def calls(self, inputs: list[Tensor], weight: Tensor) -> list[Callable[[], Tensor]]:
        """One call for each masks of the pool, the inputs in rotation; the weight is prepacked."""
        return self.bind(partial(gated_conv2d, weight=weight, packed=prepack_conv2d(weight)), inputs)

    def bind(self, convolve: Callable[..., Tensor], inputs: list[Tensor]) -> list[Callable[[], Tensor]]:
        """The same of any operator that takes geometry and masks as gated_conv2d does."""
        gated = partial(
            convolve,
            stride=self.case.stride,
            padding=self.case.padding,
            in_group_size=self.group_size,
            out_group_size=self.group_size,
        )
        # Indexing once, here, keeps it out of the timed loop.
        masks = zip(self.in_masks.unbind(), self.out_masks.unbind(), strict=True)
        return [
            partial(gated, inputs[i % len(inputs)], in_mask=before, out_mask=after)
            for i, (before, after) in enumerate(masks)
        ]

    def expected(self, index: int, inputs: list[Tensor], weight: Tensor) -> Tensor:
        """What call `index` must compute: dense-times-mask in float64."""
        case = self.case
        before = expand_mask(self.in_masks[index], case.channels_in, self.group_size)[..., None, None]
        after = expand_mask(self.out_masks[index], case.channels_out, self.group_size)[..., None, None]
        return dense_float64(inputs[index % len(inputs)] * before, weight, case) * after


def draw_masks(batch: int, channels: int, keep: float, group_size: int) -> Tensor:
    """bool[POOL, batch, groups] with the same number of groups open in each sample, at least one.

    The number is the nearest to `keep` of the groups: with few groups the share differs from it,
    which is why rows carry the mac_ratio of the pool.
    """
    groups = -(-channels // group_size)
    ranks = torch.rand(POOL, batch, groups).argsort(-1).argsort(-1)
    return ranks < max(1, round(keep * groups))


def expand_mask(mask: Tensor, channels: int, group_size: int) -> Tensor:
    """bool[..., groups] -> bool[..., channels]; the last group may be short."""
    return mask.repeat_interleave(group_size, -1)[..., :channels]


def our_provider(name: str, calls: list[Callable[[], Tensor]]) -> Provider:
    """Calls of gated_conv2d in the backend of a name."""
    return Provider(calls, context=partial(backend, name))


def require_native(dtype: str) -> None:
    """Fails where the native kernels do not take a dtype: `auto` would time the reference instead.

    Raises:
        RuntimeError: names the dtype and the reason.
    """
    x = torch.ones(1, 1, 1, 1, dtype=DTYPES[dtype])
    try:
        with backend("native"):
            gated_conv2d(x, x)
    except RuntimeError as error:
        raise RuntimeError(f"--dtype {dtype} cannot be measured on native kernels: {error}") from error
