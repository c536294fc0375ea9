"""The authors' DenseNet gate: reads open channels alone, costs what it says, and learns its statistics."""

import copy

import pytest
import torch
from gated_models import images, mixed_model, randomize_norms, tiny_densenet
from torch.utils.flop_counter import FlopCounterMode

import ddi
import ddi_kernels
from ddi import DenseConvConfig, GatedDenseLayer
from ddi.cli import main
from ddi.train import TrainConfig
from ddi.train.config import Stage
from ddi.train.optimizers import make_optimizers
from ddi.train.trainer import Trainer


def mixed(**config):
    return mixed_model(tiny_densenet, gates=DenseConvConfig, **config)


def masks(rec):
    return [mask for block in rec.passes[0] for mask in block.decision.masks]


def decide(model, x):
    with ddi.record(model) as rec, torch.inference_mode():
        logits = model(x)
    return logits, rec


@pytest.mark.parametrize("training", [False, True])
def test_starts_fully_open(training):
    model = tiny_densenet()
    randomize_norms(model)
    ddi.convert_(model, DenseConvConfig(), example_input=images(2)).train(training)
    with ddi.record(model) as rec, torch.no_grad():
        model(images(6) * 20)
    assert len(masks(rec)) == 4 and all(mask.open.all() for mask in masks(rec))


@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_what_closed_channels_hold_does_not_matter(backend, group_size):
    model, x = mixed(group_size=group_size), images(5)
    with ddi_kernels.backend("reference"):
        expected, plain = decide(model, x)
    shares = [mask.open.float().mean() for mask in masks(plain)]
    assert 0.2 < sum(shares) / len(shares) < 0.8

    def spoil(layer, args, y):
        for mask in (m for b in rec.passes[0] if b.name == layer.site.name for m in b.decision.masks):
            open = mask.per_channel(y.shape[1]).open
            assert not open.all()
            y = torch.where(open[:, :, None, None], y, torch.nan)
        return y

    layers = [module for module in model.modules() if isinstance(module, GatedDenseLayer)]
    handles = [layer.register_forward_hook(spoil) for layer in layers]
    with ddi_kernels.backend(backend), ddi.record(model) as rec, torch.inference_mode():
        got = model(x)
    assert len(handles) == 7 and len(masks(rec)) == 4
    for a, b in zip(masks(rec), masks(plain), strict=True):
        assert torch.equal(a.open, b.open)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_reads_more_than_means():
    gate, x = mixed().ddi_gates.channel["features_denseblock1_denselayer2"], torch.randn(3, 14, 8, 8)
    with torch.no_grad():
        logits, flat = gate(x), gate(x.mean((2, 3), keepdim=True).expand_as(x))
    assert logits.shape == (3, 6) and not torch.allclose(logits, flat, atol=0.1)


@pytest.mark.parametrize("size", [32, 36])  # of 36 the maps are 36, 18 and 9 pixels wide
def test_macs_are_those_counted(size):
    model = ddi.create_model("densenet_bc40", gates=DenseConvConfig(group_size=5)).eval()
    x = torch.randn(1, 3, size, size)
    macs = ddi.count_macs(model, x).gated
    with ddi_kernels.backend("reference"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    assert macs == pytest.approx(counter.get_total_flops() // 2, rel=1e-6)


def test_share_of_the_dense_macs():
    model = ddi.create_model("densenet_bc100", gates=DenseConvConfig())
    expected, width = 0, 24
    for side in (16, 8, 4):  # after the stride
        expected += sum((64 * (width + 12 * i) + 9 * 64 * 12) * side**2 + 12 * 12 for i in range(1, 16))
        width = (width + 12 * 16) // 2
    sizes = {"1": 32, "2": 16, "3": 8}
    gates = 0
    for module in model.modules():
        if hasattr(module, "site") and module.site.interior:
            side = sizes[module.site.name.removeprefix("features_denseblock")[0]]
            gates += model.ddi_gates.macs(module.site, torch.Size((1, module.site.in_channels, side, side)))
    assert gates == expected
    assert gates / ddi.cost.dense_macs(model, (1, 3, 32, 32)) == pytest.approx(0.28, abs=0.005)


def test_gradients_reach_every_parameter_and_earlier_gates():
    model, x = mixed(group_size=2), images(6)
    with ddi.record(model) as rec:
        logits = model.train()(x)
    (logits.pow(2).sum() + ddi.budget_loss(rec, 0.1)).backward(retain_graph=True)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    # A closed channel may open if a later gate wants to see it.
    first, second = masks(rec)[:2]
    gradient = torch.autograd.grad(second.soft.sum(), first.soft)[0]
    assert (~first.open).any() and gradient[~first.open].all()


def test_training_decides_as_inference():
    model, x = mixed(), images(6)
    inferred, rec = decide(model, x)
    with ddi.record(model) as trained:
        logits = model(x)
    for a, b in zip(masks(rec), masks(trained), strict=True):
        assert torch.equal(a.open, b.open) and a.soft is None and b.soft.dtype == torch.float32
    torch.testing.assert_close(logits, inferred, rtol=1e-4, atol=1e-5)


def test_the_gates_stage_teaches_the_norms_of_the_gates_alone(tmp_path):
    config = TrainConfig(
        "densenet_bc40", "digits32", gates={"kind": "dense_conv"}, backbone_epochs=0, batch_size=4
    )
    trainer = Trainer(config, tmp_path)
    before = copy.deepcopy(trainer.model.state_dict())
    stage = Stage("gates", 1)
    optimizers = make_optimizers(config, stage, trainer.model)
    trainer._train_mode(stage)
    split = trainer.data.train(0, 0)
    trainer._step(stage, 0.5, optimizers, split.images[:4], split.labels[:4])
    after = trainer.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.startswith("ddi_gates.") for name in changed)
    statistics = {name for name in before if name.startswith("ddi_gates.") and "running" in name}
    assert len(statistics) == 2 * 15 and statistics <= changed
    trainer._train_mode(Stage("joint", 1))
    assert all(module.training for module in trainer.model.modules())


def test_trained_from_the_shell_saved_and_loaded(tmp_path):
    stages = [f"--{stage}-epochs=0" for stage in ("backbone", "gates", "joint")]
    arguments = ["--model=densenet_bc40", "--dataset=digits32", "--gates=dense_conv", "--group-size=4"]
    assert main(["train", *arguments, *stages, "--out", str(tmp_path)]) == 0
    model, _ = ddi.load_model(tmp_path / "model.safetensors")
    assert model.ddi_gates.config == DenseConvConfig(group_size=4)
    assert all(mask.open.all() for mask in masks(decide(model, images(2))[1]))


def test_cannot_be_frozen(tmp_path):
    says = "no gates of kind 'dense_conv'; it has those of ddi.DenseDDIConfig: convert"
    with pytest.raises(ddi.FreezeError, match=says):
        ddi.freeze(mixed(), images(1), tmp_path / "net.ddi")
    assert not list(tmp_path.iterdir())


def test_bad_values():
    with pytest.raises(ValueError, match="DenseConvConfig: hidden must be a positive int, got 0"):
        DenseConvConfig(hidden=0)
    with pytest.raises(ValueError, match=r"DenseConvConfig: threshold must lie in \(0, 1\), got 1"):
        DenseConvConfig(threshold=1)
    with pytest.raises(ValueError, match="DenseConvConfig: gates a dense_layer.*use ddi.DDIConfig"):
        ddi.create_model("cifar_resnet8", gates=DenseConvConfig())
