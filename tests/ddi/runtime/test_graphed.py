"""GraphedModel without a GPU: what it copies, checks and refuses; the model itself plays the graph."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

import ddi
from ddi.runtime import graphed


class PlayedGraph:
    """Replays by running the model again on the captured input, into the captured output."""

    def __init__(self) -> None:
        self.owner: ddi.GraphedModel | None = None

    def replay(self) -> None:
        self.owner._output.copy_(self.owner.model(self.owner._input))


@pytest.fixture
def played(monkeypatch):
    @contextmanager
    def capture(graph):
        yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(graphed, "_require_gpu", lambda x: None)
    for name, value in {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda s: nullcontext(),
        "CUDAGraph": PlayedGraph,
        "graph": capture,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)

    def make(model, x):
        fast = ddi.GraphedModel(model, x)
        fast._graph.owner = fast
        return fast

    return make


def network():
    torch.manual_seed(0)
    return ddi.create_model("cifar_resnet20", gates=ddi.DDIConfig(group_size=4)).eval()


def test_other_images_replay(played):
    model = network()
    images = torch.randn(3, 2, 3, 32, 32)
    fast = played(model, images[0])
    answers = [fast(x) for x in images]
    with torch.inference_mode():
        for x, answer in zip(images, answers, strict=True):  # none was overwritten by the next
            torch.testing.assert_close(answer, model(x))
    assert not torch.equal(answers[0], answers[1])


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(1, 3, 32, 32), torch.zeros(2, 3, 32, 32, dtype=torch.float64)],
    ids=["batch", "dtype"],
)
def test_another_form_is_refused(played, wrong):
    fast = played(network(), torch.zeros(2, 3, 32, 32))
    with pytest.raises(
        ValueError, match=r"GraphedModel: x is float\d\d\[.*captured for float32\[2, 3, 32, 32\] on cpu"
    ):
        fast(wrong)


@pytest.mark.parametrize("change", ["in place", "loaded", "moved"])
def test_changed_weights_are_refused(played, change):
    model, x = network(), torch.zeros(2, 3, 32, 32)
    fast = played(model, x)
    fast(x)
    kept = fast._weights
    assert len(kept) == 9 + 3 and all(k is not None for k in kept)  # blocks and stages
    if change == "in place":
        with torch.no_grad():
            next(model.parameters()).add_(1)
    elif change == "loaded":
        model.load_state_dict(model.state_dict())
    else:
        model.double().float()
    with pytest.raises(RuntimeError, match="weights have changed since it was captured"):
        fast(x)
    assert all(a is b for a, b in zip(kept, fast._weights, strict=True))


def test_training_mode_and_cpu_tensors_are_refused():
    model, x = network(), torch.zeros(1, 3, 32, 32)
    with pytest.raises(
        ValueError, match="example_input is float32.* on cpu, expected a tensor on a CUDA device"
    ):
        ddi.GraphedModel(model, x)
    with pytest.raises(ValueError, match=r"training mode, call model.eval\(\)"):
        ddi.GraphedModel(model.train(), x)
