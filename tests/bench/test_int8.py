"""The int8 bench: both sides compute the same convolution, and the summary adds up."""

import pytest
import torch

from bench.cases import Case
from bench.int8 import providers, summarise
from ddi_kernels import backends


def test_both_sides_compute_the_same():
    if not backends.native_available()[0]:
        pytest.skip(backends.native_available()[1])
    torch.manual_seed(0)
    made = providers(Case(2, 20, 24, 6), 0.5)
    fp32, int8 = made["fp32"].output(3).double(), made["int8"].output(3).double()
    scale = (fp32 * int8).sum() / (int8 * int8).sum()
    # Two roundings to 8 bits of numbers of this spread: a few per cent in the mean.
    assert (fp32 - scale * int8).norm() < 0.05 * fp32.norm()


def test_summary():
    rows = [{"keep": "1x1", "speedup_vs_fp32": gain} for gain in (1.5, 3.0, 2.0)]
    (summary,) = summarise(rows)
    assert (summary["speedup_median"], summary["speedup_worst"], summary["cases"]) == (2.0, 1.5, 3)
