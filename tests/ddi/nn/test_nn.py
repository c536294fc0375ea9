"""Gated modules: sparse equals dense-times-mask, gates get gradients, prepared weights never go stale."""

import copy

import pytest
import torch
from gated_models import randomize_norms
from torch import nn

import ddi
import ddi_kernels
from ddi import Decision, GatedBasicBlock, GatedBottleneck, GatedConv2d, LayerSkip, Mask
from ddi.backbones.resnet import BasicBlock, Bottleneck

CLOSE = dict(rtol=1e-4, atol=1e-5)


def block(in_channels=12, channels=12, stride=1):
    torch.manual_seed(3)
    plain = BasicBlock(in_channels, channels, stride)
    randomize_norms(plain)
    return GatedBasicBlock(plain).eval()


def bottleneck(in_channels=28, channels=7, stride=1):
    torch.manual_seed(3)
    plain = Bottleneck(in_channels, channels, stride)
    randomize_norms(plain)
    return GatedBottleneck(plain).eval()


def random_masks(n, interior, scaled=False):
    """A mask of half open groups for each interior tensor, each with a group size of its own."""
    masks = []
    for size, channels in zip((5, 3), interior, strict=False):
        open = torch.rand(n, -(-channels // size)) > 0.5
        masks.append(Mask(open, size, scale=torch.rand(open.shape) if scaled else None))
    return tuple(masks)


DECISIONS = {
    "nothing": lambda n, c: Decision(),
    "all skipped": lambda n, c: Decision(keep=torch.zeros(n, dtype=torch.bool)),
    "all kept": lambda n, c: Decision(keep=torch.ones(n, dtype=torch.bool)),
    "some kept": lambda n, c: Decision(keep=torch.arange(n) % 2 == 0),
    "masks": lambda n, c: Decision(masks=random_masks(n, c)),
    "closed": lambda n, c: Decision(masks=tuple(Mask(torch.zeros(n, w, dtype=torch.bool)) for w in c)),
    "both": lambda n, c: Decision(keep=torch.arange(n) % 2 == 1, masks=random_masks(n, c)),
    "scales": lambda n, c: Decision(
        keep=torch.arange(n) % 3 != 1, keep_scale=torch.rand(n), masks=random_masks(n, c, scaled=True)
    ),
}


def grouped_bottleneck():
    """As in a ResNeXt: the 3x3 convolution in four groups of two channels."""
    torch.manual_seed(3)
    plain = Bottleneck(32, 8)
    plain.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
    randomize_norms(plain)
    return GatedBottleneck(plain).eval()


BLOCKS = {
    "basic": lambda: block(),
    "basic projection": lambda: block(12, 20, 2),
    "bottleneck": lambda: bottleneck(),
    "bottleneck projection": lambda: bottleneck(12, 7, 2),
}


def other_stride(make):
    """The block with its stride where its operator does not have it, so that it runs in parts."""
    gated = make()
    for conv in (gated.conv1, gated.conv2):
        conv.stride = (1, 1) if conv.stride == gated.downsample[0].stride else gated.downsample[0].stride
    return gated


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("decision", DECISIONS)
@pytest.mark.parametrize("kind", [*BLOCKS, "basic in parts", "bottleneck in parts", "grouped"])
def test_sparse_equals_dense(kind, decision, n):
    if kind == "grouped":
        gated = grouped_bottleneck()
        assert not gated.prepared().fused
    elif kind.endswith("in parts"):
        gated = other_stride(BLOCKS[kind.replace("in parts", "projection")])
        assert not gated.prepared().fused
    else:
        gated = BLOCKS[kind]()
        assert gated.prepared().fused
    torch.manual_seed(0)
    decision = DECISIONS[decision](n, gated.site.interior)
    if not gated.site.skippable:
        decision = Decision(keep_scale=decision.keep_scale, masks=decision.masks)
    # Negative inputs too: a skipped sample is its shortcut, not an activated one.
    x = torch.randn(n, gated.site.in_channels, 7, 6).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        sparse = gated(x, decision)
        with ddi_kernels.backend("reference"):
            dense = gated(x, decision)
    torch.testing.assert_close(sparse, dense, **CLOSE)
    if decision.keep is not None and not decision.keep.any():
        assert torch.equal(sparse, x)


@pytest.mark.parametrize("make", BLOCKS.values(), ids=BLOCKS)
def test_an_open_block_equals_the_block_it_wraps(make):
    gated = make()
    plain = gated.__dict__["_ddi_original"].eval()
    x = torch.randn(2, gated.site.in_channels, 8, 8)
    assert list(gated.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(gated(x, Decision()), plain(x), **CLOSE)


def test_macs_of_a_bottleneck_are_the_products_of_what_is_open():
    gated = bottleneck(12, 8, 2)  # conv1 on 6x6, then 3x3
    assert gated.site.interior == (8, 8) and not gated.site.skippable
    masks = (
        Mask(torch.tensor([[True, False, True], [True, True, True]]), group_size=3),  # 5 and 8 open
        Mask(torch.tensor([[True, False], [False, False]]), group_size=4),  # 4 and none
    )
    macs = gated.macs(torch.Size((2, 12, 6, 6)), Decision(masks=masks))
    projection = 12 * 32 * 9
    by_hand = [12 * 5 * 36 + 5 * 4 * 9 * 9 + 4 * 32 * 9 + projection, 12 * 8 * 36 + projection]
    assert macs.tolist() == by_hand
    assert gated.dense_macs(torch.Size((2, 12, 6, 6))) == 12 * 8 * 36 + (8 * 8 * 9 + 8 * 32) * 9 + projection


def test_macs_of_a_grouped_convolution_count_its_own_pairs():
    gated = grouped_bottleneck()
    # Open in the four groups of two channels: 2, 1, 0, 0 inputs and 1, 0, 2, 2 outputs.
    inputs = Mask(torch.tensor([[True, True, True, False] + [False] * 4]), scale=torch.full((1, 8), 0.5))
    outputs = Mask(torch.tensor([[True, False, False, False] + [True] * 4]))
    macs = gated.macs(torch.Size((1, 32, 3, 3)), Decision(masks=(inputs, outputs)))
    assert macs.tolist() == [(32 * 3 + (2 * 1 + 1 * 0) * 9 + 5 * 32) * 9]


def test_decisions_for_other_blocks_are_refused():
    mask, x = Mask(torch.ones(1, 7, dtype=torch.bool)), torch.randn(1, 28, 4, 4)
    with pytest.raises(ValueError, match=r"GatedBottleneck: got 1 masks.*\(2\)"):
        bottleneck()(x, Decision(masks=(mask,)))
    with pytest.raises(ValueError, match="got in_mask, expected None"):
        bottleneck()(x, Decision(in_mask=mask))


@pytest.mark.parametrize("make", [block, bottleneck])
def test_skipped_samples_are_never_run(make):
    gated = make()
    x = torch.randn(3, gated.site.in_channels, 8, 8)
    x[1] = float("nan")
    with torch.inference_mode():
        y = gated(x, Decision(keep=torch.tensor([True, False, True])))
    assert y[1].isnan().all() and y[0].isfinite().all() and y[2].isfinite().all()


def test_block_outside_its_model_says_what_to_do():
    with pytest.raises(RuntimeError, match="outside its model's forward.*decision="):
        block()(torch.randn(1, 12, 8, 8))


@pytest.mark.parametrize("make", [block, bottleneck])
@pytest.mark.parametrize("grad_of", ["keep", "mask"])
def test_training_reaches_closed_gates(grad_of, make):
    gated = make().train()
    width = gated.site.interior[0]
    keep_soft = torch.full((4,), 0.3, requires_grad=True)
    softs = [torch.full((4, width), 0.3, requires_grad=True) for _ in gated.site.interior]
    keep = torch.zeros(4, dtype=torch.bool) if grad_of == "keep" else torch.ones(4, dtype=torch.bool)
    # The last mask alone is closed: behind a closed one no gradient is left for those before it.
    opens = [torch.ones(4, width, dtype=torch.bool) for _ in softs[1:]] + [
        torch.zeros(4, width, dtype=torch.bool)
    ]
    masks = tuple(Mask(open, soft=soft) for open, soft in zip(opens, softs, strict=True))
    decision = Decision(keep=keep, keep_soft=keep_soft, masks=masks)
    gated(torch.randn(4, gated.site.in_channels, 8, 8), decision).pow(2).sum().backward()
    grad = (keep_soft if grad_of == "keep" else softs[-1]).grad
    assert (grad != 0).float().mean() > 0.8


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
