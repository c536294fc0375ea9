"""Wrong arguments of gated_bottleneck: every one is an exception that names operator and argument."""

from __future__ import annotations

import pytest
import torch
from residual_block_cases import Case, build, plain, positional

from ddi_kernels import backend
from ddi_kernels.ops.gated_bottleneck import gated_bottleneck

OP = torch.ops.ddi.gated_bottleneck.default
BOTTLENECK = (1, 3, 1)


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


GOOD = Case(
    batch=2, ci=6, interior=(8, 7), group_sizes=(1, 1), size=(5, 5), mask_scale=True, keep_scale=True,
    packed=True, pool=True, x_pooled=True,
)  # fmt: skip
WRONG = {
    "x-3d": ("x", {"x": ones(6, 5, 5)}),
    "x-integer": ("x", {"x": ones(2, 6, 5, 5, dtype=torch.int32)}),
    "weight1-channels": ("weight1", {"weight1": ones(8, 7, 1, 1)}),
    "weight1-kernel": ("weight1", {"weight1": ones(8, 6, 3, 3)}),
    "weight2-kernel": ("weight2", {"weight2": ones(7, 8, 1, 1)}),
    "weight2-channels": ("weight2", {"weight2": ones(7, 9, 3, 3)}),
    "weight3-empty": ("weight3", {"weight3": ones(0, 7, 1, 1)}),
    "weight3-dtype": ("weight3", {"weight3": ones(6, 7, 1, 1).double()}),
    "bias1-length": ("bias1", {"bias1": ones(7)}),
    "bias2-2d": ("bias2", {"bias2": ones(7, 1)}),
    "bias3-dtype": ("bias3", {"bias3": ones(6).double()}),
    "packed1-short": ("packed1", {"packed1": ones(5)}),
    "packed2-short": ("packed2", {"packed2": ones(5)}),
    "packed3-short": ("packed3", {"packed3": ones(5)}),
    "shortcut_weight-missing": ("shortcut_weight", {"stride": 2}),
    "shortcut_weight-outputs": ("shortcut_weight", {"keep": None, "shortcut_weight": ones(7, 6, 1, 1)}),
    "shortcut_bias-alone": ("shortcut_bias", {"shortcut_bias": ones(6)}),
    "keep-with-shortcut": ("keep", {"shortcut_weight": ones(6, 6, 1, 1)}),
    "keep-dtype": ("keep", {"keep": ones(2)}),
    "keep_scale-2d": ("keep_scale", {"keep_scale": ones(2, 1)}),
    "mask1-dtype": ("mask1", {"mask1": ones(2, 8)}),
    "mask1-width": ("mask1", {"mask1": ones(2, 7, dtype=torch.bool)}),
    "mask1-groups": ("mask1", {"group_size1": 4}),
    "mask1_scale-dtype": ("mask1_scale", {"mask1_scale": ones(2, 8).double()}),
    "mask2-batch": ("mask2", {"mask2": ones(1, 7, dtype=torch.bool)}),
    "mask2-groups": ("mask2", {"group_size2": 4}),
    "mask2_scale-width": ("mask2_scale", {"mask2_scale": ones(2, 8)}),
    "group_size1-0": ("group_size1", {"group_size1": 0}),
    "group_size2-negative": ("group_size2", {"group_size2": -1}),
    "stride-0": ("stride", {"stride": 0}),
    "x_pooled-unasked": ("x_pooled", {"pool": False}),
    "x_pooled-dtype": ("x_pooled", {"x_pooled": ones(2, 6).half()}),
}
WRONG_FOR_PYTHON = {
    "x-list": ("x", {"x": [1.0]}),
    "weight3-none": ("weight3", {"weight3": None}),
    "stride-pair": ("stride", {"stride": (2, 2)}),
}


@pytest.mark.parametrize("wrong", WRONG | WRONG_FOR_PYTHON)
@pytest.mark.parametrize("name", ["reference", "auto"])
def test_errors_name_the_argument(name, wrong):
    argument, changes = (WRONG | WRONG_FOR_PYTHON)[wrong]
    call = plain(GOOD, BOTTLENECK)
    gated_bottleneck(**call)
    with backend(name), pytest.raises(ValueError, match=f"gated_bottleneck: argument '{argument}'"):
        gated_bottleneck(**call | changes)


@pytest.mark.parametrize("wrong", WRONG)
def test_the_operator_and_tracing_name_the_argument(wrong):
    argument, changes = WRONG[wrong]
    call = plain(GOOD, BOTTLENECK) | changes
    meta = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in call.items()}
    for arguments in (call, meta):
        with pytest.raises((ValueError, RuntimeError), match=rf"gated_bottleneck.*\b{argument}\b"):
            OP(*positional(OP, arguments))


def test_native_says_what_it_cannot_do():
    call = build(Case(dtype=torch.float8_e5m2), BOTTLENECK)[0]
    with (
        backend("native"),
        pytest.raises(RuntimeError, match=r"gated_bottleneck.*'native'.*float8_e5m2"),
    ):
        gated_bottleneck(**call)
