"""Wrong arguments of gated_dense_layer and its in-place form: the error names operator and argument."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from gated_dense_layer_cases import Case, build, with_buffer
from residual_block_cases import positional, without_nan

from ddi_kernels import backend
from ddi_kernels.ops.gated_dense_layer import gated_dense_layer, gated_dense_layer_

OP = torch.ops.ddi.gated_dense_layer.default
OP_INPLACE = torch.ops.ddi.gated_dense_layer_.default
CASE = Case(batch=2, ci=6, middle=8, growth=4, size=(5, 5), bias=(True, True), packed=True)


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


WRONG = {
    "scale1-length": ("scale1", {"scale1": ones(5)}),
    "scale1-dtype": ("scale1", {"scale1": ones(6).double()}),
    "shift1-2d": ("shift1", {"shift1": ones(6, 1)}),
    "weight1-kernel": ("weight1", {"weight1": ones(8, 6, 3, 3)}),
    "weight1-empty": ("weight1", {"weight1": ones(0, 6, 1, 1)}),
    "weight1-2d": ("weight1", {"weight1": ones(8, 6)}),
    "weight2-channels": ("weight2", {"weight2": ones(4, 7, 3, 3)}),
    "weight2-kernel": ("weight2", {"weight2": ones(4, 8, 1, 1)}),
    "weight2-dtype": ("weight2", {"weight2": ones(4, 8, 3, 3).double()}),
    "bias1-length": ("bias1", {"bias1": ones(7)}),
    "bias2-length": ("bias2", {"bias2": ones(3)}),
    "packed1-short": ("packed1", {"packed1": ones(5)}),
    "packed2-dtype": ("packed2", {"packed2": ones(16 * 9 * 8).double()}),
    "in_mask-dtype": ("in_mask", {"in_mask": ones(2, 6)}),
    "in_mask-width": ("in_mask", {"in_mask": ones(2, 7, dtype=torch.bool)}),
    "in_mask-batch": ("in_mask", {"in_mask": ones(1, 6, dtype=torch.bool)}),
    "out_mask-dtype": ("out_mask", {"out_mask": ones(2, 4)}),
    "out_mask-groups": ("out_mask", {"group_size": 3}),
    "group_size-0": ("group_size", {"group_size": 0}),
}
WRONG_X = {
    "x-3d": ("x", {"x": ones(6, 5, 5)}),
    "x-integer": ("x", {"x": ones(2, 6, 5, 5, dtype=torch.int32)}),
    "x-no-pixels": ("x", {"x": ones(2, 6, 5, 0)}),
    "weight1-channels": ("weight1", {"weight1": ones(8, 7, 1, 1)}),
}
WRONG_BUFFER = {
    "buffer-3d": ("buffer", {"buffer": ones(12, 5, 5)}),
    "buffer-integer": ("buffer", {"buffer": ones(2, 12, 5, 5, dtype=torch.int32)}),
    "buffer-no-room": ("buffer", {"buffer": ones(2, 9, 5, 5)}),
    "buffer-expanded": ("buffer", {"buffer": ones(1, 12, 5, 5).expand(2, 12, 5, 5)}),
    "weight1-no-channels": ("weight1", {"weight1": ones(8, 0, 1, 1), "scale1": ones(0), "shift1": ones(0)}),
}
WRONG_FOR_PYTHON = {
    "scale1-none": ("scale1", {"scale1": None}),
    "weight1-list": ("weight1", {"weight1": [1.0]}),
}


def good(in_place: bool) -> dict:
    torch.manual_seed(0)
    arguments = build(CASE)[0]
    return without_nan(with_buffer(arguments, CASE) if in_place else arguments)


@pytest.mark.parametrize("wrong", WRONG | WRONG_X | WRONG_FOR_PYTHON)
@pytest.mark.parametrize("name", ["reference", "auto"])
def test_errors_name_the_argument(name, wrong):
    argument, changes = (WRONG | WRONG_X | WRONG_FOR_PYTHON)[wrong]
    gated_dense_layer(**good(False))
    with backend(name), pytest.raises(ValueError, match=f"gated_dense_layer: argument '{argument}'"):
        gated_dense_layer(**good(False) | changes)


@pytest.mark.parametrize("wrong", WRONG | WRONG_BUFFER | WRONG_FOR_PYTHON)
@pytest.mark.parametrize("name", ["reference", "auto"])
def test_errors_in_place_name_the_argument(name, wrong):
    argument, changes = (WRONG | WRONG_BUFFER | WRONG_FOR_PYTHON)[wrong]
    gated_dense_layer_(**good(True))
    with backend(name), pytest.raises(ValueError, match=f"gated_dense_layer_: argument '{argument}'"):
        gated_dense_layer_(**good(True) | changes)


@pytest.mark.parametrize("wrong", WRONG | WRONG_X | WRONG_BUFFER)
def test_the_operators_and_tracing_name_the_argument(wrong):
    argument, changes = (WRONG | WRONG_X | WRONG_BUFFER)[wrong]
    for overload, in_place in ((OP, False), (OP_INPLACE, True)):
        if wrong in (WRONG_BUFFER, WRONG_X)[in_place]:
            continue
        call = good(in_place) | changes
        meta = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in call.items()}
        for arguments in (call, meta):
            if wrong == "buffer-expanded" and arguments is meta:
                continue  # .to("meta") makes it a tensor with memory of its own
            with pytest.raises((ValueError, RuntimeError), match=rf"gated_dense_layer.*\b{argument}\b"):
                overload(*positional(overload, arguments))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_native_says_what_it_cannot_do(isa, dtype):
    case = dataclasses.replace(CASE, packed=False, dtype=dtype)
    call = without_nan(build(case)[0])
    with pytest.raises(RuntimeError, match=rf"gated_dense_layer:.*'native'.*{dtype}"):
        gated_dense_layer(**call)
    with pytest.raises(RuntimeError, match=rf"gated_dense_layer_:.*'native'.*{dtype}"):
        gated_dense_layer_(**without_nan(with_buffer(call, case)))
