"""Gated modules: sparse equals dense-times-mask, gates get gradients, prepared weights never go stale."""

import copy

import pytest
import torch
from torch import nn

import ddi
import ddi_kernels
from ddi import Decision, GatedBasicBlock, GatedConv2d, LayerSkip, Mask
from ddi.backbones.resnet import BasicBlock

CLOSE = dict(rtol=1e-4, atol=1e-5)


def block(in_channels=12, channels=12, stride=1):
    torch.manual_seed(3)
    plain = BasicBlock(in_channels, channels, stride)
    with torch.no_grad():
        for norm in (plain.bn1, plain.bn2):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.bias.normal_()
    return GatedBasicBlock(plain).eval()


DECISIONS = {
    "nothing": lambda n, g: Decision(),
    "all skipped": lambda n, g: Decision(keep=torch.zeros(n, dtype=torch.bool)),
    "all kept": lambda n, g: Decision(keep=torch.ones(n, dtype=torch.bool)),
    "some kept": lambda n, g: Decision(keep=torch.arange(n) % 2 == 0),
    "masks": lambda n, g: Decision(masks=(Mask(torch.rand(n, g) > 0.5, group_size=5),)),
    "closed": lambda n, g: Decision(masks=(Mask(torch.zeros(n, g, dtype=torch.bool), group_size=5),)),
    "both": lambda n, g: Decision(
        keep=torch.arange(n) % 2 == 1, masks=(Mask(torch.rand(n, g) > 0.5, group_size=5),)
    ),
    "scales": lambda n, g: Decision(
        keep=torch.arange(n) % 3 != 1,
        keep_scale=torch.rand(n),
        masks=(Mask(torch.rand(n, g) > 0.5, group_size=5, scale=torch.rand(n, g)),),
    ),
}


@pytest.mark.parametrize("shape", [(12, 12, 1), (12, 20, 2)], ids=["identity", "projection"])
@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("name", DECISIONS)
def test_basic_block_sparse_equals_dense(name, n, shape):
    gated = block(*shape)
    torch.manual_seed(0)
    decision = DECISIONS[name](n, (shape[1] + 4) // 5)
    if not gated.site.skippable:
        decision = Decision(keep_scale=decision.keep_scale, masks=decision.masks)
    # Negative inputs too: a skipped sample is its shortcut, not an activated one.
    x = torch.randn(n, shape[0], 7, 6).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        sparse = gated(x, decision)
        with ddi_kernels.backend("reference"):
            dense = gated(x, decision)
    torch.testing.assert_close(sparse, dense, **CLOSE)
    if name == "all skipped" and gated.site.skippable:
        assert torch.equal(sparse, x)


def test_basic_block_open_equals_the_block_it_wraps():
    gated = block()
    plain = gated.__dict__["original"].eval()
    x = torch.randn(2, 12, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(gated(x, Decision()), plain(x), **CLOSE)


def test_basic_block_never_runs_skipped_samples():
    gated = block()
    x = torch.randn(3, 12, 8, 8)
    x[1] = float("nan")
    with torch.inference_mode():
        y = gated(x, Decision(keep=torch.tensor([True, False, True])))
    assert y[1].isnan().all() and y[0].isfinite().all() and y[2].isfinite().all()


def test_block_outside_its_model_says_what_to_do():
    with pytest.raises(RuntimeError, match="outside its model's forward.*decision="):
        block()(torch.randn(1, 12, 8, 8))


@pytest.mark.parametrize("grad_of", ["keep", "mask"])
def test_training_reaches_closed_gates(grad_of):
    gated = block().train()
    keep_soft = torch.full((4,), 0.3, requires_grad=True)
    mask_soft = torch.full((4, 12), 0.3, requires_grad=True)
    keep = torch.zeros(4, dtype=torch.bool) if grad_of == "keep" else torch.ones(4, dtype=torch.bool)
    decision = Decision(
        keep=keep,
        keep_soft=keep_soft,
        masks=(Mask(torch.zeros(4, 12, dtype=torch.bool), soft=mask_soft),),
    )
    gated(torch.randn(4, 12, 8, 8), decision).pow(2).sum().backward()
    grad = (keep_soft if grad_of == "keep" else mask_soft).grad
    assert (grad != 0).float().mean() > 0.9


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.train().eval(),
        lambda m: m.double().float(),
        lambda m: m.load_state_dict({k: v + 0.1 for k, v in m.state_dict().items()}),
        lambda m: m.conv1.load_state_dict({"weight": m.conv1.weight.detach() * 2}),
        lambda m: m.conv2.weight.mul_(3),
        lambda m: m.bn1.running_var.mul_(3),
    ],
    ids=["train", "to", "load", "child load", "in place", "buffer"],
)
def test_prepared_weights_are_never_stale(change):
    gated = block()
    x = torch.randn(2, 12, 6, 6)
    decision = Decision(masks=(Mask(torch.rand(2, 12) > 0.4),))
    with torch.no_grad():
        gated(x, decision)
        change(gated)
        with ddi_kernels.backend("reference"):
            expected = gated(x, decision)
        torch.testing.assert_close(gated(x, decision), expected, **CLOSE)


def test_prepared_weights_stay_out_of_the_state_dict_and_survive_copies():
    gated = block()
    keys = set(gated.state_dict())
    gated.prepared()
    assert set(gated.state_dict()) == keys
    x = torch.randn(1, 12, 6, 6)
    with torch.inference_mode():
        torch.testing.assert_close(copy.deepcopy(gated)(x, Decision()), gated(x, Decision()))


class TestGatedConv2d:
    @pytest.mark.parametrize("bias", [True, False])
    def test_without_masks_is_conv2d(self, bias):
        conv = nn.Conv2d(5, 9, 3, stride=2, padding=1, bias=bias).eval()
        gated = GatedConv2d.from_conv(conv)
        assert set(gated.state_dict()) == set(conv.state_dict())
        x = torch.randn(3, 5, 9, 9)
        with torch.inference_mode():
            torch.testing.assert_close(gated(x), conv(x), **CLOSE)

    def test_masks_equal_multiplication(self):
        conv = GatedConv2d(6, 10, 3, padding=1).eval()
        x = torch.randn(4, 6, 8, 8)
        in_mask, out_mask = Mask(torch.rand(4, 3) > 0.5, 2), Mask(torch.rand(4, 4) > 0.5, 3)
        residual = torch.randn(4, 10, 8, 8)
        with torch.inference_mode():
            y = conv(x, in_mask, out_mask, residual, "relu")
            dense = nn.functional.conv2d(
                x * in_mask.weights(6)[:, :, None, None], conv.weight, conv.bias, padding=1
            )
        dense = torch.relu(dense * out_mask.weights(10)[:, :, None, None] + residual)
        torch.testing.assert_close(y, dense, **CLOSE)

    def test_gradient_reaches_closed_masks_and_weights(self):
        conv = GatedConv2d(4, 6, 3).train()
        soft = torch.full((2, 6), 0.4, requires_grad=True)
        out = conv(torch.randn(2, 4, 5, 5), out_mask=Mask(torch.zeros(2, 6, dtype=torch.bool), soft=soft))
        assert not out.any()
        (out + 1).pow(2).sum().backward()
        assert (soft.grad != 0).all()

    def test_refuses_what_it_cannot_pad(self):
        with pytest.raises(ValueError, match="padding_mode='reflect'"):
            GatedConv2d(3, 3, 3, padding=1, padding_mode="reflect")


class TestLayerSkip:
    def test_runs_only_kept_samples(self):
        seen = []

        class Probe(nn.Module):
            def forward(self, x):
                seen.append(x.shape[0])
                return x + 1

        skip = LayerSkip(Probe()).eval()
        x = torch.randn(4, 2, 3, 3)
        with torch.inference_mode():
            y = skip(x, Decision(keep=torch.tensor([True, False, False, True])))
            assert skip(x, Decision(keep=torch.zeros(4, dtype=torch.bool))) is x
        assert seen == [2]
        torch.testing.assert_close(y, x + torch.tensor([1.0, 0, 0, 1])[:, None, None, None])

    def test_training_equals_inference_and_carries_the_gradient(self):
        skip = LayerSkip(nn.Conv2d(3, 3, 3, padding=1))
        x, keep = torch.randn(4, 3, 5, 5), torch.tensor([True, False, True, False])
        soft = torch.full((4,), 0.5, requires_grad=True)
        trained = skip.train()(x, Decision(keep=keep, keep_soft=soft))
        with torch.inference_mode():
            inferred = skip.eval()(x, Decision(keep=keep))
        torch.testing.assert_close(trained, inferred, **CLOSE)
        trained.sum().backward()
        assert (soft.grad != 0).all()

    def test_refuses_a_block_that_changes_shape(self):
        skip = LayerSkip(nn.Conv2d(3, 4, 1)).eval()
        with pytest.raises(ValueError, match="keep its input's shape"):
            skip(torch.randn(1, 3, 4, 4), Decision(keep=torch.tensor([True])))


def test_prepare_puts_a_model_in_eval_mode_with_packed_weights():
    model = ddi.prepare_(ddi.create_model("cifar_resnet8", gates=ddi.DDIConfig()))
    blocks = [m for m in model.modules() if isinstance(m, GatedBasicBlock)]
    assert not model.training and len(blocks) == 3
    assert all(b.__dict__["_prepared"] is not None for b in blocks)
