"""fold_bn: batch norm as part of the convolution before it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_close

from ddi_kernels import fold_bn


def batch_norm(channels: int, dtype: torch.dtype, affine: bool) -> torch.nn.BatchNorm2d:
    bn = torch.nn.BatchNorm2d(channels, eps=1e-3, affine=affine).to(dtype).eval()
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.5, 2)
    if affine:
        torch.nn.init.normal_(bn.weight)
        torch.nn.init.normal_(bn.bias)
    return bn


def test_typed_in_answer():
    bn = torch.nn.BatchNorm2d(2, eps=0.0)
    bn.running_mean.copy_(torch.tensor([1.0, 2.0]))
    bn.running_var.copy_(torch.tensor([4.0, 0.25]))
    bn.weight.data.copy_(torch.tensor([6.0, 1.0]))
    bn.bias.data.copy_(torch.tensor([0.0, 10.0]))
    weight, bias = fold_bn(torch.ones(2, 1, 1, 1), torch.tensor([3.0, 0.0]), bn)
    assert weight.flatten().tolist() == [3.0, 2.0] and bias.tolist() == [6.0, 6.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("groups", [1, 2])
def test_folded_convolution_equals_both(dtype, affine, has_bias, groups):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6, dtype=dtype)
    weight = torch.randn(6, 4 // groups, 3, 3, dtype=dtype) / 6
    bias = torch.randn(6, dtype=dtype) if has_bias else None
    bn = batch_norm(6, dtype, affine)
    folded = fold_bn(weight, bias, bn)
    assert folded[0].dtype == folded[1].dtype == dtype
    exact = [None if t is None else t.double() for t in (x, weight, bias)]
    with torch.no_grad():
        expected = bn.double()(F.conv2d(*exact, groups=groups))
    assert_close(F.conv2d(x, *(t.detach() for t in folded), groups=groups), expected)


def test_arguments_stay_as_they_were():
    weight, bn = torch.ones(3, 2, 1, 1), batch_norm(3, torch.float32, True)
    state = {k: v.clone() for k, v in bn.state_dict().items()}
    fold_bn(weight, None, bn)
    assert torch.equal(weight, torch.ones(3, 2, 1, 1))
    assert all(torch.equal(v, state[k]) for k, v in bn.state_dict().items())


def test_errors_name_the_argument():
    weight = torch.ones(3, 2, 1, 1)
    with pytest.raises(ValueError, match="fold_bn: argument 'bn'.*running statistics"):
        fold_bn(weight, None, torch.nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(ValueError, match="fold_bn: argument 'bn'.*3 channels.*got 4"):
        fold_bn(weight, None, torch.nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match="fold_bn: argument 'bias'"):
        fold_bn(weight, torch.ones(2), torch.nn.BatchNorm2d(3))
