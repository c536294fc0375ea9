"""Energy models: what they add up to, reading and writing, and what is none."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from ddi_kernels.prices.energy import ELEMENT_BYTES, HOROWITZ_45NM, RELATIVE_MAC_L1_L2, EnergyModel

TOY = EnergyModel(
    "toy",
    "made up",
    {"fp32": 4.0, "bf16": 2.0, "int8": 0.5},
    {"l1": 2.0, "l2": 16.0, "dram": 200.0},
    weights_from="dram",
    activations_from="l2",
    l1_operands_per_mac=0.25,
)


def test_coefficients_by_hand():
    assert TOY.coefficients("fp32") == pytest.approx((4e-12 + 0.25 * 4 * 2e-12, 200e-12, 16e-12))
    assert TOY.coefficients("bf16") == pytest.approx((2e-12 + 0.25 * 2 * 2e-12, 200e-12, 16e-12))
    assert TOY.coefficients("int8") == pytest.approx((0.5e-12 + 0.25 * 1 * 2e-12, 200e-12, 16e-12))
    assert replace(TOY, weights_from="l1").coefficients("fp32")[1] == pytest.approx(2e-12)


def test_joules_of_numbers_and_tensors():
    expected = 1000 * 6e-12 + 100 * 200e-12 + 10 * 16e-12
    assert TOY.joules(1000, 100, 10, "fp32") == pytest.approx(expected)
    work = [torch.full((2,), float(n), requires_grad=True) for n in (1000, 100, 10)]
    joules = TOY.joules(*work, "fp32")
    assert joules.tolist() == pytest.approx([expected] * 2)
    joules.sum().backward()
    assert [w.grad[0].item() for w in work] == pytest.approx([6e-12, 200e-12, 16e-12])


def test_the_shipped_models_have_the_published_numbers():
    # Horowitz: 3.7 + 0.9; 20 pJ for 64 bits of 32 KB, of which a multiply-add loads an eighth of 4 bytes.
    mac, weight, activation = HOROWITZ_45NM.coefficients("fp32")
    assert mac == pytest.approx((3.7 + 0.9 + 0.125 * 4 * 20 / 8) * 1e-12)
    assert weight == pytest.approx((1.3 + 2.6) / 2 / 8 * 1e-9) and activation == pytest.approx(
        100 / 8 * 1e-12
    )
    assert HOROWITZ_45NM.mac_pj == pytest.approx({"fp32": 4.6, "bf16": 2.0, "fp16": 2.0, "int8": 0.3})
    costs = [HOROWITZ_45NM.coefficients(dtype)[0] for dtype in ("fp32", "bf16", "int8")]
    assert costs == sorted(costs, reverse=True)
    # A word of 4 bytes costs 6 multiply-adds in L2, and 1 in L1.
    mac, weight, activation = RELATIVE_MAC_L1_L2.coefficients("fp32")
    assert (mac, 4 * weight, 4 * activation) == pytest.approx((1.125e-12, 6e-12, 6e-12))
    assert all(model.source and model.name for model in (HOROWITZ_45NM, RELATIVE_MAC_L1_L2))


def test_a_dtype_without_a_price():
    with pytest.raises(
        ValueError, match="'toy': has no multiply-add of dtype 'fp16', it has fp32, bf16, int8"
    ):
        TOY.coefficients("fp16")
    with pytest.raises(ValueError, match="relative.*'int8', it has fp32"):
        RELATIVE_MAC_L1_L2.joules(1, 1, 1, "int8")


def test_round_trip():
    for model in (TOY, HOROWITZ_45NM, RELATIVE_MAC_L1_L2):
        assert EnergyModel.loads(model.dumps()) == model


def spoilt(**changes):
    return json.dumps(json.loads(TOY.dumps()) | changes)


DAMAGE = {
    "empty": ("", "damaged"),
    "truncated": (TOY.dumps()[:60], "damaged"),
    "list": ("[1]", "damaged"),
    "foreign": ('{"name": "something else"}', "'version'"),
    "old": (spoilt(version=0), "version 0, this package reads version 1"),
    "surprise": (spoilt(surprise=1), "surprise"),
    "negative": (spoilt(mac_pj={"fp32": -1.0}), "'toy': got -1.0, expected numbers from 0 on"),
    "text": (spoilt(byte_pj={"l1": "cheap", "l2": 1, "dram": 1}), "got 'cheap'"),
    "infinite": (spoilt(l1_operands_per_mac=float("inf")), "got inf"),
    "nan": (spoilt(l1_operands_per_mac=float("nan")), "got nan"),
    "dtype": (spoilt(mac_pj={"fp8": 1.0}), r"unknown dtypes \['fp8'\]; allowed: fp32"),
    "no dtype": (spoilt(mac_pj={}), "mac_pj has no dtype; allowed: fp32"),
    "level": (spoilt(weights_from="l3"), "weights_from is 'l3', byte_pj has"),
    "no l1": (spoilt(byte_pj={"l2": 1.0, "dram": 1.0}), '"l1" among them'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_no_model_is_refused_with_the_reason(damage):
    text, says = DAMAGE[damage]
    with pytest.raises(ValueError, match=says):
        EnergyModel.loads(text)


def test_element_sizes():
    assert ELEMENT_BYTES == {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
