"""A gated network as one CUDA graph: captured once, replayed for other images and other decisions.

A small network on a GPU is bound by its launches, some microseconds each from the host; a graph's cost a
fraction of that. It can be captured because nothing of a gated forward is read by the host: gates, lists and
counts stay on the device, launches are those of the worst case, and what is skipped exits on its own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils._pytree import tree_map

from ..nn.prepared import prepare_

__all__ = ["GraphedModel"]


class GraphedModel(nn.Module):
    """Inference of `model` on batches of one shape, replayed as a CUDA graph.

    It keeps the weights of the moment it is made, and refuses to run once they have changed.

    Args:
        model: any module in eval mode on a CUDA device; it must not read a value on the host (a `LayerSkip`
            around a foreign block does).
        example_input: float[N, C, H, W] on that device; batches must have its shape and dtype.
        warmup: passes before the capture, in which kernels are compiled and memory is found.

    Raises:
        ValueError: the model is in training mode, or the input is not on a GPU.

    Example:
        >>> model = ddi.create_model("resnet50", gates=ddi.DDIConfig(group_size=32)).eval().cuda().bfloat16()
        >>> fast = ddi.GraphedModel(model, images)
        >>> logits = fast(images)
    """

    def __init__(self, model: nn.Module, example_input: Tensor, warmup: int = 3) -> None:
        super().__init__()
        if model.training:
            raise ValueError("GraphedModel: the model is in training mode, call model.eval() first")
        _require_gpu(example_input)
        self.model = prepare_(model)
        self._versions = self._read_versions()
        with torch.inference_mode():
            self._input = example_input.clone()
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(max(1, warmup)):
                    model(self._input)
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._output: Any = model(self._input)
        # The graph holds addresses: what lies there must live as long as it does.
        self._weights = [m.__dict__["_prepared"] for m in model.modules() if "_prepared" in m.__dict__]

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Any:
        """What the model returns for x, in memory of its own.

        Raises:
            ValueError: x has another shape, dtype or device than the example.
            RuntimeError: the model's weights have changed since it was captured.
        """
        like = self._input
        if (x.shape, x.dtype, x.device) != (like.shape, like.dtype, like.device):
            raise ValueError(
                f"GraphedModel: x is {_form(x)}, the graph was captured for {_form(like)}; make one "
                "GraphedModel for each shape, or pad the batch"
            )
        if self._versions != self._read_versions():
            raise RuntimeError(
                "GraphedModel: the model's weights have changed since it was captured; make a new one"
            )
        like.copy_(x)
        self._graph.replay()
        return tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, self._output)

    def _read_versions(self) -> list[tuple[int, int]]:
        """Where every parameter and buffer lies, and how often it has been written."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]


def _require_gpu(x: Tensor) -> None:
    if not x.is_cuda:
        raise ValueError(f"GraphedModel: example_input is {_form(x)}, expected a tensor on a CUDA device")


def _form(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)} on {x.device}"
