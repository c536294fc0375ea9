"""Gated modules that stand in a model for its own, which they keep as `__dict__["_ddi_original"]`.

Outside the module tree, so that no state_dict, .to() or hook meets the original beside its stand-in.
"""

from __future__ import annotations

import torch.nn as nn

__all__ = ["is_converted", "revert_", "stand_in", "swap"]


def is_converted(model: nn.Module) -> bool:
    """Whether `convert_` has put gates on this very module."""
    return "_ddi_hooks" in model.__dict__


def stand_in(module: nn.Module, original: nn.Module) -> None:
    """Notes for which module another one stands, which `revert_` puts back."""
    module.__dict__["_ddi_original"] = original


def swap(model: nn.Module, path: str, module: nn.Module) -> None:
    """Puts a module at a path of a model."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def revert_(model: nn.Module) -> nn.Module:
    """Takes the gates off a converted model; its weights stay as they are now.

    Raises:
        ValueError: the model is not converted.
    """
    if not is_converted(model):
        raise ValueError(f"revert_: {type(model).__name__} has no gates to take off")
    gated = [(p, m) for p, m in model.named_modules() if "_ddi_original" in m.__dict__]
    for path, block in gated:
        swap(model, path, block.__dict__["_ddi_original"].train(block.training))
    model.__dict__.pop("_ddi_hooks").remove()
    del model.ddi_gates
    return model
