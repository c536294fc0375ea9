"""gather_samples: rows of a batch."""

from __future__ import annotations

import pytest
import torch

from ddi_kernels import gather_samples

OP = torch.ops.ddi.gather_samples.default
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool,
          torch.complex64]  # fmt: skip


def batch(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randint(0, 100, shape).to(dtype)


def test_typed_in_answer(backend):
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert gather_samples(x, torch.tensor([2, 0, 2])).tolist() == [[5.0, 6.0], [1.0, 2.0], [5, 6]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 2, 4), (5, 0, 2), (5, 2, 3, 1, 2)], ids=str)
@pytest.mark.parametrize("index", [[], [4], [3, 0, 0, 2]], ids=str)
def test_rows_are_those_named(backend, dtype, shape, index):
    x = batch(dtype, *shape)
    rows = gather_samples(x, torch.tensor(index, dtype=torch.int64))
    assert rows.dtype == dtype and rows.shape == (len(index), *shape[1:])
    for row, i in zip(rows, index, strict=True):
        assert torch.equal(row, x[i])


def test_layouts(backend):
    x, index = torch.randn(4, 6, 5, 3), torch.tensor([3, 1])
    last = x.contiguous(memory_format=torch.channels_last)
    views = [last, x.transpose(2, 3), x[:, ::2], last[:, :, 1:], x[:1].expand(4, 6, 5, 3)]
    for view in [x, *views]:
        rows = gather_samples(view, index)
        assert torch.equal(rows, torch.stack([view[3], view[1]]))
        assert rows.is_contiguous() or view is last
    assert gather_samples(last, index).is_contiguous(memory_format=torch.channels_last)


def test_index_of_any_stride(backend):
    x = torch.randn(6, 2)
    assert torch.equal(gather_samples(x, torch.tensor([5, 0, 3, 0])[::2]), x[[5, 3]])


def test_result_is_a_copy(backend):
    x = torch.zeros(3, 2)
    gather_samples(x, torch.tensor([0, 1, 2])).fill_(1)
    assert not x.any()


@pytest.mark.parametrize("call", [gather_samples, OP], ids=["public", "operator"])
def test_gradient_sums_over_repeated_rows(call):
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([2, 0, 2])
    call(x, index).sum().backward()
    assert x.grad.tolist() == [[1.0, 1.0], [0.0, 0.0], [2.0, 2.0]]
    assert torch.autograd.gradcheck(lambda t: call(t, index), x)
    assert torch.autograd.gradgradcheck(lambda t: call(t, index), x)


def test_opcheck():
    x = torch.randn(3, 2, 4, 4, requires_grad=True)
    torch.library.opcheck(OP, (x, torch.tensor([2, 0])))
    last = x.detach().contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(OP, (last, torch.tensor([1])))


def test_compile_fullgraph(backend):
    compiled = torch.compile(gather_samples, fullgraph=True, backend="aot_eager")
    x, index = torch.randn(4, 3), torch.tensor([3, 1])
    assert torch.equal(compiled(x, index), x[[3, 1]])


X = torch.ones(3, 2)
WRONG = {
    "x-0d": ("x", torch.ones(()), torch.tensor([0])),
    "index-2d": ("index", X, torch.tensor([[0]])),
    "index-int32": ("index", X, torch.tensor([0], dtype=torch.int32)),
    "index-float": ("index", X, torch.tensor([0.0])),
    "index-bool": ("index", X, torch.tensor([True, False, True])),
    "index-too-large": ("index", X, torch.tensor([0, 3])),
    "index-negative": ("index", X, torch.tensor([-1])),
    "index-of-empty-batch": ("index", torch.ones(0, 2), torch.tensor([0])),
    "index-device": ("index", X, torch.zeros(1, dtype=torch.int64, device="meta")),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_errors_name_the_argument(backend, wrong):
    argument, *call = WRONG[wrong]
    with pytest.raises(ValueError, match=f"gather_samples: argument '{argument}'"):
        gather_samples(*call)
    with pytest.raises((ValueError, RuntimeError), match=f"gather_samples.*{argument}"):
        OP(*call)
