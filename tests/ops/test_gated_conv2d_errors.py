"""Wrong arguments of gated_conv2d: every one is an exception that names operator and argument."""

from __future__ import annotations

import pytest
import torch
from gated_conv2d_cases import Case, build, direct_arguments

from ddi_kernels import backend, gated_conv2d

OP = torch.ops.ddi.gated_conv2d.default
CASE = Case(ci=6, co=8, size=(5, 5), scale=True, residual="contiguous", packed=True)


def mask(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool)


WRONG = {
    "x-3d": ("x", {"x": torch.ones(6, 5, 5)}),
    "x-0d": ("x", {"x": torch.ones(())}),
    "x-integer": ("x", {"x": torch.ones(2, 6, 5, 5, dtype=torch.int32)}),
    "x-complex": ("x", {"x": torch.ones(2, 6, 5, 5, dtype=torch.complex64)}),
    "x-no-channels": ("x", {"x": torch.ones(2, 0, 5, 5)}),
    "x-no-pixels": ("x", {"x": torch.ones(2, 6, 0, 5), "padding": (3, 3)}),
    "x-smaller-than-kernel": ("x", {"x": torch.ones(2, 6, 1, 1), "padding": (0, 0)}),
    "weight-3d": ("weight", {"weight": torch.ones(8, 6, 3)}),
    "weight-channels": ("weight", {"weight": torch.ones(8, 7, 3, 3)}),
    "weight-empty": ("weight", {"weight": torch.ones(0, 6, 3, 3)}),
    "weight-kernel-0": ("weight", {"weight": torch.ones(8, 6, 0, 3)}),
    "weight-dtype": ("weight", {"weight": torch.ones(8, 6, 3, 3).double()}),
    "weight-device": ("weight", {"weight": torch.ones(8, 6, 3, 3, device="meta")}),
    "bias-length": ("bias", {"bias": torch.ones(7)}),
    "bias-2d": ("bias", {"bias": torch.ones(8, 1)}),
    "bias-dtype": ("bias", {"bias": torch.ones(8).double()}),
    "packed-short": ("packed", {"packed": torch.ones(5)}),
    "packed-2d": ("packed", {"packed": torch.ones(864, 1)}),
    "packed-dtype": ("packed", {"packed": torch.ones(864).double()}),
    "in_mask-dtype": ("in_mask", {"in_mask": torch.ones(2, 6)}),
    "in_mask-width": ("in_mask", {"in_mask": mask(2, 5)}),
    "in_mask-batch": ("in_mask", {"in_mask": mask(1, 6)}),
    "in_mask-1d": ("in_mask", {"in_mask": mask(6)}),
    "in_mask-4d": ("in_mask", {"in_mask": mask(2, 6, 1, 1)}),
    "in_mask-groups": ("in_mask", {"in_group_size": 4}),
    "out_mask-dtype": ("out_mask", {"out_mask": torch.ones(2, 8, dtype=torch.uint8)}),
    "out_mask-width": ("out_mask", {"out_mask": mask(2, 9)}),
    "out_mask-batch": ("out_mask", {"out_mask": mask(3, 8)}),
    "scale-width": ("scale", {"scale": torch.ones(2, 7)}),
    "scale-dtype": ("scale", {"scale": torch.ones(2, 8).double()}),
    "residual-shape": ("residual", {"residual": torch.ones(2, 8, 5, 4)}),
    "residual-broadcast": ("residual", {"residual": torch.ones(1, 8, 5, 5)}),
    "residual-dtype": ("residual", {"residual": torch.ones(2, 8, 5, 5).half()}),
    "stride-0": ("stride", {"stride": 0}),
    "stride-negative": ("stride", {"stride": (1, -1)}),
    "padding-negative": ("padding", {"padding": -1}),
    "padding-huge": ("padding", {"padding": 2**62}),
    "dilation-0": ("dilation", {"dilation": (0, 1)}),
    "dilation-huge": ("dilation", {"dilation": 2**62}),
    "groups-0": ("groups", {"groups": 0}),
    "groups-no-divisor": ("weight", {"groups": 4, "packed": None}),
    "in_group_size-0": ("in_group_size", {"in_group_size": 0}),
    "in_group_size-negative": ("in_group_size", {"in_group_size": -1}),
    "out_group_size-0": ("out_group_size", {"out_group_size": 0}),
}
# Where the compiled operator blames another argument than the Python checks.
ALSO_RIGHT = {"x-smaller-than-kernel": "kernel", "groups-no-divisor": "groups"}
# What the operator's schema already refuses or completes.
WRONG_FOR_PYTHON = {
    "x-list": ("x", {"x": [1.0]}),
    "weight-none": ("weight", {"weight": None}),
    "bias-list": ("bias", {"bias": [1.0] * 8}),
    "stride-triple": ("stride", {"stride": (1, 1, 1)}),
    "stride-text": ("stride", {"stride": "same"}),
    "padding-float": ("padding", {"padding": 1.0}),
    "groups-none": ("groups", {"groups": None}),
    "activation": ("activation", {"activation": "gelu"}),
}


def good() -> dict:
    torch.manual_seed(0)
    return build(CASE)[0]


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "grad"])
@pytest.mark.parametrize("wrong", WRONG | WRONG_FOR_PYTHON)
@pytest.mark.parametrize("name", ["reference", "auto"])
def test_public_function_names_the_argument(name, wrong, grad):
    argument, changes = (WRONG | WRONG_FOR_PYTHON)[wrong]
    arguments = good() | changes
    if grad and isinstance(arguments["residual"], torch.Tensor):
        arguments["residual"] = arguments["residual"].clone().requires_grad_()
    wording = f"gated_conv2d: argument '{argument}'"
    with backend(name), pytest.raises(ValueError, match=wording):
        gated_conv2d(**arguments)


@pytest.mark.parametrize("wrong", WRONG)
def test_direct_operator_call_names_the_argument(isa, wrong):
    argument, changes = WRONG[wrong]
    named = f"({argument}|{ALSO_RIGHT.get(wrong, argument)})"
    with pytest.raises((ValueError, RuntimeError), match=rf"gated_conv2d.*\b{named}\b"):
        OP(*direct_arguments(good() | changes))


@pytest.mark.parametrize("wrong", WRONG)
def test_tracing_names_the_argument(wrong):
    argument, changes = WRONG[wrong]
    if wrong == "weight-device":
        pytest.skip("all tensors are on the meta device here")
    call = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in direct_arguments(good() | changes)]
    with pytest.raises(ValueError, match=f"gated_conv2d: argument '{argument}'"):
        OP(*call)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": torch.float8_e5m2}, "float8_e5m2"),
        ({"dtype": torch.bfloat16, "groups": "two"}, "grouped convolution in torch.bfloat16"),
        ({"dtype": torch.float16, "groups": "depthwise"}, "grouped convolution in torch.float16"),
    ],
    ids=["float8", "bfloat16-grouped", "float16-depthwise"],
)
def test_native_says_what_it_cannot_do(isa, changes, reason):
    arguments, _ = build(Case(ci=4, co=4, **changes))
    with pytest.raises(RuntimeError, match=rf"gated_conv2d.*native.*{reason}"):
        gated_conv2d(**arguments)
    with pytest.raises(RuntimeError, match="gated_conv2d"):
        OP(*direct_arguments(arguments))


@pytest.mark.parametrize("name", ["reference", "auto"])
def test_half_precision_has_no_packed_form_of_convolution_groups(name):
    arguments, _ = build(Case(ci=4, co=4, groups="two", dtype=torch.float16))
    wording = "gated_conv2d: argument 'packed'.*groups > 1 in torch.float16"
    with backend(name), pytest.raises(ValueError, match=wording):
        gated_conv2d(**arguments | {"packed": torch.ones(5)})


def test_triton_says_that_it_has_no_kernel():
    arguments = good()
    with backend("triton"), pytest.raises(RuntimeError, match=r"gated_conv2d.*'triton'.*[Tt]riton"):
        gated_conv2d(**arguments)
