"""JSON files with a version: how those that people keep and exchange are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["read_versioned"]

T = TypeVar("T")


def read_versioned(text: str, version: int, kind: str, build: Callable[[dict[str, Any]], T]) -> T:
    """What `build` makes of the content of a file, its version taken out.

    Args:
        text: a JSON object with a `version`.
        version: that is read here.
        kind: what the file should be, for messages.
        build: may raise whatever a damaged file makes it raise.

    Raises:
        ValueError: text is none of that kind, damaged, or of another version.
    """
    try:
        content = json.loads(text)
        found = content.pop("version")
        if found != version:
            raise ValueError(f"it has version {found}, this package reads version {version}")
        return build(content)
    except (AttributeError, LookupError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"it is no {kind}, or damaged ({error!r})") from error
