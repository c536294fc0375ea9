"""scatter_samples and scatter_samples_: rows put back into their batch."""

from __future__ import annotations

import pytest
import torch

from ddi_kernels import gather_samples, scatter_samples, scatter_samples_

OP = torch.ops.ddi.scatter_samples.default
OP_INPLACE = torch.ops.ddi.scatter_samples_.default
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool,
          torch.complex64]  # fmt: skip


def copying(x, rows, index):
    before = x.clone()
    y = scatter_samples(x, rows, index)
    assert torch.equal(x, before)
    return y


def in_place(x, rows, index):
    y = x.clone(memory_format=torch.preserve_format)
    assert scatter_samples_(y, rows, index) is y
    return y


@pytest.fixture(params=[copying, in_place], ids=["copying", "in_place"])
def scatter(request):
    return request.param


def test_typed_in_answer(backend, scatter):
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    y = scatter(x, torch.tensor([[7.0, 7.0], [8.0, 8.0]]), torch.tensor([2, 0]))
    assert y.tolist() == [[8.0, 8.0], [3.0, 4.0], [7.0, 7.0]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 2, 4), (5, 0, 2), (5, 2, 3, 1, 2)], ids=str)
@pytest.mark.parametrize("index", [[], [4], [3, 0, 2]], ids=str)
def test_named_rows_change_and_others_stay(backend, scatter, dtype, shape, index):
    x = torch.randint(0, 100, shape).to(dtype)
    rows = torch.randint(0, 100, (len(index), *shape[1:])).to(dtype)
    y = scatter(x, rows, torch.tensor(index, dtype=torch.int64))
    expected = [rows[index.index(i)] if i in index else x[i] for i in range(5)]
    assert torch.equal(y, torch.stack(expected))


def test_layouts(backend, scatter):
    x, index = torch.randn(4, 6, 5, 3), torch.tensor([3, 1])
    last = x.contiguous(memory_format=torch.channels_last)
    rows = torch.randn(2, 6, 5, 3)
    for view in (x, last, x.transpose(2, 3), x[:, ::2], last[:, :, 1:]):
        new = rows.resize_(2, *view.shape[1:]).normal_()
        for values in (
            new,
            new.contiguous(memory_format=torch.channels_last),
            new[:1].expand(2, -1, -1, -1),
        ):
            y = scatter(view, values, index)
            expected = torch.stack([view[0], values[1], view[2], values[0]])
            assert torch.equal(y, expected)
            assert y.is_contiguous(memory_format=torch.channels_last) or view is not last


def test_copying_form_accepts_an_expanded_batch(backend):
    y = scatter_samples(torch.zeros(1, 2).expand(3, 2), torch.ones(1, 2), torch.tensor([1]))
    assert y.tolist() == [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]


def test_in_place_form_writes_through_a_view(backend):
    base = torch.zeros(4, 3)
    scatter_samples_(base[::2, 1:], torch.ones(1, 2), torch.tensor([1]))
    assert base.tolist() == [[0.0] * 3, [0.0] * 3, [0.0, 1.0, 1.0], [0.0] * 3]


def test_undoes_gather(backend, scatter):
    x, index = torch.randn(5, 2, 3, 3), torch.tensor([4, 0, 1])
    assert torch.equal(scatter(x, gather_samples(x, index), index), x)


@pytest.mark.parametrize("call", [scatter_samples, OP], ids=["public", "operator"])
def test_gradients_go_where_the_values_came_from(call):
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([2, 0])
    (call(x, rows, index) * torch.tensor([[1.0], [2.0], [3.0]])).sum().backward()
    assert x.grad.tolist() == [[0.0, 0.0], [2.0, 2.0], [0.0, 0.0]]
    assert rows.grad.tolist() == [[3.0, 3.0], [1.0, 1.0]]
    assert torch.autograd.gradcheck(lambda *t: call(*t, index), (x, rows))
    assert torch.autograd.gradgradcheck(lambda *t: call(*t, index), (x, rows))


def test_in_place_form_refuses_a_gradient(backend):
    x, rows = torch.zeros(3, 2), torch.ones(1, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match="scatter_samples_: .*gradient.*Use scatter_samples"):
        scatter_samples_(x, rows, torch.tensor([0]))
    with torch.no_grad():
        assert scatter_samples_(x, rows, torch.tensor([0])).tolist()[0] == [1.0, 1.0]


def test_opcheck():
    x = torch.randn(3, 2, 4, 4, requires_grad=True)
    rows = torch.randn(2, 2, 4, 4, requires_grad=True)
    index = torch.tensor([2, 0])
    torch.library.opcheck(OP, (x, rows, index))
    last = x.detach().contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(OP, (last, rows.detach(), index))
    torch.library.opcheck(OP_INPLACE, (last, rows.detach(), index))


def in_place_of_a_copy(x, rows, index):
    return scatter_samples_(x.clone(), rows, index)


@pytest.mark.parametrize("call", [scatter_samples, in_place_of_a_copy])
def test_compile_fullgraph(backend, call):
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    x, rows, index = torch.zeros(3, 2), torch.ones(1, 2), torch.tensor([1])
    assert compiled(x, rows, index).tolist() == [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]


X, ROWS, INDEX = torch.zeros(3, 2), torch.ones(2, 2), torch.tensor([0, 2])
WRONG = {
    "x-0d": ("x", torch.ones(()), ROWS, INDEX),
    "index-2d": ("index", X, ROWS, INDEX[None]),
    "index-int32": ("index", X, ROWS, INDEX.int()),
    "index-too-large": ("index", X, ROWS, torch.tensor([0, 3])),
    "index-negative": ("index", X, ROWS, torch.tensor([0, -1])),
    "index-device": ("index", X, ROWS, INDEX.to("meta")),
    "rows-count": ("rows", X, torch.ones(3, 2), INDEX),
    "rows-shape": ("rows", X, torch.ones(2, 1), INDEX),
    "rows-dims": ("rows", X, torch.ones(2), INDEX),
    "rows-dtype": ("rows", X, ROWS.double(), INDEX),
    "rows-device": ("rows", X, ROWS.to("meta"), INDEX),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(
    ("public", "op"),
    [(scatter_samples, OP), (scatter_samples_, OP_INPLACE)],
    ids=["copying", "in_place"],
)
def test_errors_name_the_argument(backend, wrong, public, op):
    argument, *call = WRONG[wrong]
    with pytest.raises(ValueError, match=f"{public.__name__}: argument '{argument}'"):
        public(*call)
    with pytest.raises((ValueError, RuntimeError), match=f"{public.__name__}.*{argument}"):
        op(*call)
    assert not X.any()


def test_in_place_form_refuses_rows_that_share_memory(backend):
    with pytest.raises((ValueError, RuntimeError), match="scatter_samples_.*x"):
        scatter_samples_(torch.zeros(1, 2).expand(3, 2), torch.ones(1, 2), torch.tensor([1]))
