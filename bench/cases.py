"""What the operator bench measures: convolutions, shares of open channels, groups, dtypes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddi_kernels.geometry import output_size

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
}
# Shares of open channels, in x out.
KEEPS = [(1.0, 1.0), (0.75, 0.75), (0.5, 0.5), (0.25, 0.25), (1.0, 0.5), (0.5, 1.0)]
GROUP_SIZES = (1, 16)
# Inputs that every provider rotates through.
INPUTS = 8


@dataclass(frozen=True)
class Case:
    """One convolution with "same" padding on a batch of square maps."""

    batch: int
    channels_in: int
    channels_out: int
    side: int
    kernel: int = 3
    stride: int = 1

    @property
    def name(self) -> str:
        """As it stands in the rows, e.g. "conv3x3 N1 C16 H32" or "conv1x1 N8 C256-64 H56"."""
        stride = f"s{self.stride}" if self.stride > 1 else ""
        channels = f"{self.channels_in}"
        if self.channels_out != self.channels_in:
            channels += f"-{self.channels_out}"
        return f"conv{self.kernel}x{self.kernel}{stride} N{self.batch} C{channels} H{self.side}"

    @property
    def padding(self) -> int:
        return self.kernel // 2

    @property
    def side_out(self) -> int:
        kernel, stride, pad = [self.kernel] * 2, [self.stride] * 2, [self.padding] * 2
        return output_size((self.side, self.side), kernel, stride, pad)[0]

    @property
    def macs(self) -> int:
        """Multiply-adds of the dense convolution; positions in the padding count."""
        per_sample = self.channels_in * self.channels_out * self.kernel**2 * self.side_out**2
        return self.batch * per_sample


# (N, C, H), 3x3: the stages of a CIFAR ResNet, then of a ResNet-18 at 224 pixels.
_SAME = [(n, c, h) for n in (1, 32) for c, h in ((16, 32), (32, 16), (64, 8))]
_SAME += [(n, c, h) for n in (1, 8) for c, h in ((64, 56), (128, 28), (256, 14), (512, 7))]
# (Ci, Co, H), 1x1: both ends of a bottleneck, in the first and the third stage of a ResNet-50.
_POINTWISE = [(256, 64, 56), (64, 256, 56), (1024, 256, 14), (256, 1024, 14)]
_STRIDED = [(128, 56), (256, 28)]

SUITES = {
    "cpu": [
        *(Case(n, c, c, h) for n, c, h in _SAME),
        *(Case(n, ci, co, h, kernel=1) for n in (1, 8) for ci, co, h in _POINTWISE),
        *(Case(1, c, c, h, stride=2) for c, h in _STRIDED),
    ]
}


def select_cases(suite: str, part: str) -> list[Case]:
    """The cases of a suite whose name contains `part`.

    Raises:
        ValueError: no case does.
    """
    cases = [case for case in SUITES[suite] if part in case.name]
    if not cases:
        names = ", ".join(case.name for case in SUITES[suite])
        raise ValueError(f"--cases {part!r} is part of no case of the suite {suite!r}; it has {names}")
    return cases


def make_inputs(case: Case, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Channels_last inputs [N, Ci, H, H], `INPUTS` of them, and a weight [Co, Ci, k, k]."""
    shape = (case.batch, case.channels_in, case.side, case.side)
    inputs = [
        torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(INPUTS)
    ]
    weight = torch.randn(case.channels_out, case.channels_in, case.kernel, case.kernel)
    return inputs, (weight * 0.05).to(dtype)
