"""What `auto` makes of latency tables, and the dense kernel that it then runs."""

from __future__ import annotations

import copy
import importlib
import pickle
from dataclasses import replace

import pytest
import torch
from gated_conv2d_cases import Case, build, case_id, pairwise, single_changes
from latency_cases import ALIGNED, ROW, SHAPE, no_table_of_the_user, table_of  # noqa: F401
from native import require_native
from tolerances import assert_close

from ddi_kernels import backend, gated_conv2d, prepack_conv2d
from ddi_kernels.ops.dense_conv2d import prefers_dense
from ddi_kernels.prices.tables import always_dense, use_table

# Decisions.


def arguments(in_mask=None, out_mask=None, scale=None, residual=None, relu=False, group_size=1, batch=1):
    x = torch.ones(batch, 64, 8, 8).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(64, 64, 3, 3)
    packed = prepack_conv2d(weight)
    masks = (in_mask, out_mask)
    return [x, weight, None, packed, *masks, scale, residual, geometry(group_size=group_size, relu=relu)]


def geometry(stride=(1, 1), padding=(1, 1), dilation=(1, 1), group_size=1, relu=False):
    return (*stride, *padding, *dilation, 1, group_size, group_size, int(relu))


def bits(share, groups=64, batch=1):
    return (torch.arange(groups) < round(share * groups)).expand(batch, groups)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with backend("auto"):
        yield
    torch.set_num_threads(before)


def decides(row, **what):
    with use_table(table_of(row)):
        return prefers_dense(*arguments(**what)) is not None


@pytest.mark.usefixtures("one_thread")
class TestDecisions:
    def test_dense_wins_nowhere(self):
        row = replace(ROW, dense_ms=7.0)
        assert not table_of(row).estimate(SHAPE).dense_can_win
        for masks in ({}, {"in_mask": bits(1)}, {"out_mask": bits(0.9)}):
            assert not decides(row, **masks)

    def test_dense_wins_everywhere(self):
        row = replace(ROW, dense_ms=0.01, in_mask_ms=0.0, out_mask_ms=0.0)
        for masks in ({}, {"in_mask": bits(0.02)}, {"in_mask": bits(0), "out_mask": bits(0)}):
            assert decides(row, **masks)

    @pytest.mark.parametrize("share_in,share_out,dense", [
        (1.0, 1.0, True),    # 4 against 3
        (0.5, 1.0, False),   # 2 against 3.5
        (0.9, 1.0, True),    # 3.6 against 3.5
        (0.8, 1.0, False),   # 3.2 against 3.5
        (1.0, 0.9, True),    # 6 against 3.25
        (1.0, 0.5, False),   # 2 against 3.25
        (0.5, 0.9, False),   # 3 against 3.75
        (0.7, 0.9, True),    # 4.2 against 3.75
    ])  # fmt: skip
    def test_break_even(self, share_in, share_out, dense):
        assert decides(ROW, in_mask=bits(share_in), out_mask=bits(share_out)) == dense

    def test_without_masks_the_plain_times_count(self):
        assert not decides(ROW)
        assert decides(replace(ROW, plain_ms=3.2))
        assert not decides(replace(ROW, plain_ms=3.05))  # within the margin

    def test_one_mask_only(self):
        assert decides(ROW, in_mask=bits(0.95)) and not decides(ROW, in_mask=bits(0.7))
        assert decides(ROW, out_mask=bits(0.9)) and not decides(ROW, out_mask=bits(0.5))

    def test_groups_have_their_own_times(self):
        row = replace(ROW, aligned=replace(ALIGNED, ms=[[0.5, 3.5, 5.0]]))
        assert decides(row, out_mask=bits(0.5, 4), group_size=16)
        assert not decides(row, out_mask=bits(0.5, 8), group_size=8)

    def test_what_follows_the_convolution_counts_against_dense(self):
        row = replace(ROW, pass_ms=0.4)
        masks = {"in_mask": bits(1), "out_mask": bits(1)}
        assert decides(row, **masks) and decides(row, **masks, relu=True)
        extras = {"scale": torch.ones(1, 64), "residual": torch.ones(1, 64, 8, 8)}
        assert not decides(row, **masks, **extras, relu=True)

    def test_every_call_is_judged_by_its_own_masks(self):
        with use_table(table_of(ROW)):
            shares = (1.0, 0.5, 1.0, 0.8, 1.0)
            found = [prefers_dense(*arguments(in_mask=bits(s), out_mask=bits(1))) for s in shares]
        assert found == [(False, False), None, (False, False), None, (False, False)]

    def test_it_says_which_side_has_closed_channels(self):
        with always_dense():
            for share_in, share_out in ((1, 1), (0.5, 1), (1, 0.5), (0, 0)):
                args = arguments(in_mask=bits(share_in), out_mask=bits(share_out))
                assert prefers_dense(*args) == (share_in < 1, share_out < 1)
            assert prefers_dense(*arguments()) == (False, False)

    def test_another_table_is_another_choice(self):
        assert decides(replace(ROW, plain_ms=9.0))
        assert not decides(ROW)
        with use_table(table_of()):
            assert not prefers_dense(*arguments())

    def test_only_where_the_table_speaks_of_the_call(self):
        with always_dense():
            args = arguments()
            assert prefers_dense(*args)
            x, weight, packed = args[0], args[1], args[3]
            for place, value in (
                (0, x.contiguous()),  # NCHW
                (0, x[:0]),
                (0, torch.nn.Parameter(x)),
                (3, None),  # not prepacked
                (8, geometry(dilation=(2, 2))),
                (8, geometry(stride=(2, 1))),
                (8, geometry(padding=(-1, -1))),
                (8, geometry()[1:]),
                (8, "wrong"),
                (1, "wrong"),
                (1, weight[:, :3]),
                (4, "wrong"),
                (4, torch.ones(1, 64, device="meta")),
            ):
                assert not prefers_dense(*args[:place], value, *args[place + 1 :]), place
            double = [x.double(), weight.double(), None, packed.double(), *args[4:]]
            assert not prefers_dense(*double)

    @pytest.mark.parametrize("name", ["native", "reference", "triton"])
    def test_a_backend_chosen_by_name_never_asks_the_table(self, name):
        args = arguments()
        with always_dense(), backend(name):
            assert not prefers_dense(*args)


# The dense kernel, as gated_conv2d reaches it.


@pytest.fixture
def dense_calls(monkeypatch):
    """Takes dense wherever it may be taken, and notes each time it is."""
    require_native()
    module = importlib.import_module("ddi_kernels.ops.gated_conv2d")
    calls = []
    real = module.dense_conv2d
    monkeypatch.setattr(module, "dense_conv2d", lambda *args: calls.append(1) or real(*args))
    with always_dense():
        yield calls


def packable(changes):
    """A case of the grid as a call that has a dense kernel, but for dilation and layout."""
    return changes | {"packed": True, "dtype": torch.float32}


CASES = [c for c in [*single_changes(), *pairwise(1, without="groups")] if "groups" not in c]


@pytest.mark.parametrize("changes", CASES, ids=case_id)
def test_dense_equals_dense_times_mask(changes, dense_calls):
    torch.manual_seed(0)
    case = Case(**packable(changes))
    arguments, expected = build(case)
    y = gated_conv2d(**arguments)
    assert_close(y, expected)
    with backend("native"):
        other = gated_conv2d(**arguments)
    for layout in (torch.channels_last, torch.contiguous_format):
        assert y.is_contiguous(memory_format=layout) == other.is_contiguous(memory_format=layout)
    x, weight = arguments["x"], arguments["weight"]
    plain = case.dilation == 1 and len(set(weight.shape[2:])) == 1 and x.numel() > 0
    plain = plain and (isinstance(case.stride, int) or len(set(case.stride)) == 1)
    assert bool(dense_calls) == (plain and x.is_contiguous(memory_format=torch.channels_last))


def test_nan_in_open_channels_stays(dense_calls):
    x, weight, _, packed, *_ = arguments()
    x[0, 3] = torch.nan
    y = gated_conv2d(x, weight, packed=packed, padding=1, in_mask=bits(1), activation="relu")
    assert y.isnan().all() and dense_calls
    y = gated_conv2d(x, weight, packed=packed, padding=1, in_mask=bits(1) & (torch.arange(64) != 3))
    assert y.isfinite().all() and len(dense_calls) == 2


def test_operands_are_not_written(dense_calls):
    x, weight, _, packed, *_ = arguments()
    residual, masks = torch.randn(1, 64, 8, 8), {"in_mask": bits(0.5), "out_mask": bits(0.5)}
    operands = [x, weight, packed, residual, *masks.values()]
    before = [t.clone() for t in operands]
    gated_conv2d(x, weight, packed=packed, padding=1, residual=residual, activation="relu", **masks)
    assert dense_calls and all(torch.equal(a, b) for a, b in zip(operands, before, strict=True))


def test_errors_are_worded_as_ever(dense_calls):
    x, weight, _, packed, *_ = arguments()
    with pytest.raises(ValueError, match="gated_conv2d: argument 'in_mask': expected torch.bool of shape"):
        gated_conv2d(x, weight, packed=packed, in_mask=torch.ones(1, 63, dtype=torch.bool))
    with pytest.raises(ValueError, match="gated_conv2d: argument 'stride'"):
        gated_conv2d(x, weight, packed=packed, stride=0)
    assert not dense_calls


def test_gradients_and_compiled_code_go_their_own_way(dense_calls):
    x, weight, _, packed, *_ = arguments()
    compiled = torch.compile(
        lambda x: gated_conv2d(x, weight, packed=packed), backend="eager", fullgraph=True
    )
    assert compiled(x).unique().tolist() == [64 * 9.0] and not dense_calls
    gated_conv2d(x, weight.requires_grad_(), packed=packed, padding=1).sum().backward()
    assert weight.grad is not None and not dense_calls


def test_dense_weights_belong_to_their_packed_weights(dense_calls):
    x, weight, _, packed, *_ = arguments()
    first = gated_conv2d(x, weight, packed=packed, padding=1)
    weight = weight * 2
    second = gated_conv2d(x, weight, packed=prepack_conv2d(weight), padding=1)
    assert torch.equal(second, 2 * first) and len(dense_calls) == 2


def test_packed_weights_can_be_copied_and_pickled_after_a_dense_call(dense_calls):
    x, weight, _, packed, *_ = arguments()
    expected = gated_conv2d(x, weight, packed=packed, padding=1)
    for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(other, packed)
        assert torch.equal(gated_conv2d(x, weight, packed=other, padding=1), expected)


def test_many_shapes_keep_few_dense_weights(dense_calls):
    _, weight, _, packed, *_ = arguments()
    for side in range(3, 15):
        x = torch.ones(1, 64, side, side).contiguous(memory_format=torch.channels_last)
        assert gated_conv2d(x, weight, packed=packed).unique().tolist() == [64 * 9.0]
    assert len(dense_calls) == 12
    assert 0 < sum(len(kept) for kept in packed.__dict__.values()) <= 8
