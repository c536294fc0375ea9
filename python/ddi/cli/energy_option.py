"""The option --energy, which several verbs have."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["energy_model"]


def energy_model(args: argparse.Namespace) -> Any:
    """The energy model of --energy, or the default one."""
    from ddi_kernels.prices.energy import HOROWITZ_45NM, EnergyModel

    if args.energy is None:
        return HOROWITZ_45NM
    try:
        return EnergyModel.loads(Path(args.energy).read_text())
    except ValueError as error:
        raise ValueError(f"energy model {args.energy}: {error}; EnergyModel.dumps() writes one") from error
