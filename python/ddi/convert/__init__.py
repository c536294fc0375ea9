"""Puts gates on existing models, in place, and takes them off again."""

from ..gating.stand_in import is_converted, revert_
from .convert import convert_
from .find import FilterFn, gated_form

__all__ = ["FilterFn", "convert_", "gated_form", "is_converted", "revert_"]
