"""active_channels: lists of open channels."""

from __future__ import annotations

import pytest
import torch

from ddi_kernels import active_channels

OP = torch.ops.ddi.active_channels.default


def mask(rows: list[str]) -> torch.Tensor:
    """bool[N, G] of rows such as "1001"."""
    return torch.tensor([[c == "1" for c in row] for row in rows])


@pytest.mark.parametrize(
    ("rows", "channels", "group_size", "index", "count"),
    [
        (["1"], 1, 1, [[0]], [1]),
        (["0"], 1, 1, [[1]], [0]),
        (["0101", "1000"], 4, 1, [[1, 3, 4, 4], [0, 4, 4, 4]], [2, 1]),
        (["101"], 5, 2, [[0, 1, 4, 5, 5]], [3]),
        (["11", "01"], 3, 2, [[0, 1, 2], [2, 3, 3]], [3, 1]),
        (["1"], 3, 16, [[0, 1, 2]], [3]),
    ],
    ids=["one-open", "one-closed", "two-samples", "groups", "short-group", "one-large-group"],
)
def test_typed_in_answers(backend, rows, channels, group_size, index, count):
    got_index, got_count = active_channels(mask(rows), channels, group_size)
    assert got_index.dtype == got_count.dtype == torch.int32
    assert got_index.tolist() == index and got_count.tolist() == count


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("channels", [1, 5, 17, 64, 130])
@pytest.mark.parametrize("group_size", [1, 4, 8, 16])
@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_lists_are_the_open_channels(backend, batch, channels, group_size, rate):
    open = torch.rand(batch, -(-channels // group_size)) < rate
    index, count = active_channels(open, channels, group_size)
    assert index.shape == (batch, channels) and count.shape == (batch,)
    for row, entries, number in zip(open.tolist(), index.tolist(), count.tolist(), strict=True):
        expected = [c for c in range(channels) if row[c // group_size]]
        assert number == len(expected)
        assert entries == expected + [channels] * (channels - number)


def test_channels_default_to_full_groups(backend):
    index, count = active_channels(mask(["01"]), group_size=3)
    assert index.tolist() == [[3, 4, 5, 6, 6, 6]] and count.tolist() == [3]


def test_masks_of_any_strides(backend):
    open = torch.rand(6, 8) < 0.5
    for view in (open[::2, 1::2], open.t(), open[:1].expand(4, 8)):
        index, count = active_channels(view)
        expected = active_channels(view.clone(memory_format=torch.contiguous_format))
        assert torch.equal(index, expected[0]) and torch.equal(count, expected[1])
        assert count.tolist() == view.sum(1).tolist()


def test_opcheck():
    torch.library.opcheck(OP, (mask(["010", "111"]), 5, 2))
    torch.library.opcheck(OP, (torch.ones(0, 3, dtype=torch.bool), 3, 1))


def test_compile_fullgraph(backend):
    compiled = torch.compile(active_channels, fullgraph=True, backend="aot_eager")
    index, count = compiled(mask(["010", "111"]), 5, 2)
    assert index.tolist() == [[2, 3, 5, 5, 5], [0, 1, 2, 3, 4]] and count.tolist() == [2, 5]


WRONG = {
    "open-float": ("open", torch.ones(2, 3), 3, 1),
    "open-1d": ("open", torch.ones(3, dtype=torch.bool), 3, 1),
    "open-width": ("open", torch.ones(2, 3, dtype=torch.bool), 7, 2),
    "channels-0": ("channels", torch.ones(2, 0, dtype=torch.bool), 0, 1),
    "channels-negative": ("channels", torch.ones(2, 3, dtype=torch.bool), -3, 1),
    "group_size-0": ("group_size", torch.ones(2, 3, dtype=torch.bool), 3, 0),
    "group_size-negative": ("group_size", torch.ones(2, 3, dtype=torch.bool), 3, -1),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_errors_name_the_argument(backend, wrong):
    argument, *call = WRONG[wrong]
    with pytest.raises(ValueError, match=f"active_channels: argument '{argument}'"):
        active_channels(*call)
    with pytest.raises((ValueError, RuntimeError), match=f"active_channels.*{argument}"):
        OP(*call)


@pytest.mark.parametrize("open", [None, [[True]], 3], ids=["none", "list", "int"])
def test_masks_must_be_tensors(backend, open):
    with pytest.raises(ValueError, match="active_channels: argument 'open'"):
        active_channels(open, 1)
    with pytest.raises(ValueError, match="active_channels: argument 'open'"):
        active_channels(open)
