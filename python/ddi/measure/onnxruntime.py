"""A plain model in onnxruntime: the dense opponent that users would deploy otherwise.

Exports once, in memory, and opens a session for one batch size and thread count, with all of
onnxruntime's graph optimisations and nothing else tuned. What a session computes is compared with
the model before anyone may time it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

__all__ = ["OnnxRuntimeMissing", "export_onnx", "onnxruntime_forward", "open_session"]

# Relative to the largest logit. float32 summed in another order, BatchNorm folded: below a tenth.
_TOLERANCE = 1e-4


class OnnxRuntimeMissing(ImportError):
    """onnxruntime, or what exports models for it, is not installed."""


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The exporter reports each of its steps, and warns of what does not concern this model."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def export_onnx(model: nn.Module, example: Tensor) -> bytes:
    """A plain model as an ONNX file in memory, its batch size left open under the name "batch".

    Args:
        model: in eval mode, without gates.
        example: float32[N, 3, H, W], N >= 2.

    Raises:
        OnnxRuntimeMissing: a package is missing; the message names it.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise OnnxRuntimeMissing(f"{error.name} is not installed; pip install ddi-kernels[onnx]") from error
    with _silence():
        program = torch.onnx.export(
            model,
            (example,),
            input_names=["x"],
            output_names=["y"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto.SerializeToString()


def open_session(onnx: bytes, batch: int, threads: int) -> Any:
    """A session over a model whose batch size is fixed, or open under the name "batch".

    Knowing the size lets onnxruntime plan its memory.

    Args:
        onnx: the file's bytes.
        batch: images a call.
        threads: inside an operator; operators run one after the other.
    """
    import onnxruntime as ort

    options: Any = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_free_dimension_override_by_name("batch", batch)
    return ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


def onnxruntime_forward(
    onnx: bytes, model: nn.Module, example: Tensor, threads: int
) -> Callable[[Tensor], Any]:
    """A session over an exported model, planned for one batch size and checked against the model.

    Args:
        onnx: the model, from `export_onnx`.
        model: what the session must agree with.
        example: float32[batch, 3, H, W]; the session takes batches of this size only.
        threads: see `open_session`.

    Returns:
        float32[batch, 3, H, W] -> logits float32[batch, classes], as a numpy array.

    Raises:
        RuntimeError: the session computes something else than the model.
    """
    session = open_session(onnx, len(example), threads)

    def run(x: Tensor) -> Any:
        return session.run(None, {"x": x.numpy()})[0]

    with torch.inference_mode():
        expected, got = model(example), torch.from_numpy(run(example.contiguous()))
    error = ((got - expected).abs().max() / expected.abs().max()).item()
    if not error < _TOLERANCE:
        raise RuntimeError(
            f"onnxruntime's output differs from the model's by {error:.1e} of its largest value, "
            f"allowed is {_TOLERANCE:.0e}; its time would not be comparable"
        )
    return run
