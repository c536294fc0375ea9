"""record, count_macs and budget_loss: what was decided, what it cost, and a gradient for it."""

import threading

import pytest
import torch
from gated_models import images, mixed_model

import ddi


def by_hand(model, rec, index):
    """MACs of one sample from its bits alone, for a ResNet-8 on 32x32."""
    sizes = {"layer1_0": 32, "layer2_0": 16, "layer3_0": 8}
    total = 3 * 16 * 9 * 32 * 32 + 64 * 10
    for block in rec.passes[0]:
        module = model.get_submodule(block.name.replace("_", "."))
        area = sizes[block.name] ** 2
        width = module.conv1.out_channels
        bits = block.decision.masks[0].open[index]
        size = block.decision.masks[0].group_size
        opened = sum(1 for c in range(width) if bits[c // size])
        macs = opened * 9 * (module.conv1.in_channels + width) * area
        if block.decision.keep is not None and not block.decision.keep[index]:
            macs = 0
        if module.downsample is not None:
            macs += module.conv1.in_channels * width * area
        total += macs + model.ddi_gates.macs(module.site, torch.Size((1, module.conv1.in_channels, 32, 32)))
    return total


@pytest.mark.parametrize("group_size", [1, 5])
def test_macs_per_sample_by_hand(group_size):
    model, x = mixed_model(group_size=group_size), images(6)
    with ddi.record(model) as rec, torch.inference_mode():
        model(x)
    expected = [by_hand(model, rec, i) for i in range(6)]
    assert rec.macs.tolist() == pytest.approx(expected, rel=1e-6)
    assert len(set(expected)) > 1
    assert rec.mac_ratio == pytest.approx(rec.dense_macs / (sum(expected) / 6), rel=1e-5)
    assert ddi.count_macs(model, x).per_sample.tolist() == pytest.approx(expected, rel=1e-6)


def test_gates_read_features_or_means():
    model, x = mixed_model(), images(6)
    passes = []
    for reads in ("features", "means"):
        model.ddi_gates.reads = reads
        with ddi.record(model) as rec, torch.inference_mode():
            model(x)
        passes += rec.passes
    for a, b in zip(*passes, strict=True):
        assert torch.equal(a.decision.masks[0].open, b.decision.masks[0].open)


def test_records_every_forward_and_nothing_outside():
    model = mixed_model()
    with torch.inference_mode():
        with ddi.record(model) as rec:
            model(images(2))
            model(images(3))
        model(images(4))
    assert len(rec.passes) == 2 and rec.macs.shape == (5,)


def test_two_models_and_nested_records_do_not_mix():
    a, b = mixed_model(seed=0), mixed_model(seed=1)
    x = images(2)
    with torch.inference_mode(), ddi.record(a) as ra, ddi.record(b) as rb:
        a(x), b(x), b(x)
    assert (len(ra.passes), len(rb.passes)) == (1, 2)


def test_threads_do_not_meet():
    model, x = mixed_model(), images(8)
    with torch.inference_mode():
        expected = model(x)
    results = {}

    def work(i):
        with torch.inference_mode(), ddi.record(model) as rec:
            for _ in range(5):
                out = model(x)
        results[i] = (out, len(rec.passes))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(n == 5 and torch.allclose(out, expected, atol=1e-5) for out, n in results.values())
    assert len(results) == 4


def test_an_exception_inside_leaves_no_pass_behind():
    model = mixed_model()
    with pytest.raises(ValueError, match="expected input"):
        model(torch.randn(1, 4, 32, 32))
    with pytest.raises(RuntimeError, match="outside its model"):
        model.layer1[0](torch.randn(1, 16, 8, 8))


def test_a_wrapped_model_is_found():
    model = mixed_model()
    wrapper = torch.nn.Sequential(model)
    with torch.inference_mode(), ddi.record(wrapper) as rec:
        wrapper(images(2))
    assert rec.macs.shape == (2,)
    with pytest.raises(ValueError, match="not a gated model.*convert_"):
        with ddi.record(torch.nn.Linear(2, 2)):
            pass


def test_empty_record_says_so():
    with ddi.record(mixed_model()) as rec:
        pass
    with pytest.raises(RuntimeError, match="no forward pass"):
        _ = rec.macs


def test_budget_loss_changes_sign_at_the_target():
    model, x = mixed_model().train(), images(4)
    with ddi.record(model) as rec:
        model(x)
    share = (rec.macs.mean() / rec.dense_macs).item()
    above, below = ddi.budget_loss(rec, share * 0.9), ddi.budget_loss(rec, min(1.0, share * 1.1))
    assert above.item() == pytest.approx(share) and below.item() == pytest.approx(-share)
    above.backward()
    # Descending closes the gates.
    assert all(gate.bias.grad.item() > 0 for gate in model.ddi_gates.layer.values())
    assert all((g.expand.bias.grad >= 0).all() for g in model.ddi_gates.channel.values())
    with pytest.raises(ValueError, match="target"):
        ddi.budget_loss(rec, 0.0)


def test_plain_models_count_as_dense():
    count = ddi.count_macs(ddi.create_model("cifar_resnet8"), images(2))
    assert count.gated == count.dense and count.mac_ratio == 1 and count.blocks == {}
