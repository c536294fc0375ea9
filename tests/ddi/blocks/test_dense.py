"""Gated DenseNets: what is closed stays closed, after the BN-ReLU of every reader, and costs nothing."""

import copy

import pytest
import torch
import torch.nn.functional as F
from gated_models import images, mixed_model, tiny_densenet

import ddi
import ddi_kernels
from ddi import GatedDenseLayer, GatedNorm, GatedTransition

CLOSE = dict(rtol=1e-4, atol=1e-5)


def times_mask(x, open, group_size=1):
    """x times a mask, written out."""
    open = open.repeat_interleave(group_size, 1)[:, : x.shape[1]]
    return x * open[:, :, None, None]


def dense_times_mask(plain, x, decisions):
    """Logits of a plain DenseNet under recorded decisions, by its own layers and products with masks."""
    open = None
    for name, child in plain.features.named_children():
        if name.startswith("denseblock"):
            open = torch.ones(x.shape[:2], dtype=torch.bool)
            for path, module in child.named_children():
                h = times_mask(F.relu(module.norm1(x)), open)
                new = module.conv2(F.relu(module.norm2(module.conv1(h))))
                bits = torch.ones(new.shape[:2], dtype=torch.bool)
                for mask in decisions[f"features_{name}_{path}"].masks:
                    bits = mask.open.repeat_interleave(mask.group_size, 1)[:, : new.shape[1]]
                x, open = torch.cat((x, times_mask(new, bits)), 1), torch.cat((open, bits), 1)
        elif name.startswith("transition"):
            h = times_mask(F.relu(child.norm(x)), open)
            x = F.avg_pool2d(child.conv(h), 2)
        elif name == "norm5":
            x = times_mask(F.relu(child(x)), open)
        else:
            x = child(x)
    return plain.classifier(x.mean((2, 3)))


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_model_equals_dense_times_mask(backend, group_size, channels_last):
    model, x = mixed_model(tiny_densenet, group_size=group_size), images(5)
    if channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    with torch.inference_mode(), ddi_kernels.backend(backend), ddi.record(model) as rec:
        got = model(x)
    decisions = {b.name: b.decision for b in rec.passes[0]}
    shares = [m.open.float().mean() for d in decisions.values() for m in d.masks]
    assert 0.2 < sum(shares) / len(shares) < 0.8
    plain = ddi.revert_(copy.deepcopy(model))
    with torch.no_grad():
        torch.testing.assert_close(got, dense_times_mask(plain, x, decisions), **CLOSE)


def test_batch_of_nothing_and_of_one():
    model, x = mixed_model(tiny_densenet), images(3)
    with torch.inference_mode():
        assert model(x[:0]).shape == (0, 10)
        each = torch.cat([model(x[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(each, model(x), **CLOSE)


def test_training_decides_as_inference_and_reaches_every_gate():
    model, x = mixed_model(tiny_densenet, group_size=2), images(6)
    with torch.inference_mode(), ddi.record(model) as rec:
        inferred = model(x)
    with ddi.record(model) as trained:
        logits = model(x)
    for a, b in zip(rec.passes[0], trained.passes[0], strict=True):
        assert all(
            torch.equal(p.open, q.open) for p, q in zip(a.decision.masks, b.decision.masks, strict=True)
        )
    torch.testing.assert_close(logits, inferred, **CLOSE)
    (logits.pow(2).sum() + ddi.budget_loss(trained, 0.1)).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.ddi_gates.parameters())


def test_the_budget_alone_closes_gates():
    model, x = mixed_model(tiny_densenet).train(), images(6)
    with ddi.record(model) as rec:
        model(x)
    ddi.budget_loss(rec, 0.1).backward()
    for gate in model.ddi_gates.channel.values():
        assert (gate.expand.bias.grad >= 0).all() and gate.expand.bias.grad.any()  # descending closes


def test_the_first_layer_of_a_block_has_no_gate():
    model = mixed_model(tiny_densenet)
    with torch.inference_mode(), ddi.record(model) as rec:
        model(images(2))
    gated = [b.name.removeprefix("features_") for b in rec.passes[0] if b.decision.masks]
    expected = ["denseblock1_denselayer2", "denseblock1_denselayer3"]
    expected += ["denseblock2_denselayer2", "denseblock3_denselayer2"]
    assert gated == expected and sorted(model.ddi_gates.channel) == [f"features_{name}" for name in expected]
    assert [b.name for b in rec.passes[0] if "transition" in b.name] == [
        f"features_transition{i}" for i in (1, 2)
    ]


def test_gates_see_the_means_of_the_concatenation(monkeypatch):
    model, x, seen = mixed_model(tiny_densenet), images(4), []
    decide = model.ddi_gates.decide
    monkeypatch.setattr(
        model.ddi_gates, "decide", lambda site, p, s: (seen.append((site, p)), decide(site, p, s))[1]
    )
    inputs = {}
    for path, module in model.named_modules():
        if isinstance(module, GatedDenseLayer):
            name = path.replace(".", "_")
            module.register_forward_pre_hook(lambda m, a, name=name: inputs.update({name: a[0].mean((2, 3))}))
    with torch.inference_mode():
        model(x)
    assert len(inputs) == 7
    for site, pooled in seen:
        if site.name in inputs:
            torch.testing.assert_close(pooled, inputs[site.name], **CLOSE)
    assert any((pooled == 0).any() for site, pooled in seen if site.interior)  # closed channels count as 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_means_are_never_taken_in_half_precision(dtype):
    model = mixed_model(tiny_densenet).to(dtype)
    seen = []
    decide = model.ddi_gates.decide
    model.ddi_gates.decide = lambda site, x, state: (seen.append(x.dtype), decide(site, x, state))[1]
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            assert model(images(2).to(dtype)).dtype == dtype
    assert len(seen) == 18
    assert set(seen) == {torch.float64 if dtype == torch.float64 else torch.float32}


@pytest.mark.parametrize("change", [lambda m: m.double(), lambda m: m.to("meta"), copy.deepcopy])
def test_the_last_norm_keeps_sharing_its_tensors(change):
    model = change(ddi.create_model("densenet_bc40", gates=ddi.DenseDDIConfig()))
    gated = model.features.norm5
    tensors = gated.state_dict(keep_vars=True)
    ddi.revert_(model)
    plain = model.features.norm5
    assert type(plain) is torch.nn.BatchNorm2d and type(gated) is GatedNorm
    assert {k: id(v) for k, v in plain.state_dict(keep_vars=True).items()} == {
        k: id(v) for k, v in tensors.items()
    }


@pytest.mark.parametrize("group_size", [1, 4])
def test_macs_per_sample_by_hand(group_size):
    model, x = mixed_model(tiny_densenet, group_size=group_size), images(5)
    with torch.inference_mode(), ddi.record(model) as rec:
        model(x)
    decisions = {b.name: b.decision for b in rec.passes[0]}
    totals = []
    for i in range(5):
        total, area, opened, width = 3 * 8 * 9 * 1024, 1024, 8, 8
        for block, depth in enumerate((3, 2, 2), 1):
            for j in range(1, depth + 1):
                name = f"features_denseblock{block}_denselayer{j}"
                masks = decisions[name].masks
                bits = masks[0].open[i].tolist() if masks else [True] * 6
                new = sum(bits[c // group_size] if masks else True for c in range(6))
                total += (opened * 24 + 24 * 9 * new) * area if new else 0
                total += (width * 16 + 16 * len(bits)) if masks else 0  # the gate
                opened, width = opened + new, width + 6
            if block < 3:
                total, opened = total + opened * (width // 2) * area, width // 2
                width, area = width // 2, area // 4
        totals.append(total + width * 10)
    assert len(set(totals)) > 1
    assert rec.macs.tolist() == pytest.approx(totals, rel=1e-6)
    assert ddi.count_macs(model, x).per_sample.tolist() == pytest.approx(totals, rel=1e-6)


def test_filter_fn_leaves_gates_out_but_not_masks():
    model = tiny_densenet().eval()
    ddi.convert_(model, ddi.DenseDDIConfig(), filter_fn=lambda m, path: path.endswith("1.denselayer2"))
    assert list(model.ddi_gates.channel) == ["features_denseblock1_denselayer2"]
    gated = [
        p for p, m in model.named_modules() if isinstance(m, (GatedDenseLayer, GatedTransition, GatedNorm))
    ]
    assert gated == [f"features.denseblock1.denselayer{i}" for i in (1, 2, 3)] + ["features.transition1"]
    with torch.no_grad():
        model.ddi_gates.channel["features_denseblock1_denselayer2"].expand.bias.fill_(-9.0)
        with ddi.record(model) as rec:
            model(images(2))
    last = rec.passes[0][2].decision
    assert last.masks == () and last.in_mask.open.sum(1).tolist() == [14, 14]


def test_errors_say_what_is_wrong():
    model = tiny_densenet()
    model.features.norm5 = torch.nn.Identity()
    with pytest.raises(ValueError, match="features.denseblock3 is followed by norm5.*BatchNorm2d"):
        ddi.convert_(model, ddi.DenseDDIConfig())
    model = mixed_model(tiny_densenet)
    block = model.features.denseblock1
    block.forward = lambda x, visit: block.denselayer3(block.denselayer1(x))
    with pytest.raises(RuntimeError, match="denselayer3': its input has 6 channels.*made 14.*append"):
        model(images(1))
