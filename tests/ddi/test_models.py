"""Every registered backbone: shapes, MACs, gated equals plain when open, and sparse equals dense when not."""

import pytest
import torch
from gated_models import images, mixed_model

import ddi
import ddi_kernels

SMALL = ["cifar_resnet8", "cifar_resnet14"]


def test_list_models_matches_patterns():
    assert "cifar_resnet38" in ddi.list_models()
    assert ddi.list_models("cifar_resnet3*") == ["cifar_resnet32", "cifar_resnet38"]


@pytest.mark.parametrize("name", ddi.list_models())
def test_depth_and_output(name):
    model = ddi.create_model(name, num_classes=7).eval()
    depth = sum(isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3) for m in model.modules())
    assert depth + 1 == int(name.removeprefix("cifar_resnet"))
    with torch.no_grad():
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_macs_of_resnet20_by_hand():
    stem = 3 * 16 * 9 * 32 * 32
    first = 6 * 16 * 16 * 9 * 32 * 32
    second = (16 * 32 + 5 * 32 * 32) * 9 * 16 * 16 + 16 * 32 * 16 * 16
    third = (32 * 64 + 5 * 64 * 64) * 9 * 8 * 8 + 32 * 64 * 8 * 8
    expected = stem + first + second + third + 64 * 10
    assert ddi.count_macs(ddi.create_model("cifar_resnet20"), torch.randn(2, 3, 32, 32)).dense == expected


@pytest.mark.parametrize("config", [dict(), dict(channels=False), dict(layers=False), dict(group_size=6)])
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
def test_sparse_equals_dense_times_mask(name, config, channels_last):
    model = mixed_model(name, **config)
    x = images(9)
    if channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        sparse = model(x)
        with ddi_kernels.backend("reference"):
            dense = model(x)
    torch.testing.assert_close(sparse, dense, rtol=1e-3, atol=1e-4)
    # The samples took different paths, or the comparison would say little.
    assert ddi.count_macs(model, x).per_sample.unique().numel() > 1


def test_batch_of_nothing_and_of_one():
    model = mixed_model()
    x = images(3)
    with torch.inference_mode():
        assert model(x[:0]).shape == (0, 10)
        whole = model(x)
        torch.testing.assert_close(
            torch.cat([model(x[i : i + 1]) for i in range(3)]), whole, rtol=1e-3, atol=1e-4
        )


def test_unknown_names_and_arguments():
    with pytest.raises(ValueError, match="unknown model 'cifar_resnet37'.*cifar_resnet38"):
        ddi.create_model("cifar_resnet37")
    with pytest.raises(ValueError, match="does not take"):
        ddi.create_model("cifar_resnet8", width=3)
    with pytest.raises(ValueError, match="num_classes"):
        ddi.create_model("cifar_resnet8", num_classes=0)
    with pytest.raises(ValueError, match="expected input"):
        ddi.create_model("cifar_resnet8")(torch.randn(3, 32, 32))
