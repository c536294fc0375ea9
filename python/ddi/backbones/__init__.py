"""Backbones by name. A new family is one file whose variants carry `@register_model`."""

from .registry import create_model, list_models, register_model

from . import densenet, resnet  # noqa: F401  (register their variants)  # isort: skip

__all__ = ["create_model", "list_models", "register_model"]
