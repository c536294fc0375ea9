"""Weights folded and prepacked once for inference, and dropped the moment they could be stale.

Packing a convolution's weights costs about as much as running it on a small map, so a module does it at its
first inference and keeps the result. train(), load_state_dict() and .to() drop it, and so does any in-place
change of a weight that autograd's version counter sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

import ddi_kernels
from ddi_kernels import fold_bn, gated_conv2d, prepack_conv2d

from ..gating.decision import Decision

__all__ = ["PreparedConv", "PreparedModule", "prepare_", "runs_sparse"]


def runs_sparse(x: Tensor, module: nn.Module, decision: Decision) -> bool:
    """Whether a gated module skips work on x: at inference, unless the reference is asked for.

    Training, and whatever needs a gradient, runs the dense masked form: straight-through needs the closed
    channels too.
    """
    if module.training or ddi_kernels.current_backend() == "reference":
        return False
    if not torch.is_grad_enabled():
        return True
    if x.requires_grad or decision.needs_grad:
        return False
    return not any(p.requires_grad for p in module.parameters())


def conv_geometry(conv: nn.Conv2d) -> dict[str, Any]:
    """The keyword arguments of `gated_conv2d` that a convolution fixes."""
    return dict(stride=conv.stride, padding=conv.padding, dilation=conv.dilation, groups=conv.groups)


@dataclass(frozen=True)
class PreparedConv:
    """A convolution with its BatchNorm folded in and its weights packed, ready for `gated_conv2d`."""

    weight: Tensor
    bias: Tensor | None
    packed: Tensor | None
    geometry: dict[str, Any]

    @classmethod
    def of(cls, conv: nn.Conv2d, bn: nn.BatchNorm2d | None = None) -> PreparedConv:
        """Folds bn (if any) into conv and packs the result."""
        weight, bias = conv.weight.detach(), conv.bias
        bias = None if bias is None else bias.detach()
        if bn is not None:
            weight, bias = fold_bn(weight, bias, bn)
        if weight.is_cuda:
            # As the kernels there read it; they would copy it in every call.
            weight = weight.contiguous(memory_format=torch.channels_last)
        real = weight.dtype in (torch.float32, torch.float64)
        packable = real or (conv.groups == 1 and weight.dtype.is_floating_point)
        packed = None
        if packable and weight.device.type == "cpu":
            strided = (2, 2) if conv.kernel_size == (7, 7) else (1, 1)  # where transforms are of use
            winograd = conv.stride == strided and conv.dilation == (1, 1)
            packed = prepack_conv2d(weight, conv.groups, winograd=winograd)
        return cls(weight, bias, packed, conv_geometry(conv))

    def __call__(self, x: Tensor, **gating: Any) -> Tensor:
        return gated_conv2d(x, self.weight, self.bias, packed=self.packed, **self.geometry, **gating)


def _versions(tensors: list[Tensor]) -> int:
    """Grows with every in-place change of one of the tensors."""
    return sum([0 if t.is_inference() else t._version for t in tensors])


class PreparedModule(nn.Module):
    """Base of modules that keep prepared weights. Subclasses implement `_prepare` and `_sources`."""

    def __init__(self) -> None:
        super().__init__()
        self._forget()

    def _forget(self) -> None:
        # A plain attribute, not a buffer: it must never reach a state_dict, DDP or .to().
        self.__dict__["_prepared"] = None

    def _prepare(self) -> Any:
        """Builds what inference needs from the parameters."""
        raise NotImplementedError

    def _sources(self) -> tuple[Tensor | None, ...]:
        """The parameters and buffers whose in-place change makes the prepared weights stale."""
        raise NotImplementedError

    @torch.no_grad()
    def prepared(self) -> Any:
        """The prepared weights, built now if missing or stale."""
        kept = self.__dict__["_prepared"]
        if kept is None or kept[1] != _versions(kept[0]):
            sources = [t for t in self._sources() if t is not None]
            kept = (sources, _versions(sources), self._prepare())
            self.__dict__["_prepared"] = kept
        return kept[2]

    def train(self, mode: bool = True) -> Any:
        self._forget()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._forget()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._forget()
        super()._load_from_state_dict(*args, **kwargs)


def prepare_(model: nn.Module) -> nn.Module:
    """Puts a model in eval mode and prepares the weights of its gated modules now.

    Without it the first eval forward does so lazily. train(), load_state_dict() and .to() drop them again.

    Example:
        >>> model = ddi.prepare_(ddi.create_model("cifar_resnet20", gates=ddi.DDIConfig()))
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, PreparedModule):
            module.prepared()
    return model
