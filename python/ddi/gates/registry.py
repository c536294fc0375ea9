"""The gate configs by the names under which checkpoints know them."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from .ddi import DDIConfig
from .dense_conv import DenseConvConfig
from .dense_ddi import DenseDDIConfig

__all__ = ["config_from_dict", "config_to_dict", "gate_kind"]

_CONFIGS: dict[str, Any] = {"ddi": DDIConfig, "dense_conv": DenseConvConfig, "dense_ddi": DenseDDIConfig}


def gate_kind(config: Any) -> str:
    """The name by which checkpoints know a gate config, as "ddi".

    Raises:
        ValueError: it is none of this package.
    """
    for name, cls in _CONFIGS.items():
        if type(config) is cls:
            return name
    raise ValueError(f"gate config: {type(config).__name__} is none of the kinds {sorted(_CONFIGS)}")


def config_to_dict(config: Any) -> dict[str, Any]:
    """A JSON-ready dict of a gate config; `config_from_dict` reverses it."""
    return {"kind": gate_kind(config), **asdict(config)}


def config_from_dict(data: dict[str, Any]) -> Any:
    """The gate config that `config_to_dict` wrote.

    Raises:
        ValueError: unknown kind or key, naming the allowed ones.
    """
    values = dict(data)
    kind = values.pop("kind", None)
    if kind not in _CONFIGS:
        raise ValueError(f"gate config: unknown kind {kind!r}; known kinds: {sorted(_CONFIGS)}")
    allowed = {field.name for field in fields(_CONFIGS[kind])}
    if unknown := sorted(set(values) - allowed):
        raise ValueError(f"gate config {kind!r}: unknown keys {unknown}; allowed: {sorted(allowed)}")
    return _CONFIGS[kind](**values)
