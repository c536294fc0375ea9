"""The residual blocks' operators that write over their input: the same values, and nothing else touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from residual_block_cases import Case, plain
from torch.utils.flop_counter import FlopCounterMode

from ddi_kernels import backend, gated_basic_block, gated_basic_block_, gated_bottleneck, gated_bottleneck_

BLOCKS = {
    "gated_basic_block": (gated_basic_block, gated_basic_block_, (3, 3)),
    "gated_bottleneck": (gated_bottleneck, gated_bottleneck_, (1, 3, 1)),
}
EACH_BLOCK = pytest.mark.parametrize("block", BLOCKS)


def call_of(block: str, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keyword arguments of the copying form, and those that the form in place takes."""
    case = Case(**{"ci": 12, "interior": (9, 10), "size": (5, 6), "pool": True} | changes)
    call = plain(case, BLOCKS[block][2])
    no_use = ("stride", "shortcut", "packed")
    return call, {name: value for name, value in call.items() if not name.startswith(no_use)}


@EACH_BLOCK
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"keep": "none"}, {"keep": None}, {"open": None}, {"x_pooled": True}, {"batch": 0}, {"pool": False}],
    ids=str,
)
def test_equals_the_copying_form(block, layout, changes):
    call, inplace = call_of(block, layout=layout, keep_scale=True, mask_scale=True, **changes)
    y, pooled = BLOCKS[block][0](**call)
    x, strides, before = inplace["x"], inplace["x"].stride(), inplace["x"].clone()
    found = BLOCKS[block][1](**inplace)
    torch.testing.assert_close(x, y)
    torch.testing.assert_close(found, pooled)
    assert x.stride() == strides
    if call["keep"] is not None:
        skipped = ~call["keep"]
        assert torch.equal(x[skipped], before[skipped])


@EACH_BLOCK
def test_in_torch(block):
    name = BLOCKS[block][1].__name__
    call, inplace = call_of(block)
    overload = getattr(torch.ops.ddi, name).default
    arguments = tuple(call[argument.name] for argument in overload._schema.arguments)
    results = torch.library.opcheck(overload, arguments)
    assert len(results) == 4 and set(results.values()) == {"SUCCESS"}
    torch._dynamo.reset()
    compiled = torch.compile(BLOCKS[block][1], fullgraph=True, backend="aot_eager")
    expected, found = inplace["x"].clone(), inplace["x"].clone()
    with torch.no_grad():
        BLOCKS[block][1](**inplace | {"x": expected})
        compiled(**inplace | {"x": found})
    assert torch.equal(found, expected)
    counts = []
    for operator in BLOCKS[block][:2]:
        with FlopCounterMode(display=False) as counter, backend("reference"):
            overload = getattr(torch.ops.ddi, operator.__name__).default
            overload(*(call[argument.name] for argument in overload._schema.arguments))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@EACH_BLOCK
def test_autocast_leaves_the_dtype(block):
    _, inplace = call_of(block)
    expected = inplace["x"].clone()
    BLOCKS[block][1](**inplace | {"x": expected})
    with torch.autocast("cpu", torch.bfloat16):
        BLOCKS[block][1](**inplace)
    assert torch.equal(inplace["x"], expected) and expected.dtype == torch.float32


@EACH_BLOCK
def test_errors(block):
    function = BLOCKS[block][1]
    name = function.__name__
    call, inplace = call_of(block)
    with pytest.raises(RuntimeError, match=f"{name}: an argument requires a gradient.*Use {block}, or"):
        function(**inplace | {"weight1": inplace["weight1"].requires_grad_()})
    inplace["weight1"].requires_grad_(False)
    with pytest.raises(ValueError, match=f"{name}: argument 'x'.*memory of its own.*clone"):
        function(**inplace | {"x": inplace["x"][:, :, :1].expand_as(inplace["x"])})
    with pytest.raises(ValueError, match=f"{block}: argument 'keep'"):
        function(**inplace | {"keep": torch.ones(7, dtype=torch.bool)})
    with backend("native"), pytest.raises(RuntimeError, match=f"{name}: the backend 'native'.*no compiled"):
        function(**inplace)
    overload = getattr(torch.ops.ddi, name).default
    strided = call | {"stride": 2, "keep": None, "x_pooled": None}
    strided |= {"shortcut_weight": torch.ones(12, 12, 1, 1)}
    with pytest.raises(ValueError, match=f"{name}: argument 'shortcut_weight'.*stride 1"):
        overload(*(strided[argument.name] for argument in overload._schema.arguments))
