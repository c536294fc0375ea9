"""The gated layer, transition and last norm of a DenseNet, each on its own."""

import pytest
import torch
import torch.nn.functional as F
from gated_models import randomize_norms

import ddi_kernels
from ddi import Decision, GatedDenseLayer, GatedNorm, GatedTransition, Mask
from ddi.blocks.dense_block import DenseLayer, Transition

CLOSE = dict(rtol=1e-4, atol=1e-5)
NAN = float("nan")


def layer(in_channels=11, growth=7):
    torch.manual_seed(5)
    plain = DenseLayer(in_channels, growth)
    randomize_norms(plain)
    return GatedDenseLayer(plain).eval()


def transition(in_channels=11):
    torch.manual_seed(5)
    plain = Transition(in_channels)
    randomize_norms(plain)
    return GatedTransition(plain).eval()


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("masked", ["nothing", "inputs", "outputs", "both", "grouped inputs"])
def test_layer_sparse_equals_dense(masked, n):
    gated = layer()
    torch.manual_seed(1)
    in_mask = Mask(torch.rand(n, 4) > 0.5, 3) if "grouped" in masked else Mask(torch.rand(n, 11) > 0.5)
    out_mask = Mask(torch.rand(n, 2) > 0.5, 4)
    decision = Decision(
        masks=(out_mask,) if masked in ("outputs", "both") else (),
        in_mask=in_mask if masked not in ("nothing", "outputs") else None,
    )
    x = torch.randn(n, 11, 6, 5).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        sparse = gated(x, decision)
        with ddi_kernels.backend("reference"):
            dense = gated(x, decision)
        if masked == "nothing":
            torch.testing.assert_close(sparse, gated.__dict__["_ddi_original"](x), **CLOSE)
        if decision.in_mask is not None:  # closed channels are never read
            closed = ~decision.in_mask.per_channel(11).open
            torch.testing.assert_close(gated(x.masked_fill(closed[:, :, None, None], NAN), decision), sparse)
    torch.testing.assert_close(sparse, dense, **CLOSE)


def test_a_sample_without_an_open_channel_skips_the_layer():
    gated, x = layer(), torch.randn(2, 11, 4, 4)
    x[1] = NAN
    decision = Decision(masks=(Mask(torch.tensor([[True] * 7, [False] * 7])),))
    with torch.inference_mode():
        y = gated(x, decision)
    assert y[0].isfinite().all() and y[0].any() and not y[1].any()


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.double().float(),
        lambda m: m.load_state_dict({k: v + 0.1 for k, v in m.state_dict().items()}),
        lambda m: [module.weight.mul_(3) for module in m.children()],
    ],
    ids=["to", "load", "in place"],
)
@pytest.mark.parametrize("make", [layer, transition])
def test_prepared_weights_are_never_stale(make, change):
    gated, x = make(), torch.randn(2, 11, 6, 6)
    decision = Decision(in_mask=Mask(torch.rand(2, 11) > 0.4))
    with torch.no_grad():
        gated(x, decision)
        change(gated)
        with ddi_kernels.backend("reference"):
            expected = gated(x, decision)
        torch.testing.assert_close(gated(x, decision), expected, **CLOSE)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_the_mask_acts_behind_the_norm_by_hand(backend):
    plain = DenseLayer(2, 1)  # four channels in the middle, maps of one pixel
    with torch.no_grad():
        for norm in (plain.norm1, plain.norm2):
            norm.running_var.fill_(1.0 - norm.eps)
        plain.norm1.weight.copy_(torch.tensor([2.0, 1.0]))
        plain.norm1.bias.copy_(torch.tensor([1.0, 5.0]))
        plain.conv1.weight.copy_(torch.tensor([[1.0, 1], [1, 0], [0, 1], [-1, 0]])[:, :, None, None])
        plain.norm2.bias.copy_(torch.tensor([0.0, -1, 0, 4]))
        plain.conv2.weight.zero_()[0, :, 1, 1] = torch.tensor([1.0, 10, 100, 1000])
    gated = GatedDenseLayer(plain).eval()
    # h = relu(2 * 1 + 1), and of the second channel relu(0 + 5) = 5, unless it is closed: 0.
    # Middle: relu(3 + 0), relu(3 - 1), relu(0), relu(-3 + 4); with it open the first is 8, the third 5.
    x = torch.tensor([1.0, 0.0])[None, :, None, None].expand(2, -1, 1, 1)
    decision = Decision(in_mask=Mask(torch.tensor([[True, False], [True, True]])))
    with torch.inference_mode(), ddi_kernels.backend(backend):
        assert gated(x, decision).flatten().tolist() == [3 + 20 + 0 + 1000, 8 + 20 + 500 + 1000]


def test_transition_and_norm_leave_closed_channels_out():
    gated, norm = transition(), GatedNorm(torch.nn.BatchNorm2d(11).eval())
    randomize_norms(norm)
    open = torch.rand(3, 11) > 0.5
    decision, x = Decision(in_mask=Mask(open)), torch.randn(3, 11, 6, 6)
    with torch.inference_mode():
        y = gated(x, decision)
        h = F.relu(gated.norm(x)) * open[:, :, None, None]
        torch.testing.assert_close(y, F.avg_pool2d(gated.conv(h), 2), **CLOSE)
        with ddi_kernels.backend("reference"):
            torch.testing.assert_close(gated(x, decision), y, **CLOSE)
        torch.testing.assert_close(gated(x.masked_fill(~open[:, :, None, None], NAN), decision), y)
        expected = F.relu(norm.__dict__["_ddi_original"](x)) * open[:, :, None, None]
        torch.testing.assert_close(F.relu(norm(x, decision)), expected)


def test_decisions_that_cannot_be_meant_are_refused():
    scaled = Mask(torch.ones(1, 7, dtype=torch.bool), scale=torch.ones(1, 7))
    for decision in (Decision(masks=(scaled,)), Decision(keep=torch.tensor([True]))):
        with pytest.raises(ValueError, match="keep or a scale.*closing all its new channels"):
            layer()(torch.randn(1, 11, 4, 4), decision)
    with pytest.raises(ValueError, match="GatedTransition: got masks or keep, expected.*in_mask alone"):
        transition()(torch.randn(1, 11, 4, 4), Decision(keep=torch.tensor([True])))
    for gated in (layer(), transition(), GatedNorm(torch.nn.BatchNorm2d(11))):
        with pytest.raises(RuntimeError, match="outside its model's forward"):
            gated(torch.randn(1, 11, 4, 4))
