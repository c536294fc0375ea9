"""Whole gated networks on a GPU: eager and captured, against the dense reference and each other."""

from __future__ import annotations

import pytest
import torch
from on_gpu import needs_gpu

import ddi
from ddi_kernels import backend

pytestmark = needs_gpu
NETWORKS = {
    "cifar_resnet20": (ddi.DDIConfig(group_size=16), 32),
    "resnet18": (ddi.DDIConfig(group_size=32), 64),
    "resnet50": (ddi.DDIConfig(group_size=32), 64),
    "densenet121": (ddi.DenseDDIConfig(group_size=16), 64),
}


def build(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """A network whose gates decide differently from image to image, and images."""
    torch.manual_seed(0)
    gates, size = NETWORKS[name]
    model = ddi.create_model(name, gates=gates).eval().cuda()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.startswith("ddi_gates") and parameter_name.endswith("bias"):
            parameter.data.zero_()
        elif parameter_name.startswith("ddi_gates"):
            parameter.data.normal_()
    images = torch.randn(3, 8, 3, size, size, device="cuda").contiguous()
    return model, images


@pytest.mark.parametrize("name", NETWORKS)
def test_sparse_equals_dense(name):
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), torch.inference_mode():
        model, images = build(name)
        x = images[0].contiguous(memory_format=torch.channels_last)
        with ddi.record(model) as rec:
            sparse = model(x)
        assert rec.mac_ratio > 1.05
        with backend("reference"):
            dense = model(x)
        torch.testing.assert_close(sparse, dense, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_graph_replays_with_other_images(name):
    model, images = build(name)
    fast = ddi.GraphedModel(model, images[0])
    answers = [fast(x) for x in images]
    with torch.inference_mode():
        for x, answer in zip(images, answers, strict=True):
            torch.testing.assert_close(answer, model(x))
    assert not torch.equal(answers[0], answers[1])


def test_stages_run_resident(monkeypatch):
    from ddi.blocks import resident_stage as resident

    model, images = build("cifar_resnet20")
    model.bfloat16()
    x, calls, run = images[0].bfloat16(), [], resident.resident_stage
    reason = resident.resident_stage_unsupported(x[:, :1].expand(-1, 16, -1, -1), 10, 16, True)
    if reason is not None:
        assert "C_cuda" in reason or "compute capability" in reason
        pytest.skip(reason)
    monkeypatch.setattr(resident, "resident_stage", lambda *a: calls.append(1) or run(*a))
    with torch.inference_mode(), ddi.record(model) as found:
        y = model(x)
    assert len(calls) == 3
    monkeypatch.setattr(resident, "resident_stage_unsupported", lambda *a: "block by block")
    with torch.inference_mode(), ddi.record(model) as expected:
        answer = model(x)
    same = torch.ones(len(x), dtype=torch.bool, device="cuda")
    for a, b in zip(found.passes[0], expected.passes[0], strict=True):
        pairs = [(m.open, n.open) for m, n in zip(a.decision.masks, b.decision.masks, strict=True)]
        if a.decision.keep is not None:
            pairs.append((a.decision.keep[:, None], b.decision.keep[:, None]))
        for bits, others in pairs:
            same &= (bits == others).all(1)
    assert same.double().mean() >= 0.5  # random gates, compared in bfloat16
    torch.testing.assert_close(y[same], answer[same], atol=6e-2, rtol=6e-2)
