"""Branch classifiers: where they sit, what they see and cost, and that they change nothing else."""

import pytest
import torch
import torch.nn.functional as F
from gated_models import images, mixed_model, randomize_norms, tiny_densenet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import ddi
from ddi import ExitHead
from ddi.backbones.base import spread
from ddi.backbones.densenet import DenseNet
from ddi.backbones.resnet import BasicBlock, Bottleneck, ResNet
from ddi.cost import dense_macs

FAMILIES = {
    "basic": lambda exits=None: ResNet(BasicBlock, (2, 1, 1), 8, "cifar", 10, exits),
    "bottleneck": lambda exits=None: ResNet(Bottleneck, (2, 2), 8, "cifar", 10, exits),
    "dense": lambda exits=None: DenseNet(6, (3, 2, 2), 8, "cifar", 10, exits),
}


class AllExits(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model.forward_exits(x)


def test_head_on_a_large_map_layer_by_layer():
    head = ExitHead(6, 5, side=32, width=4).eval()
    randomize_norms(head)
    x = torch.randn(2, 6, 32, 32)
    with torch.no_grad():
        h = F.avg_pool2d(x, 4)
        assert h.shape[2:] == (8, 8)
        h = F.max_pool2d(F.relu(head.bn1(F.conv2d(h, head.conv1.weight, padding=2))), 3, 2, 1)
        h = head.bn2(F.conv2d(h, head.conv2.weight, padding=1))
        torch.testing.assert_close(head(x), head.fc(h.mean((2, 3))))
    assert head.conv1.weight.shape == (4, 6, 5, 5) and head.conv2.weight.shape == (4, 4, 3, 3)


def test_head_on_a_small_map_is_pool_and_linear():
    head = ExitHead(6, 5, side=8, width=4)
    assert [name for name, _ in head.named_parameters()] == ["fc.weight", "fc.bias"]
    x = torch.randn(2, 6, 8, 8)
    torch.testing.assert_close(head(x), F.linear(x.flatten(2).mean(2), head.fc.weight, head.fc.bias))


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_exits_add_only_their_own_keys(make):
    keys = set(make().state_dict())
    assert not any(key.startswith("exits") for key in keys)
    added = set(make("default").state_dict()) - keys
    assert added and all(key.startswith("exits.") for key in added)
    assert keys <= set(make("default").state_dict())


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_every_exit_classifies_the_features_at_its_place(make, training):
    model = make((1, 3)).eval()
    randomize_norms(model)
    kinds = (BasicBlock, Bottleneck, type(tiny_densenet().features.denseblock1.denselayer1))
    blocks = [m for m in model.modules() if isinstance(m, kinds)]
    seen = []
    for block in blocks:
        dense = isinstance(model, DenseNet)
        block.register_forward_hook(
            lambda m, a, y, dense=dense: seen.append(torch.cat((a[0], y), 1) if dense else y)
        )
    x = images(4)
    with torch.no_grad():
        model.train(training)
        first, second, main = model.forward_exits(x)
        features = [seen[0], seen[2]]
        seen.clear()
        for head, expected, h in zip(model.exits, (first, second), features, strict=True):
            torch.testing.assert_close(head(h), expected)
        torch.testing.assert_close(model(x), main)
        assert len(seen) == len(blocks)
    assert main.shape == first.shape == (4, 10)


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_without_exits_there_are_only_the_main_logits(make):
    model = make().eval()
    x = images(2)
    with torch.no_grad():
        (logits,) = model.forward_exits(x)
        assert torch.equal(logits, model(x))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gated_networks_have_exits_too(family, training):
    model = mixed_model(lambda: FAMILIES[family]((1, 3))).train(training)
    x = images(5)
    with ddi.record(model) as rec, torch.set_grad_enabled(training):
        logits = model.forward_exits(x)
    assert [tuple(part.shape) for part in logits] == [(5, 10)] * 3
    assert len(rec.passes) == 1 and rec.macs.unique().numel() > 1
    if training:
        sum(part.pow(2).sum() for part in logits).backward()
        assert all(p.grad is not None and p.grad.any() for p in model.exits.parameters())
    else:
        with torch.no_grad():
            torch.testing.assert_close(logits[-1], model(x))
    keys = set(model.state_dict())
    ddi.revert_(model)
    assert keys - set(model.state_dict()) == {k for k in keys if k.startswith("ddi_gates.")}


def test_heads_in_a_dense_block_see_closed_channels_as_zeros():
    model = mixed_model(lambda: FAMILIES["dense"]((3,)), group_size=2)
    seen = []
    model.exits[0].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.inference_mode(), ddi.record(model) as rec:
        model.forward_exits(images(4))
    second, third = (b.decision.masks[0].per_channel(6).open for b in rec.passes[0][1:3])
    zero = (seen[0] == 0).all(3).all(2)
    assert zero[:, 14:20].logical_or(second).all() and zero[:, 20:26].logical_or(third).all()
    assert not zero[:, :14].any() and zero.any()


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_macs_are_those_of_the_network_without_heads(make):
    x = images(2)
    plain, branched = make(), make("default")
    assert ddi.count_macs(branched, x).dense == ddi.count_macs(plain, x).dense


@pytest.mark.parametrize(
    ("name", "share"),
    [("cifar_resnet8", 0.07), ("cifar_resnet38", 0.011), ("densenet_bc100", 0.034), ("resnet50", 0.02)]
    + [("densenet121", 0.02)],
)
def test_a_head_costs_a_small_share(name, share):
    image = 32 if "cifar" in name or "bc" in name else 224
    with torch.device("meta"):
        model = ddi.create_model(name, exits="default").eval()
        x = torch.empty(1, 3, image, image)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.forward_exits(x)
    counts = {path: sum(ops.values()) // 2 for path, ops in counter.get_flop_counts().items()}
    total = dense_macs(model, x.shape)
    heads = [counts[f"{type(model).__name__}.exits.{i}"] for i in range(len(model.exits))]
    assert len(heads) >= 2 and all(0 < macs <= share * total for macs in heads)
    assert counts["Global"] == total + sum(heads)


def test_default_places():
    assert ddi.create_model("densenet_bc40", exits="default").exit_positions == (3, 8, 11, 14, 17)
    with torch.device("meta"):
        model = ddi.create_model("densenet121", exits="default")
        assert model.exit_positions == (3, 6 + 3, 6 + 9, 18 + 6, 18 + 18, 42 + 4, 42 + 12)
        assert len(ddi.create_model("cifar_resnet110", exits="default").exits) == 6
        assert ddi.create_model("cifar_resnet8", exits="default").exit_positions == (1, 2)
        assert ddi.create_model("cifar_resnet20", exits=[2, 8]).exit_positions == (2, 8)


def test_spread_cuts_the_macs_evenly():
    assert spread([10, 20, 30, 40], 3) == [1, 2, 3]
    assert spread([10, 20, 30, 40], 1) == [2]
    assert spread([30, 40, 50, 60, 90], 2) == [1, 4]
    assert spread([97, 98, 99, 100], 2) == [1, 2]  # places left for those that follow
    assert spread([1, 2, 3, 100], 2) == [2, 3]


@pytest.mark.parametrize("exits", [0, 3, True, "all", (), (0, 1), (2, 1), (1, 1), (1, 3), (1.0,)])
def test_impossible_exits_are_refused(exits):
    with pytest.raises(ValueError, match=r"exits: got .*1\.\.2"):
        ddi.create_model("cifar_resnet8", exits=exits)


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_all_exits_can_be_exported(make):
    model, x = AllExits(make("default")).eval(), images(2)
    with torch.no_grad():
        exported = torch.export.export(model, (x,)).module()(x)
        for got, expected in zip(exported, model(x), strict=True):
            torch.testing.assert_close(got, expected)


def test_checkpoints_keep_exits(tmp_path):
    model = ddi.create_model("cifar_resnet8", exits=(1, 2)).eval()
    ddi.save_model(tmp_path / "net", model, "cifar_resnet8", exits=(1, 2))
    loaded, _ = ddi.load_model(tmp_path / "net")
    x = images(2)
    with torch.no_grad():
        for got, expected in zip(loaded.forward_exits(x), model.forward_exits(x), strict=True):
            assert torch.equal(got, expected)
