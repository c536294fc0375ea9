"""One small run of the whole demo, through the command; its parts on worked examples."""

import json

import matplotlib.image
import pytest
import torch
from gated_models import mixed_model

import ddi
import ddi_kernels
from ddi.cli import main
from ddi.data import get_dataset
from ddi.report import demo

FIGURES = ("macs_histogram", "accuracy_vs_macs", "samples", "open_by_class")


def save_pair(folder):
    """A gated cifar_resnet8 and its own backbone without gates; returns their paths."""
    model = mixed_model()
    ddi.save_model(folder / "gated.safetensors", model, "cifar_resnet8", {"model": "cifar_resnet8"})
    ddi.save_model(folder / "dense.safetensors", ddi.revert_(model), "cifar_resnet8")
    return str(folder / "dense.safetensors"), str(folder / "gated.safetensors")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(report, folder, printed text) of `ddi demo` on 256 images."""
    folder = tmp_path_factory.mktemp("demo")
    dense, gated = save_pair(folder)
    out, copy = folder / "out", folder / "copy.json"
    command = ["demo", "--out", str(out), "--dense", dense, "--gated", gated, "--json", str(copy)]
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        # More threads than idle cores only make the test slow; test_timing has the two-thread rows.
        patch.setattr(demo, "THREADS", (1,))
        patch.setattr("builtins.print", lambda *parts, **_: printed.append(" ".join(parts)))
        assert main([*command, "--images", "256", "--passes", "1", "--seed", "3"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report == json.loads(copy.read_text())
    return report, out, "\n".join(printed)


def test_report_has_all_keys(run):
    report, _, _ = run
    wanted = """accuracy_dense accuracy_gated mac_ratio ms_dense_b1 ms_gated_b1 ms_dense_b32
        ms_gated_b32 ms_ort_b1 ms_ort_b32 speedup_b1 speedup_b32 realised_b1 max_rel_err
        cost_difficulty_corr decision_flips table environment accuracy_difference_95"""
    assert set(wanted.split()) <= set(report)
    assert report["environment"] == json.loads(json.dumps(ddi_kernels.collect_env()))
    assert report["images"] == 256 and report["seed"] == 3


def test_report_agrees_with_itself(run):
    report, _, _ = run
    times = {(row["provider"], row["batch"]): row["median_ms"] for row in report["table"]}
    for batch in (1, 32):
        eager = min(times["dense eager", batch], times["dense channels_last", batch])
        assert report[f"ms_dense_b{batch}"] == eager
        assert report[f"ms_gated_b{batch}"] == times["ours", batch]
        assert report[f"ms_ort_b{batch}"] == times["onnxruntime", batch]
        assert report[f"speedup_b{batch}"] == eager / times["ours", batch]
        fastest = min(t for t in (eager, times["onnxruntime", batch]) if t is not None)
        realised = fastest / times["ours", batch] / report["mac_ratio"]
        assert report[f"realised_b{batch}"] == pytest.approx(realised)
    assert report["mac_ratio"] == pytest.approx(report["macs_dense"] / report["macs_gated"])
    assert report["mac_ratio_timing_pool"] == pytest.approx(report["mac_ratio"], rel=0.02)


def test_report_agrees_with_the_library(run):
    report, out, _ = run
    model, _ = ddi.load_model(out.parent / "gated.safetensors")
    data = get_dataset("scene_digits")
    split = data.test()
    with torch.inference_mode(), ddi_kernels.backend("reference"):
        x = data.normalize(split.images[:256])
        macs = ddi.count_macs(model, x)
        right = (model(x).argmax(1) == split.labels[:256]).double().mean().item()
    assert report["macs_gated"] == pytest.approx(macs.gated, rel=1e-3)
    assert report["macs_dense"] == macs.dense
    assert report["accuracy_gated"] == pytest.approx(right, abs=1 / 256)
    corr = torch.corrcoef(torch.stack([macs.per_sample, split.difficulty[:256].double()]))[0, 1]
    assert report["cost_difficulty_corr"] == pytest.approx(corr.item(), abs=0.01)


def test_sparse_agrees_with_masked(run):
    report, _, _ = run
    assert 0 <= report["max_rel_err"] < 1e-4
    assert report["decision_flips"] <= 2


def test_sweep_holds_the_shipped_point(run):
    report, _, _ = run
    own = [p for p in report["sweep"] if p["threshold"] == report["threshold"]]
    assert [(p["accuracy"], p["macs"]) for p in own] == [(report["accuracy_gated"], report["macs_gated"])]
    assert len(report["sweep"]) == 5
    assert report["sweep"][0]["macs"] > report["sweep"][-1]["macs"]  # a lower threshold opens more


@pytest.mark.parametrize("name", FIGURES)
def test_figures_show_something(run, name):
    image = matplotlib.image.imread(run[1] / f"{name}.png")
    height, width = image.shape[:2]
    assert height > 400 and width > 700
    content = image[..., :3].reshape(-1, 3)
    inked = (content.min(axis=1) < 0.95).mean()
    assert 0.01 < inked < 0.99


def test_nothing_else_is_left_behind(run):
    names = {path.name for path in run[1].iterdir()}
    assert names == {"report.json", *(f"{name}.png" for name in FIGURES)}


def test_text_says_what_the_report_says(run):
    report, _, text = run
    for value in (
        f"{100 * report['accuracy_gated']:.2f} %",
        f"mac_ratio {report['mac_ratio']:.2f}",
        f"{report['speedup_b1']:.2f}x",
        f"{report['max_rel_err']:.1e}",
        f"{report['ms_gated_b32']:.3f}",
        "dense channels_last",
        "onnxruntime",
    ):
        assert value in text


def test_compare_counts_flips_and_leaves_them_out(monkeypatch):
    """Sample 0 agrees exactly, sample 1 to 0.5 %, sample 2 took another decision."""
    masked = torch.tensor([[1.0, -2.0], [4.0, 2.0], [1.0, 1.0]])
    sparse = torch.tensor([[1.0, -2.0], [4.0, 2.02], [9.0, 9.0]])
    bits = torch.tensor([[True, False], [True, True], [False, True]])
    flipped = bits.clone()
    flipped[2, 0] = True
    backends = []

    def decide(model, x):
        backends.append(ddi_kernels.current_backend())
        return (masked, flipped) if backends[-1] == "reference" else (sparse, bits)

    monkeypatch.setattr(demo, "_decide", decide)
    data = get_dataset("digits32")
    split = demo._first(data.test(), 3)
    found = demo.compare_with_masked(None, data, split)
    assert found == {"max_rel_err": pytest.approx(0.02 / 4), "decision_flips": 1}
    assert backends[1] == "reference" != backends[0]


def test_bits_of_a_skipped_block_do_not_count():
    model = mixed_model()
    x = get_dataset("digits32").normalize(get_dataset("digits32").test().images[:32])
    with torch.inference_mode():
        _, bits = demo._decide(model, x)
        with ddi.record(model) as rec:
            model(x)
    executed, start = rec.passes[0], 0
    for block in executed:
        keep, (mask,) = block.decision.keep, block.decision.masks
        if keep is not None:
            assert torch.equal(bits[:, start], keep)
            start += 1
        part = bits[:, start : start + mask.open.shape[1]]
        start += mask.open.shape[1]
        ran = torch.ones(32).bool() if keep is None else keep
        assert torch.equal(part[ran], mask.open[ran]) and not part[~ran].any()
    assert start == bits.shape[1]


def test_timing_pool_costs_what_the_split_costs():
    torch.manual_seed(0)
    macs = torch.rand(5000, dtype=torch.float64) ** 3
    pool = demo.timing_pool(macs, seed=0)
    assert pool.unique().numel() == demo.POOL
    assert macs[pool].mean().item() == pytest.approx(macs.mean().item(), rel=0.01)
    assert torch.equal(pool, demo.timing_pool(macs, seed=0))
    assert not torch.equal(pool, demo.timing_pool(macs, seed=1))
    # In no order of cost: a batch holds cheap and dear images.
    assert macs[pool][:32].std() > 0.5 * macs.std()


def test_sweep_restores_the_threshold_after_an_error(monkeypatch):
    model = mixed_model()
    before = model.ddi_gates.threshold_logit

    def broken(*args, **kwargs):
        raise RuntimeError("no")

    monkeypatch.setattr(demo, "evaluate", broken)
    data = get_dataset("digits32")
    with pytest.raises(RuntimeError, match="no"):
        demo.sweep_thresholds(model, data, data.test(), None)
    assert model.ddi_gates.threshold_logit == before


def test_pretrained_lies_in_the_package():
    assert demo.pretrained("x.safetensors").parent.parent.name == "ddi"
