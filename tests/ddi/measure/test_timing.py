"""Measuring is honest: fresh images at every call, turns pass by pass, right statistics."""

import logging
import sys

import pytest
import torch
from torch import nn

from ddi.measure import onnxruntime as ort
from ddi.measure import timing

POOL = 256


def numbered_pool():
    """float[256, 3, 2, 2], image i filled with i."""
    return torch.arange(POOL).float()[:, None, None, None].expand(POOL, 3, 2, 2)


class Spy:
    """A provider that notes which images each call saw, and moves a fake clock."""

    def __init__(self, clock, log, name, seconds_per_pass):
        self.clock, self.log, self.name = clock, log, name
        self.seconds_per_image = [s / POOL for s in seconds_per_pass]
        self.images = 0

    def __call__(self, x):
        assert torch.is_inference_mode_enabled() and x.is_contiguous()
        self.log.append((self.name, x[:, 0, 0, 0].int().tolist()))
        index = min(self.images // POOL, len(self.seconds_per_image) - 1)
        self.clock.now += self.seconds_per_image[index] * len(x)
        self.images += len(x) if self.clock.timed else 0


class Clock:
    """perf_counter's stand-in; a pass lies between an odd and an even reading."""

    now = 0.0
    timed = False

    def __call__(self):
        self.timed = not self.timed
        return self.now


@pytest.fixture
def clock(monkeypatch):
    fake = Clock()
    monkeypatch.setattr(timing, "perf_counter", fake)
    return fake


@pytest.mark.parametrize("batch", (1, 32))
def test_every_call_takes_new_images_and_a_pass_takes_all(clock, batch):
    log, timed = [], []
    spies = {name: Spy(clock, log, name, [1.0]) for name in "ab"}

    def noting(name):
        def call(x):
            spies[name](x)
            if clock.timed:
                timed.append(log[-1])

        return call

    timing.time_passes({n: noting(n) for n in "ab"}, numbered_pool(), batch, threads=1, passes=3)
    for (name, images), (next_name, next_images) in zip(log, log[1:], strict=False):
        assert name != next_name or not set(images) & set(next_images)
    per_pass = POOL // batch
    assert [name for name, _ in timed[::per_pass]] == ["a", "b"] * 3  # in turns, pass by pass
    for start in range(0, len(timed), per_pass):
        taken = [i for _, images in timed[start : start + per_pass] for i in images]
        assert taken == list(range(POOL))


def test_median_and_quantiles_of_passes_per_image(clock):
    log = []
    seconds = [0.256, 0.512, 0.768, 1.024, 25.6]
    spies = {
        "slow": Spy(clock, log, "slow", [10 * s for s in seconds]),
        "fast": Spy(clock, log, "fast", seconds),
    }
    times = timing.time_passes(spies, numbered_pool(), batch=1, threads=1, passes=5)
    fast = times["fast"]
    assert fast.passes_ms == pytest.approx((1, 2, 3, 4, 100))
    assert fast.median_ms == pytest.approx(3)  # an outlier moves no median
    assert fast.p20_ms == pytest.approx(1.8) and fast.p80_ms == pytest.approx(23.2)
    assert times["slow"].median_ms == pytest.approx(30)


def test_threads_are_set_and_restored_even_after_an_error():
    before, seen = torch.get_num_threads(), []
    timing.time_passes(
        {"a": lambda x: seen.append(torch.get_num_threads())}, numbered_pool(), 64, before + 1, 1
    )
    assert set(seen) == {before + 1} and torch.get_num_threads() == before

    def broken(x):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        timing.time_passes({"a": broken}, numbered_pool(), 64, before + 1, 1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("images", "batch", "threads", "passes", "names"),
    (
        (255, 1, 1, 1, "at least 256"),
        (256, 256, 1, 1, "two batches"),
        (256, 24, 1, 1, "multiple of batch=24"),
        (256, 0, 1, 1, "batch must"),
        (256, 1, 0, 1, "threads must"),
        (256, 1, 1, 0, "passes must"),
    ),
)
def test_bad_arguments_are_named(images, batch, threads, passes, names):
    with pytest.raises(ValueError, match=names):
        timing.time_passes({}, torch.zeros(images, 3, 2, 2), batch, threads, passes)


class Small(nn.Module):
    """Convolution, BatchNorm with statistics, pooling, classes: what the exporter meets."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.bn.running_mean.normal_()
        self.bn.running_var.uniform_(0.5, 2)
        self.fc = nn.Linear(8, 10)
        self.eval()

    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def exported():
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    return ort.export_onnx(Small(), torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("batch", (1, 32))
def test_onnxruntime_equals_torch(exported, batch):
    model = Small()
    run = ort.onnxruntime_forward(exported, model, torch.randn(batch, 3, 8, 8), threads=1)
    x = torch.randn(batch, 3, 8, 8)
    torch.testing.assert_close(torch.from_numpy(run(x)), model(x), atol=1e-5, rtol=1e-5)


def test_onnxruntime_of_another_model_is_refused(exported):
    with pytest.raises(RuntimeError, match="differs from the model's"):
        ort.onnxruntime_forward(exported, Small(seed=1), torch.randn(1, 3, 8, 8), threads=1)


def test_exporting_prints_nothing(exported, capfd, caplog):
    ort.export_onnx(Small(), torch.randn(2, 3, 8, 8))
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_channels_last_forward_leaves_the_model_as_it_is():
    model = Small()
    x = torch.randn(4, 3, 8, 8)
    y = timing.channels_last_forward(model)(x)
    torch.testing.assert_close(y, model(x), atol=1e-5, rtol=1e-5)
    assert model.conv.weight.is_contiguous()


def test_table_has_a_row_for_each_case(exported, monkeypatch):
    monkeypatch.setattr(timing, "export_onnx", lambda model, example: exported)
    pool = torch.randn(POOL, 3, 8, 8)
    rows, missing = timing.time_models(Small(), Small(), pool, (32, 64), (1, 2), passes=1)
    cases = [(r["batch"], r["threads"]) for r in rows if r["provider"] == timing.ORT]
    assert cases == [(32, 1), (32, 2), (64, 1), (64, 2)] and len(rows) == 16 and not missing
    assert all(r["p20_ms"] <= r["median_ms"] <= r["p80_ms"] for r in rows)
    assert all(r["median_ms"] > 0 and r["status"] == "measured" for r in rows)


def test_missing_onnxruntime_is_marked(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    pool = torch.randn(POOL, 3, 4, 4)
    rows, missing = timing.time_models(Small(), Small(), pool, (32,), (1,), passes=1)
    row = next(r for r in rows if r["provider"] == timing.ORT)
    assert row["status"] == "not installed" and row["median_ms"] is None
    assert len(missing) == 1 and "onnxruntime is not installed" in missing[0]
