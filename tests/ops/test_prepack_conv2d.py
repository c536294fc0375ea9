"""prepack_conv2d: panels of 16 output channels."""

from __future__ import annotations

import pytest
import torch

import ddi_kernels
from ddi_kernels import prepack_conv2d

OP = torch.ops.ddi.prepack_conv2d.default


def test_typed_in_answer(backend):
    # Two output channels and two inputs of a 1x2 kernel: o, i, tap are the three digits.
    weight = torch.tensor([[[[111.0, 112.0]], [[121.0, 122.0]]],
                           [[[211.0, 212.0]], [[221.0, 222.0]]]])  # fmt: skip
    rows = [[111.0, 211.0], [121.0, 221.0], [112.0, 212.0], [122.0, 222.0]]
    expected = [v for row in rows for v in row + [0.0] * 14]
    assert prepack_conv2d(weight).tolist() == expected


# How many input channels lie together, and the dtype that they are packed in.
PACKED = {
    torch.float32: (1, torch.float32),
    torch.float64: (1, torch.float64),
    torch.float16: (1, torch.float32),
    torch.bfloat16: (2, torch.bfloat16),
    torch.int8: (4, torch.int8),
}


def test_typed_in_answer_of_pairs(backend):
    # One output channel and three inputs of a 1x2 kernel: input and tap are the two digits.
    weight = torch.tensor([[[[11.0, 12.0]], [[21.0, 22.0]], [[31.0, 32.0]]]])
    rows = [[11.0, 21.0], [31.0, 0.0], [12.0, 22.0], [32.0, 0.0]]
    expected = [v for row in rows for v in row + [0.0] * 30]
    assert prepack_conv2d(weight.bfloat16()).tolist() == expected


@pytest.mark.parametrize("dtype", PACKED, ids=str)
@pytest.mark.parametrize("co", [1, 15, 16, 17, 33, 64])
@pytest.mark.parametrize("ci", [1, 3, 17])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 5)], ids=str)
def test_panels_hold_the_weights_and_zeros(backend, dtype, co, ci, kernel):
    weight = (50 * torch.randn(co, ci, *kernel)).clamp(-128, 127).to(dtype)
    packed = prepack_conv2d(weight, winograd=False)
    together, packed_dtype = PACKED[dtype]
    assert packed.dtype == packed_dtype and packed.dim() == 1
    panels = packed.view(-1, *kernel, -(-ci // together), 16, together)
    assert panels.shape[0] == -(-co // 16)
    channels = panels.permute(0, 4, 3, 5, 1, 2).flatten(2, 3).flatten(0, 1)
    assert torch.equal(channels[:co, :ci], weight.to(packed_dtype))
    assert not channels[co:].any() and not channels[:, ci:].any()


def test_typed_in_answer_of_transforms(backend):
    # A kernel whose transform is the outer product of (1, 2, 4) at the points of each axis.
    taps = torch.tensor([1.0, 2.0, 4.0])
    packed = prepack_conv2d(torch.outer(taps, taps)[None, None])
    assert packed.shape == ((9 + 36 + 16) * 16,)
    rows = packed.view(-1, 16)
    assert not rows[:, 1:].any()
    # Points 0, 5/8, -5/8, 3/2, -3/2 and infinity; a and b are the squares of two of them.
    a, b = 25 / 64, 9 / 4
    at = [1 / (a * b), *((1 + s * 2 * a**0.5 + 4 * a) / (2 * a * (a - b)) for s in (1, -1)),
          *((1 + s * 2 * b**0.5 + 4 * b) / (2 * b * (b - a)) for s in (1, -1)), 4.0]  # fmt: skip
    four = torch.tensor(at, dtype=torch.float64)
    assert torch.allclose(rows[9:45, 0].double(), torch.outer(four, four).flatten(), rtol=1e-6)
    two = torch.tensor([1.0, 3.5, 1.5, 4.0])
    assert rows[45:, 0].tolist() == torch.outer(two, two).flatten().tolist()


def test_typed_in_answer_of_phases(backend):
    # Taps of input c at row y and column x are products of what c, y and x stand for.
    taps, channels = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), torch.tensor([1.0, 10.0])
    packed = prepack_conv2d(channels[None, :, None, None] * torch.outer(taps, taps * 100))
    assert packed.shape == ((2 * 49 + 2 * 36 * 4) * 16,)
    rows = packed.view(-1, 16)
    assert not rows[:, 1:].any()
    a, b = 25 / 64, 9 / 4

    def at_points(kernel: list[float]) -> list[float]:
        def scaled(square: float, other: float) -> list[float]:
            signed = (square**0.5, -(square**0.5))
            values = [sum(tap * p**i for i, tap in enumerate(kernel)) for p in signed]
            return [v / (2 * square * (square - other)) for v in values]

        return [kernel[0] / (a * b), *scaled(a, b), *scaled(b, a), kernel[3]]

    phases = [at_points([1.0, 3.0, 5.0, 7.0]), at_points([2.0, 4.0, 6.0, 0.0])]
    expected = torch.tensor([
        100 * phases[dy][i] * phases[dx][j] * channel
        for i in range(6) for j in range(6) for dx in (0, 1) for channel in (1.0, 10.0) for dy in (0, 1)
    ])  # fmt: skip
    torch.testing.assert_close(rows[98:, 0], expected, rtol=1e-6, atol=0)


def with_reference(weight):
    """What the backend in force packs, and what the reference does."""
    packed = prepack_conv2d(weight)
    with ddi_kernels.backend("reference"):
        return packed, prepack_conv2d(weight)


@pytest.mark.parametrize(("co", "ci"), [(1, 1), (64, 3), (17, 32), (128, 32), (129, 3), (64, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_transforms_of_phases_equal_the_reference(backend, dtype, co, ci):
    packed, expected = with_reference(torch.randn(co, ci, 7, 7).to(dtype))
    taps = 49 + (144 if co <= 128 and ci <= 32 else 0)
    assert packed.shape == expected.shape == (-(-co // 16) * ci * 16 * taps,)
    torch.testing.assert_close(packed, expected, rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize("co", [1, 16, 17, 128, 129, 256, 257])
@pytest.mark.parametrize("ci", [1, 17, 128, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_transforms_equal_the_reference(backend, dtype, co, ci):
    packed, expected = with_reference(torch.randn(co, ci, 3, 3).to(dtype))
    panels, wide = -(-co // 16) * ci * 16, max(co, ci)
    taps = 9 + (36 if wide <= 128 else 0) + (16 if wide <= 256 else 0)
    assert packed.shape == expected.shape == (panels * taps,)
    assert torch.equal(packed[: panels * 9], expected[: panels * 9])
    torch.testing.assert_close(packed, expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize(
    ("weight", "groups"),
    [
        (torch.randn(16, 8, 3, 3).double(), 1), (torch.randn(16, 8, 3, 3).bfloat16(), 1),
        (torch.randn(16, 8, 1, 3), 1), (torch.randn(16, 8, 5, 5), 1), (torch.randn(16, 8, 3, 3), 2),
        (torch.randn(16, 1, 3, 3), 16), (torch.randn(257, 8, 3, 3), 1),
    ],
)  # fmt: skip
def test_others_have_no_transform(backend, weight, groups):
    assert torch.equal(prepack_conv2d(weight, groups), prepack_conv2d(weight, groups, winograd=False))


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("group_co", [3, 16, 17])
def test_every_convolution_group_has_panels_of_its_own(backend, groups, group_co):
    weight = torch.randn(groups * group_co, 5, 3, 2)
    packed = prepack_conv2d(weight, groups)
    assert torch.equal(packed, torch.cat([prepack_conv2d(w) for w in weight.chunk(groups)]))


@pytest.mark.parametrize("channels", [2, 16, 33])
def test_depthwise_weights_are_rows_of_taps(backend, channels):
    weight = torch.randn(channels, 1, 3, 2)
    rows = prepack_conv2d(weight, channels).view(6, -1)
    assert rows.shape[1] == -(-channels // 16) * 16
    assert torch.equal(rows[:, :channels], weight.flatten(1).T) and not rows[:, channels:].any()


def test_weights_of_any_strides(backend):
    weight = torch.randn(5, 4, 3, 3)
    packed = prepack_conv2d(weight)
    wide = torch.randn(10, 4, 6, 3)
    wide[::2, :, ::2] = weight
    for same in (weight.contiguous(memory_format=torch.channels_last), wide[::2, :, ::2]):
        assert not same.is_contiguous() and torch.equal(prepack_conv2d(same), packed)


def test_result_is_a_copy_without_gradient(backend):
    weight = torch.randn(16, 1, 1, 1, requires_grad=True)
    packed = prepack_conv2d(weight)
    assert not packed.requires_grad
    packed.fill_(7)
    assert not (weight == 7).any()


def test_opcheck():
    torch.library.opcheck(OP, (torch.randn(5, 3, 3, 3), 1, True))
    torch.library.opcheck(OP, (torch.randn(16, 1, 1, 1).double(), 1, True))
    torch.library.opcheck(OP, (torch.randn(5, 3, 3, 3).half(), 1, True))
    torch.library.opcheck(OP, (torch.randn(5, 3, 3, 3).bfloat16(), 1, True))
    torch.library.opcheck(OP, (torch.randn(6, 4, 3, 3), 2, True))
    torch.library.opcheck(OP, (torch.randn(6, 1, 3, 3), 6, True))


def test_compile_fullgraph(backend):
    weight = torch.randn(5, 3, 3, 3)
    compiled = torch.compile(prepack_conv2d, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(weight), prepack_conv2d(weight))


WRONG = {
    "weight-3d": ("weight", torch.ones(4, 3, 3), 1),
    "weight-integer": ("weight", torch.ones(4, 3, 3, 3, dtype=torch.int32), 1),
    "weight-float8": ("weight", torch.ones(4, 3, 3, 3).to(torch.float8_e5m2), 1),
    "weight-empty": ("weight", torch.ones(4, 0, 3, 3), 1),
    "groups-0": ("groups", torch.ones(4, 3, 3, 3), 0),
    "groups-3": ("groups", torch.ones(4, 3, 3, 3), 3),
    "groups-2-half": ("groups", torch.ones(4, 3, 3, 3).half(), 2),
    "groups-2-int8": ("groups", torch.ones(4, 3, 3, 3, dtype=torch.int8), 2),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_errors_name_the_argument(backend, wrong):
    argument, *call = WRONG[wrong]
    with pytest.raises(ValueError, match=f"prepack_conv2d: argument '{argument}'"):
        prepack_conv2d(*call)
    with pytest.raises((ValueError, RuntimeError), match=f"prepack_conv2d.*{argument}"):
        OP(*call, True)


@pytest.mark.parametrize("winograd", [None, 4])
def test_winograd_is_a_bool(backend, winograd):
    with pytest.raises(ValueError, match="prepack_conv2d: argument 'winograd'"):
        prepack_conv2d(torch.ones(4, 3, 3, 3), winograd=winograd)
