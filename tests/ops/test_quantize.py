"""quantize and quantize_weight: rounding, clamping, scales."""

from __future__ import annotations

import pytest
import torch

from ddi_kernels import quantize, quantize_weight

NAN, INF = torch.nan, torch.inf


def test_typed_in_answers():
    # Halves go to the even neighbour; 1.25 / 0.5 = 2.5 and 1.75 / 0.5 = 3.5.
    x = torch.tensor([0.0, 1.25, 1.75, -1.25, -1.75, 63.4, 64.0, -64.0, -64.3, INF, -INF, NAN])
    expected = [0, 2, 4, -2, -4, 127, 127, -128, -128, 127, -128, 0]
    assert quantize(x, 0.5).dtype == torch.int8
    for dtype in (torch.float32, torch.float64):
        assert quantize(x.to(dtype), 0.5).tolist() == expected


def test_weights_get_one_scale_for_each_output_channel():
    weight = torch.tensor([[[2.54, -1.27]], [[0.0, 0.0]], [[-127.0, 0.5]]])
    quantized, scale = quantize_weight(weight)
    assert quantized.tolist() == [[[127, -64]], [[0, 0]], [[-127, 0]]]
    assert scale.tolist() == pytest.approx([0.02, 1.0, 1.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_weights_are_met_within_half_a_step(dtype):
    torch.manual_seed(0)
    weight = torch.randn(7, 3, 5, 5).to(dtype)
    quantized, scale = quantize_weight(weight)
    assert quantized.shape == weight.shape and scale.dtype == torch.float32
    assert quantized.flatten(1).abs().amax(1).tolist() == [127] * 7
    error = (quantized.double() * scale.double()[:, None, None, None] - weight.double()).abs()
    assert (error.flatten(1).amax(1) <= 0.5001 * scale.double()).all()


def test_tiny_weights_keep_a_normal_scale():
    quantized, scale = quantize_weight(torch.tensor([[1e-44], [1e-30], [0.0]]))
    assert quantized.flatten().tolist() == [0, 127, 0]
    assert (scale >= torch.finfo(torch.float32).tiny).all()


def test_channels_without_weights_and_vectors():
    quantized, scale = quantize_weight(torch.ones(2, 0))
    assert quantized.shape == (2, 0) and scale.tolist() == [1.0, 1.0]
    assert quantize_weight(torch.tensor([2.54, -1.27]))[0].tolist() == [127, -127]


@pytest.mark.parametrize("scale", [0.0, -1.0, NAN, INF, 1e-45, 1e39, True, None, "1"])
def test_wrong_scales_are_named(scale):
    with pytest.raises(ValueError, match="quantize: argument 'scale'"):
        quantize(torch.ones(2), scale)


def test_wrong_tensors_are_named():
    for x in (torch.ones(2, dtype=torch.int32), [1.0]):
        with pytest.raises(ValueError, match="quantize: argument 'x'"):
            quantize(x, 1.0)
    for weight in (torch.ones(2, 3, dtype=torch.int8), torch.ones(()), [1.0]):
        with pytest.raises(ValueError, match="quantize_weight: argument 'weight'"):
            quantize_weight(weight)
