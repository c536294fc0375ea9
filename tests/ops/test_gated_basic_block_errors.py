"""Wrong arguments of gated_basic_block: every one is an exception that names operator and argument."""

from __future__ import annotations

import pytest
import torch
from residual_block_cases import Case, build, plain, positional

from ddi_kernels import backend
from ddi_kernels.ops.gated_basic_block import gated_basic_block

OP = torch.ops.ddi.gated_basic_block.default
BASIC = (3, 3)


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


GOOD = Case(
    batch=2, ci=6, interior=(8, 0), size=(5, 5), mask_scale=True, keep_scale=True, packed=True, pool=True,
    x_pooled=True,
)  # fmt: skip
WRONG = {
    "x-3d": ("x", {"x": ones(6, 5, 5)}),
    "x-integer": ("x", {"x": ones(2, 6, 5, 5, dtype=torch.int32)}),
    "x-no-pixels": ("x", {"x": ones(2, 6, 0, 5)}),
    "weight1-channels": ("weight1", {"weight1": ones(8, 7, 3, 3)}),
    "weight1-kernel": ("weight1", {"weight1": ones(8, 6, 1, 1)}),
    "weight1-empty": ("weight1", {"weight1": ones(0, 6, 3, 3)}),
    "weight1-dtype": ("weight1", {"weight1": ones(8, 6, 3, 3).double()}),
    "weight2-channels": ("weight2", {"weight2": ones(6, 9, 3, 3)}),
    "weight2-2d": ("weight2", {"weight2": ones(6, 8)}),
    "bias1-length": ("bias1", {"bias1": ones(7)}),
    "bias2-dtype": ("bias2", {"bias2": ones(6).double()}),
    "packed1-short": ("packed1", {"packed1": ones(5)}),
    "packed2-dtype": ("packed2", {"packed2": ones(16 * 9 * 8).double()}),
    "shortcut_weight-missing": ("shortcut_weight", {"stride": 2}),
    "shortcut_weight-missing-channels": (
        "shortcut_weight",
        {"weight2": ones(7, 8, 3, 3), "bias2": None, "packed2": None},
    ),
    "shortcut_weight-kernel": ("shortcut_weight", {"keep": None, "shortcut_weight": ones(6, 6, 3, 3)}),
    "shortcut_weight-outputs": ("shortcut_weight", {"keep": None, "shortcut_weight": ones(7, 6, 1, 1)}),
    "shortcut_bias-alone": ("shortcut_bias", {"shortcut_bias": ones(6)}),
    "shortcut_bias-length": (
        "shortcut_bias",
        {"keep": None, "shortcut_weight": ones(6, 6, 1, 1), "shortcut_bias": ones(5)},
    ),
    "shortcut_packed-alone": ("shortcut_packed", {"shortcut_packed": ones(6)}),
    "keep-with-shortcut": ("keep", {"shortcut_weight": ones(6, 6, 1, 1)}),
    "keep-dtype": ("keep", {"keep": ones(2)}),
    "keep-batch": ("keep", {"keep": ones(3, dtype=torch.bool)}),
    "keep-2d": ("keep", {"keep": ones(2, 1, dtype=torch.bool)}),
    "keep_scale-2d": ("keep_scale", {"keep_scale": ones(2, 1)}),
    "keep_scale-dtype": ("keep_scale", {"keep_scale": ones(2).double()}),
    "mask-dtype": ("mask", {"mask": ones(2, 8)}),
    "mask-width": ("mask", {"mask": ones(2, 9, dtype=torch.bool)}),
    "mask-batch": ("mask", {"mask": ones(1, 8, dtype=torch.bool)}),
    "mask-groups": ("mask", {"group_size": 4}),
    "mask_scale-width": ("mask_scale", {"mask_scale": ones(2, 7)}),
    "mask_scale-dtype": ("mask_scale", {"mask_scale": ones(2, 8).double()}),
    "group_size-0": ("group_size", {"group_size": 0}),
    "stride-0": ("stride", {"stride": 0}),
    "x_pooled-unasked": ("x_pooled", {"pool": False}),
    "x_pooled-shape": ("x_pooled", {"x_pooled": ones(2, 5)}),
    "x_pooled-dtype": ("x_pooled", {"x_pooled": ones(2, 6).half()}),
}
WRONG_FOR_PYTHON = {
    "x-list": ("x", {"x": [1.0]}),
    "weight1-none": ("weight1", {"weight1": None}),
    "bias1-list": ("bias1", {"bias1": [1.0] * 8}),
    "stride-pair": ("stride", {"stride": (2, 2)}),
}


@pytest.mark.parametrize("wrong", WRONG | WRONG_FOR_PYTHON)
@pytest.mark.parametrize("name", ["reference", "auto"])
def test_errors_name_the_argument(name, wrong):
    argument, changes = (WRONG | WRONG_FOR_PYTHON)[wrong]
    call = plain(GOOD, BASIC)
    gated_basic_block(**call)
    with backend(name), pytest.raises(ValueError, match=f"gated_basic_block: argument '{argument}'"):
        gated_basic_block(**call | changes)


@pytest.mark.parametrize("wrong", WRONG)
def test_the_operator_and_tracing_name_the_argument(wrong):
    argument, changes = WRONG[wrong]
    call = plain(GOOD, BASIC) | changes
    meta = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in call.items()}
    for arguments in (call, meta):
        with pytest.raises((ValueError, RuntimeError), match=rf"gated_basic_block.*\b{argument}\b"):
            OP(*positional(OP, arguments))


def test_a_tensor_on_another_device_is_refused():
    call = plain(GOOD, BASIC)
    with pytest.raises(ValueError, match="argument 'weight2'.*on cpu.*on meta"):
        gated_basic_block(**call | {"weight2": call["weight2"].to("meta")})


def test_a_skip_that_cannot_be_says_why():
    call = plain(GOOD, BASIC) | {"shortcut_weight": ones(6, 6, 1, 1)}
    with pytest.raises(ValueError, match="stride 1 and no shortcut_weight"):
        gated_basic_block(**call)


def test_native_says_what_it_cannot_do():
    call = build(Case(dtype=torch.float8_e5m2), BASIC)[0]
    with (
        backend("native"),
        pytest.raises(RuntimeError, match=r"gated_basic_block.*'native'.*float8_e5m2"),
    ):
        gated_basic_block(**call)
