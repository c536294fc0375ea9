"""Every registered backbone: shapes, MACs, gated equals plain when open, and sparse equals dense when not."""

import re

import pytest
import torch
from gated_models import images, mixed_model, tiny_bottlenecks
from torchvision_keys import densenet_keys, resnet_keys

import ddi
import ddi_kernels
from ddi.cost import dense_macs

SMALL = ["cifar_resnet8", "cifar_resnet14", tiny_bottlenecks]


def test_list_models_matches_patterns():
    assert "cifar_resnet38" in ddi.list_models()
    assert ddi.list_models("cifar_resnet3*") == ["cifar_resnet32", "cifar_resnet38"]


@pytest.mark.parametrize("name", ddi.list_models())
def test_depth_and_output(name):
    model = ddi.create_model(name, num_classes=7).eval()
    layers = [p for p, m in model.named_modules() if isinstance(m, torch.nn.Conv2d) and "downsample" not in p]
    assert len(layers) + 1 == int(re.search(r"\d+$", name)[0])
    with torch.no_grad():
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "keys", "parameters"),
    [
        ("resnet18", resnet_keys((2, 2, 2, 2), bottleneck=False), 11_689_512),
        ("resnet34", resnet_keys((3, 4, 6, 3), bottleneck=False), 21_797_672),
        ("resnet50", resnet_keys((3, 4, 6, 3), bottleneck=True), 25_557_032),
        ("resnet101", resnet_keys((3, 4, 23, 3), bottleneck=True), 44_549_160),
        ("densenet121", densenet_keys((6, 12, 24, 16), 32), 7_978_856),
        ("densenet161", densenet_keys((6, 12, 36, 24), 48), 28_681_000),
        ("densenet169", densenet_keys((6, 12, 32, 32), 32), 14_149_480),
        ("densenet201", densenet_keys((6, 12, 48, 32), 32), 20_013_928),
    ],
)
def test_torchvision_weights_fit(name, keys, parameters):
    with torch.device("meta"):
        model = ddi.create_model(name)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == keys
    assert sum(p.numel() for p in model.parameters()) == parameters  # as torchvision publishes it


@pytest.mark.parametrize("name", ["cifar_resnet8", "resnet18", "densenet_bc40", "densenet121"])
def test_plain_models_can_be_exported(name):
    model, x = ddi.create_model(name).eval(), images(2)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


@pytest.mark.parametrize("name", ["cifar_resnet8", "resnet18", "densenet_bc40"])
def test_plain_models_are_one_graph(name):
    torch._dynamo.reset()
    model, x = ddi.create_model(name).eval(), images(2)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


def test_macs_of_resnet20_by_hand():
    stem = 3 * 16 * 9 * 32 * 32
    first = 6 * 16 * 16 * 9 * 32 * 32
    second = (16 * 32 + 5 * 32 * 32) * 9 * 16 * 16 + 16 * 32 * 16 * 16
    third = (32 * 64 + 5 * 64 * 64) * 9 * 8 * 8 + 32 * 64 * 8 * 8
    expected = stem + first + second + third + 64 * 10
    assert ddi.count_macs(ddi.create_model("cifar_resnet20"), torch.randn(2, 3, 32, 32)).dense == expected


def test_narrower_and_shallower_resnets():
    half = ddi.create_model("cifar_resnet20", width=8, depths=(2, 1, 1))
    assert [len(half.get_submodule(f"layer{i}")) for i in (1, 2, 3)] == [2, 1, 1]
    assert half.conv1.out_channels == 8 and half.fc.in_features == 32
    for bad in ({"width": 0}, {"width": 2.5}, {"depths": ()}, {"depths": (1, 0, 1)}):
        with pytest.raises(ValueError, match="width and depths must be positive ints"):
            ddi.create_model("cifar_resnet20", **bad)


def test_macs_of_resnet18_by_hand():
    expected = 3 * 64 * 49 * 112 * 112 + 4 * 64 * 64 * 9 * 56 * 56 + 512 * 1000
    for c, side in ((128, 28), (256, 14), (512, 7)):
        expected += ((c // 2 * c + 3 * c * c) * 9 + c // 2 * c) * side * side
    assert dense_macs(ddi.create_model("resnet18"), (1, 3, 224, 224)) == expected


def test_macs_of_resnet50_by_hand():
    expected = 3 * 64 * 49 * 112 * 112 + 2048 * 1000
    for c, before, side, blocks in ((64, 64, 56, 3), (128, 256, 28, 4), (256, 512, 14, 6), (512, 1024, 7, 3)):
        stride = 1 if c == 64 else 2
        area = side * side
        expected += before * c * area * stride**2 + (9 * c * c + 4 * c * c + before * 4 * c) * area
        expected += (blocks - 1) * (4 * c * c + 9 * c * c + 4 * c * c) * area
    assert dense_macs(ddi.create_model("resnet50"), (1, 3, 224, 224)) == expected


@pytest.mark.parametrize(
    ("name", "growth", "depths", "stem", "side", "giga"),
    [
        ("densenet_bc40", 12, (6, 6, 6), 3 * 24 * 9 * 32 * 32, 32, 0.072),
        ("densenet_bc100", 12, (16, 16, 16), 3 * 24 * 9 * 32 * 32, 32, 0.288),  # the paper: 0.3
        ("densenet121", 32, (6, 12, 24, 16), 3 * 64 * 49 * 112 * 112, 56, 2.834),
    ],
)
def test_macs_of_densenets_by_hand(name, growth, depths, stem, side, giga):
    expected, channels = stem, 2 * growth
    for depth in depths:
        for _ in range(depth):
            expected += (channels * 4 * growth + 9 * 4 * growth * growth) * side * side
            channels += growth
        if side > 8:  # a transition follows, whose convolution comes before its pooling
            expected += channels * channels // 2 * side * side
            channels, side = channels // 2, side // 2
    model = ddi.create_model(name)
    expected += channels * model.classifier.out_features
    image = 32 if "bc" in name else 224
    assert dense_macs(model, (1, 3, image, image)) == expected
    assert expected / 1e9 == pytest.approx(giga, abs=5e-4)


@pytest.mark.parametrize("config", [dict(), dict(channels=False), dict(layers=False), dict(group_size=6)])
@pytest.mark.parametrize("name", SMALL, ids=lambda n: getattr(n, "__name__", n))
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
def test_sparse_equals_dense_times_mask(name, config, channels_last):
    model = mixed_model(name, **config)
    x = images(32)
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
        ddi.create_model("cifar_resnet8", stages=2)
    with pytest.raises(ValueError, match="num_classes"):
        ddi.create_model("cifar_resnet8", num_classes=0)
    with pytest.raises(ValueError, match="expected input"):
        ddi.create_model("cifar_resnet8")(torch.randn(3, 32, 32))


@pytest.mark.parametrize("name", ["cifar_resnet8", "resnet50"])
def test_blocks_that_begin_as_the_identity(name):
    """Their branches give 0 at first, whatever they read, and train all the same."""
    kwargs = {"num_classes": 4, "zero_init_residual": True}
    model = ddi.create_model(name, **kwargs)
    blocks = [m for m in model.modules() if type(m).__name__ in ("BasicBlock", "Bottleneck")]
    plain = [block for block in blocks if block.downsample is None]
    assert plain
    for block in plain:
        x = torch.rand(2, block.conv1.in_channels, 8, 8)
        assert torch.equal(block(x), x)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    last = "bn2" if name == "cifar_resnet8" else "bn3"
    assert all(getattr(block, last).weight.grad.abs().sum() > 0 for block in blocks)
    assert all((m.weight == 1).all() for m in ddi.create_model(name).modules() if hasattr(m, "running_mean"))
