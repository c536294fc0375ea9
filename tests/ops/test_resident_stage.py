"""resident_stage: against its steps as operators of their own, in float64; packing, errors, torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tolerances import TOLERANCES, assert_close

from ddi_kernels import gate_plan, gated_basic_block, pack_entry, pack_stage, resident_stage

OP = torch.ops.ddi.resident_stage.default


def build(
    channels: int = 16, blocks: int = 3, n: int = 4, size: int = 6, hidden: int = 10, reduced: int = 5,
    group_size: int = 4, layer: bool = True, channel: bool = True, dtype: torch.dtype = torch.float32,
    entered: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Keyword arguments, and "filters": two of Tensor[B, C, C, 3, 3], then the entry block's three."""
    rng = torch.Generator().manual_seed(channels + blocks + hidden)

    def normal(*shape: int, scale: float = 0.7) -> torch.Tensor:
        return torch.randn(shape, generator=rng) * scale

    groups, wide = -(-channels // group_size), channels + hidden
    filters = normal(2, blocks, channels, channels, 3, 3, scale=(9 * channels) ** -0.5).to(dtype)
    lstm = [normal(hidden, channels), normal(hidden), normal(4 * hidden, hidden), normal(4 * hidden, hidden)]
    lstm += [normal(4 * hidden), normal(4 * hidden)]
    heads = [normal(blocks, reduced, wide), normal(blocks, reduced)]
    heads += [normal(blocks, groups, reduced), normal(blocks, groups)]
    half = channels // 2
    shapes = [(channels, half, 3, 3), (channels, channels, 3, 3), (channels, half, 1, 1)] * entered
    entry = [normal(*shape, scale=(9 * shape[1]) ** -0.5).to(dtype) for shape in shapes]
    first = [normal(hidden, half), normal(hidden)] if hidden else []
    if channel:
        first += [normal(reduced, half + hidden), normal(reduced), normal(groups, reduced), normal(groups)]
    image = (half, 2 * size, 2 * size) if entered else (channels, size, size)
    return {
        "x": normal(n, *image, scale=1.0).to(dtype),
        "h": normal(n, hidden),
        "c": normal(n, hidden),
        "weights": pack_stage(*filters),
        "biases": normal(blocks, 2, channels, scale=0.2),
        "lstm": lstm if hidden else [],
        "layer": [normal(blocks, hidden, scale=3.0), normal(blocks)] if layer else [],
        "channel": heads if channel else [],
        "group_size": group_size,
        "threshold": 0.1,
        "entry": [*pack_entry(*entry), normal(2, channels, scale=0.2)] if entered else [],
        "entry_gates": first if entered else [],
        "filters": [*filters, *entry],
    }


def steps(a: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """The same by gate_plan and gated_basic_block."""
    y, h, c = a["x"], a["h"], a["c"]
    pooled, keeps, opens = y.mean((2, 3)).float(), [], []
    if a["entry"]:
        gates = a["entry_gates"]
        lstm = [*gates[:2], *a["lstm"][2:]] if a["lstm"] else []
        _, opened, h, c = gate_plan(
            pooled, h, c, lstm, channel=gates[len(lstm[:2]) :], threshold=a["threshold"]
        )
        keeps.append(torch.ones(len(y), dtype=torch.bool))
        opens.append(opened)
        bias1, bias2 = a["entry"][2].to(y.dtype)
        options = {"mask": opened, "group_size": a["group_size"]} if a["channel"] else {}
        y, pooled = gated_basic_block(
            y, a["filters"][2], bias1, a["filters"][3], bias2, shortcut_weight=a["filters"][4], stride=2,
            pool=True, **options,
        )  # fmt: skip
        pooled = pooled.float()
    for b in range(a["weights"].shape[0]):
        own = {"layer": [w[b : b + 1] for w in a["layer"]], "channel": [w[b] for w in a["channel"]]}
        keep, opened, h, c = gate_plan(pooled, h, c, a["lstm"], **own, threshold=a["threshold"])
        keeps.append(keep)
        opens.append(opened)
        bias1, bias2 = a["biases"][b].to(y.dtype)
        options = {"mask": opened, "group_size": a["group_size"]} if a["channel"] else {}
        y, pooled = gated_basic_block(
            y, a["filters"][0][b], bias1, a["filters"][1][b], bias2, keep=keep, pool=True,
            x_pooled=pooled.to(torch.float64 if y.dtype == torch.float64 else torch.float32), **options,
        )  # fmt: skip
        pooled = pooled.float()
    return y, torch.stack(keeps, 1), torch.stack(opens, 1), h, c


FORMS = {
    "16": {},
    "32": {"channels": 32, "group_size": 8},
    "64": {"channels": 64, "group_size": 12, "blocks": 2},
    "layers": {"channel": False},
    "channels alone": {"layer": False, "hidden": 0},
    "open": {"layer": False, "channel": False, "hidden": 0},
    "one block": {"blocks": 1, "n": 1},
    "entered": {"channels": 32, "entered": True, "group_size": 8},
    "entered, 64": {"channels": 64, "entered": True, "blocks": 2, "size": 4},
    "entered, layers": {"channels": 32, "entered": True, "channel": False},
    "entered, channels alone": {"channels": 32, "entered": True, "layer": False, "hidden": 0},
    "entered alone": {"channels": 32, "entered": True, "blocks": 0},
    "entered, bfloat16": {"channels": 32, "entered": True, "dtype": torch.bfloat16},
    "empty": {"n": 0},
    "double": {"dtype": torch.float64},
    "bfloat16": {"dtype": torch.bfloat16},
}


@pytest.mark.parametrize("form", FORMS)
def test_equals_its_steps(form):
    arguments = build(**FORMS[form])
    expected = steps(arguments)
    found = resident_stage(**{k: v for k, v in arguments.items() if k != "filters"})
    assert_close(found[0], expected[0].double())
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(found[1:3], expected[1:3], strict=True):
        assert a.dtype == torch.bool and torch.equal(a, b)
    atol, rtol = TOLERANCES[arguments["x"].dtype]
    for a, b in zip(found[3:], expected[3:], strict=True):
        torch.testing.assert_close(a, b, atol=max(atol, 1e-5), rtol=max(rtol, 1e-5))
    if form == "16":
        assert 0 < found[1].sum() < found[1].numel() and 0 < found[2].sum() < found[2].numel()


def test_packing_is_its_own_inverse():
    from ddi_kernels.ops.pack_stage import pack, turn_pieces, unpack

    for co, ci, side in ((16, 16, 3), (32, 16, 1), (32, 32, 3), (64, 32, 3), (64, 64, 3)):
        rows = torch.randn(2, 2, 9, co, ci)
        turned = turn_pieces(rows)
        assert not torch.equal(turned, rows) and torch.equal(turn_pieces(turned), rows)
        filters = torch.randn(2, co, ci, side, side)
        assert torch.equal(unpack(pack(filters)), filters)


BAD: dict[str, dict[str, Any]] = {
    "x": {"x": torch.zeros(4, 8, 6, 6)},
    "h": {"h": torch.zeros(3, 10)},
    "c": {"c": torch.zeros(4, 10).double()},
    "weights": {"weights": torch.zeros(3, 2, 9, 16, 8)},
    "biases": {"biases": torch.zeros(3, 16)},
    "lstm": {"lstm": build()["lstm"][:3]},
    "lstm[2]": {"lstm": [*build()["lstm"][:2], torch.zeros(3, 10), *build()["lstm"][3:]]},
    "layer[0]": {"layer": [torch.zeros(2, 10), torch.zeros(2)]},
    "layer": {"lstm": [], "h": torch.zeros(4, 0), "c": torch.zeros(4, 0)},
    "channel[2]": {"channel": [*build()["channel"][:2], torch.zeros(3, 5, 5), torch.zeros(3, 4)]},
    "group_size": {"group_size": 0},
    "entry_gates": {"entry_gates": [torch.zeros(1)]},
}
BAD_ENTRY: dict[str, dict[str, Any]] = {
    "x": {"x": torch.zeros(4, 16, 5, 6)},
    "entry": {"entry": build(32, entered=True)["entry"][:2]},
    "entry[0]": {"entry": [torch.zeros(9, 32, 16), *build(32, entered=True)["entry"][1:]]},
    "entry[2]": {"entry": [*build(32, entered=True)["entry"][:2], torch.zeros(2, 16)]},
    "entry_gates": {"entry_gates": []},
    "entry_gates[2]": {
        "entry_gates": [t if i != 2 else t[:1] for i, t in enumerate(build(32, entered=True)["entry_gates"])]
    },
    "weights": {"weights": torch.zeros(3, 2, 9, 16, 16)},
}


@pytest.mark.parametrize("entered, argument", [(False, a) for a in BAD] + [(True, a) for a in BAD_ENTRY])
def test_errors_name_the_argument(entered, argument):
    arguments = build(32, entered=True) | BAD_ENTRY[argument] if entered else build() | BAD[argument]
    del arguments["filters"]
    with pytest.raises(ValueError) as caught:
        resident_stage(**arguments)
    assert f"resident_stage: argument '{argument}'" in str(caught.value)


def test_other_errors():
    with pytest.raises(ValueError, match="pack_stage: argument 'weight1'.*one of \\(16, 32, 64\\) channels"):
        pack_stage(torch.zeros(1, 8, 8, 3, 3), torch.zeros(1, 8, 8, 3, 3))
    with pytest.raises(ValueError, match="pack_stage: argument 'weight2'"):
        pack_stage(torch.zeros(1, 16, 16, 3, 3), torch.zeros(2, 16, 16, 3, 3))
    wide = torch.zeros(32, 32, 3, 3)
    with pytest.raises(ValueError, match="pack_entry: argument 'weight1'.*32 or 64 output channels"):
        pack_entry(torch.zeros(16, 8, 3, 3), wide, torch.zeros(32, 16, 1, 1))
    with pytest.raises(ValueError, match="pack_entry: argument 'shortcut'"):
        pack_entry(torch.zeros(32, 16, 3, 3), wide, torch.zeros(32, 16, 3, 3))
    arguments = {k: v for k, v in build().items() if k != "filters"}
    with pytest.raises(RuntimeError, match="resident_stage: an argument requires a gradient"):
        resident_stage(**arguments | {"x": arguments["x"].requires_grad_()})


@pytest.mark.parametrize("form", ["16", "open", "empty", "entered"])
def test_opcheck_and_compile(form):
    arguments = {k: v for k, v in build(**FORMS[form]).items() if k != "filters"}
    results = torch.library.opcheck(OP, tuple(arguments.values()))
    assert len(results) == 4 and set(results.values()) == {"SUCCESS"}
    torch._dynamo.reset()
    compiled = torch.compile(resident_stage, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for a, b in zip(compiled(**arguments), resident_stage(**arguments), strict=True):
            torch.testing.assert_close(a, b)
