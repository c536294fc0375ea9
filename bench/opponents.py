"""The dense convolutions that gated_conv2d is measured against, as fast as each library can be called.

torch on NCHW and on channels_last, oneDNN with weights prepacked for it, and models of one Conv node
in onnxruntime and OpenVINO, whose inputs and outputs are bound once so that no copy is timed. Each
gets the layout it likes best for nothing, and each result is compared with float64 before it may be timed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddi.measure.onnxruntime import open_session
from ddi.measure.turns import Provider

from .cases import Case

# Of the largest value. Wide enough for another order of summation, too narrow for another result.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}

# inputs (channels_last), weight, case, threads -> provider; raises where it cannot.
Build = Callable[[list[Tensor], Tensor, Case, int], Provider]


def _eager(inputs: list[Tensor], weight: Tensor, case: Case, threads: int) -> Provider:
    xs = [x.contiguous() for x in inputs]
    return Provider([partial(F.conv2d, x, weight, None, case.stride, case.padding) for x in xs])


def _channels_last(inputs: list[Tensor], weight: Tensor, case: Case, threads: int) -> Provider:
    weight = weight.contiguous(memory_format=torch.channels_last)
    return Provider([partial(F.conv2d, x, weight, None, case.stride, case.padding) for x in inputs])


def _onednn_prepacked(inputs: list[Tensor], weight: Tensor, case: Case, threads: int) -> Provider:
    weight = weight.contiguous(memory_format=torch.channels_last)
    padding, stride, dilation = [case.padding] * 2, [case.stride] * 2, [1, 1]
    shape = list(inputs[0].shape)
    packed = torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, 1, shape)
    run = torch.ops.mkldnn._convolution_pointwise.default
    options: tuple[Any, ...] = (None, padding, stride, dilation, 1, "none", [], "")
    return Provider([partial(run, x, packed, *options) for x in inputs])


def _outputs(inputs: list[Tensor], case: Case) -> list[Tensor]:
    shape = (case.batch, case.channels_out, case.side_out, case.side_out)
    return [torch.zeros(shape, dtype=x.dtype) for x in inputs]


def _onnx_conv(weight: Tensor, case: Case) -> bytes:
    """A model of one Conv node with constant weights and fixed shapes, inputs and outputs NCHW."""
    from onnx import TensorProto, helper

    kind = {torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16}[weight.dtype]
    x = helper.make_tensor_value_info("x", kind, [case.batch, case.channels_in, case.side, case.side])
    shape = [case.batch, case.channels_out, case.side_out, case.side_out]
    y = helper.make_tensor_value_info("y", kind, shape)
    values = helper.make_tensor("w", kind, weight.shape, weight.numpy().tobytes(), raw=True)
    pads, strides = [case.padding] * 4, [case.stride] * 2
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=pads, strides=strides)
    graph = helper.make_graph([node], "conv", [x], [y], [values])
    # Old enough for every onnxruntime that this may meet.
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def bind_onnxruntime(model: bytes, inputs: list[Tensor], outputs: list[Tensor], threads: int) -> Provider:
    """Calls of a model from "x" to "y", NCHW; each input and its output are bound once."""
    session = open_session(model, len(inputs[0]), threads)
    calls = []
    for x, y in zip(inputs, outputs, strict=True):
        binding = session.io_binding()
        kind = x.numpy().dtype.type
        binding.bind_input("x", "cpu", 0, kind, list(x.shape), x.data_ptr())
        binding.bind_output("y", "cpu", 0, kind, list(y.shape), y.data_ptr())
        calls.append(partial(session.run_with_iobinding, binding))
    return Provider(calls, bound_inputs=inputs, bound_outputs=outputs)


def bind_openvino(
    model: Any, inputs: list[Tensor], outputs: list[Tensor], threads: int, precision: str = "f32"
) -> Provider:
    """Calls of an OpenVINO model of one input and one output, NCHW float32, each pair bound once."""
    import openvino as ov

    options = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # Left to itself, it computes in bfloat16 where the CPU has it.
        "INFERENCE_PRECISION_HINT": precision,
        # Threads that others start later would inherit the cores it pins.
        "ENABLE_CPU_PINNING": False,
    }
    compiled = ov.Core().compile_model(model, "CPU", options)
    calls = []
    for x, y in zip(inputs, outputs, strict=True):
        request = compiled.create_infer_request()
        request.set_input_tensor(ov.Tensor(x.numpy(), shared_memory=True))
        request.set_output_tensor(ov.Tensor(y.numpy(), shared_memory=True))
        calls.append(partial(request.infer, share_outputs=True))
    return Provider(calls, bound_inputs=inputs, bound_outputs=outputs)


def _onnxruntime(inputs: list[Tensor], weight: Tensor, case: Case, threads: int) -> Provider:
    model, plain = _onnx_conv(weight, case), [x.contiguous() for x in inputs]
    return bind_onnxruntime(model, plain, _outputs(inputs, case), threads)


def _openvino(inputs: list[Tensor], weight: Tensor, case: Case, threads: int) -> Provider:
    import openvino as ov
    from openvino import opset13

    x = opset13.parameter(list(inputs[0].shape), ov.Type.f32)
    padding, stride = [case.padding] * 2, [case.stride] * 2
    y = opset13.convolution(x, opset13.constant(weight.numpy()), stride, padding, padding, [1, 1])
    plain = [x.contiguous() for x in inputs]
    return bind_openvino(ov.Model([y], [x], "conv"), plain, _outputs(inputs, case), threads)


_TORCH: dict[str, Build] = {
    "eager": _eager,
    "channels_last": _channels_last,
    "onednn_prepacked": _onednn_prepacked,
}
# onnxruntime has no bfloat16 convolution on a CPU; it computes float16 in float32.
_BUILDERS: dict[torch.dtype, dict[str, Build]] = {
    torch.float32: _TORCH | {"onnxruntime": _onnxruntime, "openvino": _openvino},
    torch.bfloat16: _TORCH,
    torch.float16: _TORCH | {"onnxruntime": _onnxruntime},
}


def make_opponents(
    inputs: list[Tensor], weight: Tensor, case: Case, threads: int
) -> tuple[dict[str, Provider], dict[str, str]]:
    """The dense providers of a case.

    Args:
        inputs: channels_last [N, Ci, H, H].
        weight: [Co, Ci, k, k] of the same dtype.
        case: what they belong to.
        threads: for the libraries that do not follow torch.set_num_threads.

    Returns:
        Providers with one call an input, and for each opponent that cannot be timed the reason.

    Raises:
        RuntimeError: an opponent computes something else than the convolution.
    """
    providers: dict[str, Provider] = {}
    missing: dict[str, str] = {}
    expected = dense_float64(inputs[-1], weight, case)
    for name, build in _BUILDERS[weight.dtype].items():
        try:
            provider = build(inputs, weight, case, threads)
            got = provider.output(len(inputs) - 1)
        except Exception as error:  # not installed, or an exception of the library's own
            missing[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
            continue
        check_result(name, case.name, got, expected)
        providers[name] = provider
    return providers, missing


def dense_float64(x: Tensor, weight: Tensor, case: Case) -> Tensor:
    """The convolution of a case in float64."""
    return F.conv2d(x.double(), weight.double(), None, case.stride, case.padding)


def check_result(name: str, case: str, got: Tensor, expected: Tensor) -> float:
    """Largest difference from `expected` (float64), as a part of its largest value.

    Raises:
        RuntimeError: it is above TOLERANCES: the time of this provider would not be comparable.
    """
    # Sample by sample: temporaries of a whole batch would take longer than the convolution. Python's
    # max would lose a NaN, torch's keeps it.
    differences = [(one - other).abs().max() for one, other in zip(got, expected, strict=True)]
    error = (torch.stack(differences).max() / expected.abs().max()).item()
    allowed = TOLERANCES[got.dtype]
    if not error < allowed:
        raise RuntimeError(
            f"{name} on {case} differs from float64 by {error:.1e} of the largest value, allowed "
            f"is {allowed:.0e}; its time would not be comparable"
        )
    return error
