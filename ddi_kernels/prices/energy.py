"""Joules of a network's work: what a multiply-add and a byte cost, and where the bytes come from.

An estimate from published figures of a technology, not a measurement of this machine (energy_counters.py
measures): it has no instruction fetch, no leakage and no idle time. A model collapses to three coefficients,
joules per multiply-add, per byte of weights and per byte of activations, so that it is linear in the work
and can be trained for. docs/resources.md says what counts as work.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ddi_kernels.prices.versioned import read_versioned

__all__ = ["ELEMENT_BYTES", "HOROWITZ_45NM", "RELATIVE_MAC_L1_L2", "EnergyModel"]

VERSION = 1
ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
_PJ = 1e-12


@dataclass(frozen=True)
class EnergyModel:
    """Picojoules of arithmetic and of memory, by dtype and by level.

    A multiply-add costs its arithmetic and what it loads from the first level. Every weight that is used and
    every activation that is read or written costs its way from or to the level that it lies in, once for
    each sample. Any of the numbers may be replaced: `dataclasses.replace(HOROWITZ_45NM, weights_from="l2")`.

    Args:
        name: for reports.
        source: where the numbers come from.
        mac_pj: picojoules of a multiply-add, by dtype: some of "fp32", "bf16", "fp16", "int8".
        byte_pj: picojoules of a byte, by level of memory; "l1" must be among them.
        weights_from, activations_from: the levels that these lie in.
        l1_operands_per_mac: elements of the dtype that a multiply-add loads from L1. A register tile of 16
            outputs by 16 pixels loads 16 weights and 16 activations for 256 multiply-adds: 1/8. The AVX-512
            kernels here have tiles of 16x16, 32x14 and 48x9 (0.10 to 0.13), those of AVX2 16x6 (0.23).

    Raises:
        ValueError: an unknown dtype or level, or a number that is negative or not finite.

    Example:
        >>> from ddi_kernels.prices.energy import EnergyModel
        >>> model = EnergyModel("toy", "made up", {"fp32": 4.0}, {"l1": 2.0, "dram": 200.0}, "dram", "l1")
        >>> [round(1e12 * joules, 6) for joules in model.coefficients("fp32")]
        [5.0, 200.0, 2.0]
    """

    name: str
    source: str
    mac_pj: Mapping[str, float]
    byte_pj: Mapping[str, float]
    weights_from: str
    activations_from: str
    l1_operands_per_mac: float = 0.125

    def __post_init__(self) -> None:
        where = f"EnergyModel {self.name!r}"
        if not self.mac_pj or (unknown := sorted(set(self.mac_pj) - set(ELEMENT_BYTES))):
            got = f"unknown dtypes {unknown}" if self.mac_pj else "no dtype"
            raise ValueError(f"{where}: mac_pj has {got}; allowed: {', '.join(ELEMENT_BYTES)}")
        for field in ("weights_from", "activations_from"):
            if getattr(self, field) not in self.byte_pj:
                raise ValueError(
                    f"{where}: {field} is {getattr(self, field)!r}, byte_pj has {sorted(self.byte_pj)}"
                )
        if "l1" not in self.byte_pj:
            raise ValueError(f'{where}: byte_pj has {sorted(self.byte_pj)}, expected "l1" among them')
        for number in (*self.mac_pj.values(), *self.byte_pj.values(), self.l1_operands_per_mac):
            if not isinstance(number, (int, float)) or not 0 <= number < math.inf:
                raise ValueError(f"{where}: got {number!r}, expected numbers from 0 on, finite ones")

    def coefficients(self, dtype: str) -> tuple[float, float, float]:
        """Joules of a multiply-add with its loads from L1, of a byte of weights, and of one of activations.

        Raises:
            ValueError: the model has no multiply-add of this dtype.
        """
        if dtype not in self.mac_pj:
            raise ValueError(
                f"EnergyModel {self.name!r}: has no multiply-add of dtype {dtype!r}, it has "
                f"{', '.join(self.mac_pj)}; name one of these, or give a model whose mac_pj has it"
            )
        loads = self.l1_operands_per_mac * ELEMENT_BYTES[dtype] * self.byte_pj["l1"]
        weights, activations = self.byte_pj[self.weights_from], self.byte_pj[self.activations_from]
        return _PJ * (self.mac_pj[dtype] + loads), _PJ * weights, _PJ * activations

    def joules(self, macs: Any, weight_bytes: Any, activation_bytes: Any, dtype: str) -> Any:
        """Joules of so much work; floats, or tensors of one shape and then differentiable."""
        mac, weight, activation = self.coefficients(dtype)
        return mac * macs + weight * weight_bytes + activation * activation_bytes

    def dumps(self) -> str:
        """The model as JSON."""
        return json.dumps({"version": VERSION} | asdict(self), indent=1) + "\n"

    @classmethod
    def loads(cls, text: str) -> EnergyModel:
        """What `dumps` wrote.

        Raises:
            ValueError: it is none, damaged, or of another version.
        """
        return read_versioned(text, VERSION, "energy model", lambda content: cls(**content))


# Of an access of 64 bits, and sums in the width that the kernels accumulate in: float32, and int32 for int8.
HOROWITZ_45NM = EnergyModel(
    name="horowitz-45nm",
    source=(
        "M. Horowitz, Computing's energy problem (and what we can do about it), ISSCC 2014, 45 nm, 0.9 V: "
        "multiply fp32 3.7, fp16 1.1, int8 0.2 pJ; add fp32 0.9, int32 0.1 pJ; 64 bits from a cache of "
        "32 KB 20 pJ, of 1 MB 100 pJ, from DRAM 1.3 to 2.6 nJ (the middle is taken). bf16 is taken for fp16."
    ),
    mac_pj={"fp32": 3.7 + 0.9, "bf16": 1.1 + 0.9, "fp16": 1.1 + 0.9, "int8": 0.2 + 0.1},
    byte_pj={"l1": 20 / 8, "l2": 100 / 8, "dram": 1950 / 8},
    weights_from="dram",
    activations_from="l2",
)

# Not joules but units of a multiply-add, written as picojoules: only shares and ratios mean something.
RELATIVE_MAC_L1_L2 = EnergyModel(
    name="relative: multiply-adds + L1 accesses + 6 x L2 accesses",
    source=(
        "A convention, in units of one multiply-add of which 1 pJ stands for one: an access of a 4-byte word "
        "costs 1 in L1 and 6 in L2, the ratios of register file and global buffer in Y.-H. Chen, J. Emer and "
        "V. Sze, Eyeriss: a spatial architecture for energy-efficient dataflow, ISCA 2016, table IV (65 nm)."
    ),
    mac_pj={"fp32": 1.0},
    byte_pj={"l1": 1 / 4, "l2": 6 / 4},
    weights_from="l2",
    activations_from="l2",
)
