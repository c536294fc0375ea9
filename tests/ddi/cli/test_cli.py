"""The verbs: results, --json, and for every mistake one clear line and status 2."""

import json

import pytest
import torch
from gated_models import mixed_model

import ddi
import ddi_kernels
from ddi.cli import bench, main
from ddi.data import get_dataset


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder with gated, dense and spoiled checkpoints."""
    folder = tmp_path_factory.mktemp("checkpoints")
    model = mixed_model()
    meta = {"dataset": "digits32"}
    ddi.save_model(folder / "gated", model, "cifar_resnet8", meta)
    ddi.save_model(folder / "dense", ddi.revert_(model), "cifar_resnet8", meta)
    many = ddi.create_model("cifar_resnet8", num_classes=100)
    ddi.save_model(folder / "hundred", many, "cifar_resnet8", meta, num_classes=100)
    whole = (folder / "gated").read_bytes()
    (folder / "truncated").write_bytes(whole[: len(whole) // 2])
    (folder / "foreign").write_bytes(b"PK" * 500)
    (folder / "bad.toml").write_text("epochs = = 3")
    return folder


def test_eval_of_a_gated_network(files, capsys, tmp_path):
    target = tmp_path / "deep" / "eval.json"
    assert main(["eval", str(files / "gated"), "--json", str(target), "--threads", "1"]) == 0
    found = json.loads(target.read_text())
    model, _ = ddi.load_model(files / "gated")
    data = get_dataset("digits32")
    split = data.test()
    with torch.inference_mode(), ddi_kernels.backend("reference"):
        counted = ddi.count_macs(model, data.normalize(split.images))
        right = model(data.normalize(split.images)).argmax(1) == split.labels
    assert found["dataset"] == "digits32" and found["split"] == "test" and found["images"] == 500
    assert found["accuracy"] == pytest.approx(right.double().mean().item(), abs=2 / 500)
    assert found["dense_macs"] == counted.dense
    assert found["mac_ratio"] == pytest.approx(counted.mac_ratio, rel=1e-3)
    per_sample = torch.tensor(found["macs"], dtype=torch.float64)
    assert len(per_sample) == 500 and per_sample.std() > 0
    assert (per_sample - counted.per_sample).abs().median() < 1
    assert found["mean_macs"] == pytest.approx(per_sample.mean().item())
    assert found["p50_macs"] == pytest.approx(per_sample.quantile(0.5).item())
    assert found["p10_macs"] < found["p50_macs"] < found["p90_macs"] < found["dense_macs"]
    text = capsys.readouterr().out
    assert f"{100 * found['accuracy']:.2f} %" in text and f"{found['mac_ratio']:.2f}" in text


def test_eval_of_a_plain_network_on_validation(files, capsys, tmp_path):
    target = tmp_path / "eval.json"
    arguments = ["--dataset", "digits32", "--split", "validation", "--json", str(target)]
    assert main(["eval", str(files / "dense"), *arguments]) == 0
    found = json.loads(target.read_text())
    assert found["images"] == 200 and found["mac_ratio"] == 1.0
    assert set(found["macs"]) == {float(found["dense_macs"])}


def test_eval_in_joules(files, capsys, tmp_path):
    target = tmp_path / "eval.json"
    command = ["eval", str(files / "gated"), "--split", "validation", "--json", str(target)]
    assert main([*command, "--resource", "joules"]) == 0
    found = json.loads(target.read_text())
    model, _ = ddi.load_model(files / "gated")
    data = get_dataset("digits32")
    counted = ddi.energy(model.eval(), data.normalize(data.validation().images))
    assert found["resource"] == "joules"
    assert found["dense_cost"] == pytest.approx(counted.dense, rel=1e-5)
    assert found["mean_cost"] == pytest.approx(counted.gated, rel=1e-3)
    assert found["resource_share"] == pytest.approx(found["mean_cost"] / found["dense_cost"], rel=1e-5)
    text = capsys.readouterr().out
    assert f"joules           {found['mean_cost']:.4g} an image" in text
    assert main([*command, "--resource", "watts"]) == 2
    assert "unknown resource 'watts'" in capsys.readouterr().err
    assert main([*command, "--resource", "ms", "--latency-table", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


def test_eval_restores_the_number_of_threads(files):
    before = torch.get_num_threads()
    arguments = ["--split", "validation", "--threads", str(before + 1)]
    assert main(["eval", str(files / "dense"), *arguments]) == 0
    assert torch.get_num_threads() == before


def test_calibrate_writes_a_checkpoint_of_the_wanted_cost(files, capsys, tmp_path):
    target, out = tmp_path / "found.json", tmp_path / "deep" / "cheaper"
    arguments = ["--mac-ratio", "1.7", "--tolerance", "0.02", "--images", "60", "--out", str(out)]
    assert main(["calibrate", str(files / "gated"), *arguments, "--json", str(target)]) == 0
    found = json.loads(target.read_text())
    (before, _), (after, meta) = ddi.load_model(files / "gated"), ddi.load_model(out)
    assert meta == {"dataset": "digits32"} and found["dataset"] == "digits32" and found["images"] == 60
    assert after.ddi_gates.config.threshold == found["threshold"] != found["threshold_before"] == 0.5
    weights = after.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in before.state_dict().items())
    data = get_dataset("digits32")
    ratio = ddi.count_macs(after, data.normalize(data.validation().images[:60])).mac_ratio
    assert ratio == pytest.approx(found["mac_ratio"], rel=1e-6) == pytest.approx(1.7, rel=0.02)
    text = capsys.readouterr().out
    assert f"{found['threshold']:.6f}, was 0.500000" in text and "wanted 1.7" in text


def test_env(capsys, tmp_path):
    target = tmp_path / "env.json"
    assert main(["env", "--json", str(target)]) == 0
    assert json.loads(target.read_text()) == json.loads(json.dumps(ddi_kernels.collect_env()))
    text = capsys.readouterr().out
    assert torch.__version__ in text and "native" in text


MISTAKES = {
    "eval-missing": (["eval", "{files}/none"], "no such file"),
    "eval-truncated": (["eval", "{files}/truncated"], "damaged or not a safetensors file"),
    "eval-foreign": (["eval", "{files}/foreign"], "damaged or not a safetensors file"),
    "eval-folder": (["eval", "{files}"], "no such file"),
    "eval-dataset": (["eval", "{files}/gated", "--dataset", "mnist"], "unknown name 'mnist'"),
    "eval-no-root": (["eval", "{files}/gated", "--dataset", "cifar10"], "pass root="),
    "eval-empty-root": (
        ["eval", "{files}/gated", "--dataset", "cifar10", "--data-root", "{files}"],
        "cifar",
    ),
    "eval-classes": (["eval", "{files}/hundred"], "knows 100 classes, digits32 has 10"),
    "eval-threads": (["eval", "{files}/gated", "--threads", "0"], "positive"),
    "demo-missing": (["demo", "--dense", "{files}/none"], "no such file"),
    "demo-swapped": (["demo", "--dense", "{files}/gated", "--gated", "{files}/dense"], "plain one"),
    "demo-plain": (["demo", "--dense", "{files}/dense", "--gated", "{files}/dense"], "gated one"),
    "demo-other": (
        ["demo", "--dense", "{files}/hundred", "--gated", "{files}/gated"],
        "different backbones",
    ),
    "demo-images": (["demo", "--images", "10"], "images must be at least 256"),
    "demo-too-many": (
        ["demo", "--images", "9999", "--dense", "{files}/dense", "--gated", "{files}/gated"],
        "the test split has 5000",
    ),
    "demo-passes": (["demo", "--passes", "0"], "passes must be at least 1"),
    "calibrate-missing": (["calibrate", "{files}/none", "--mac-ratio", "2"], "no such file"),
    "calibrate-plain": (["calibrate", "{files}/dense", "--mac-ratio", "2"], "dense holds a plain network"),
    "calibrate-ratio": (["calibrate", "{files}/gated", "--mac-ratio", "-2"], "mac_ratio must be positive"),
    "calibrate-reach": (
        ["calibrate", "{files}/gated", "--mac-ratio", "500", "--images", "9"],
        "mac_ratio 500 is out of reach",
    ),
    "calibrate-images": (
        ["calibrate", "{files}/gated", "--mac-ratio", "2", "--images", "0"],
        "images is 0; allowed: 1 to 200, the validation images of digits32",
    ),
    "train-model": (["train", "--model", "resnet9000"], "unknown model 'resnet9000'"),
    "train-config": (["train", "--config", "{files}/bad.toml"], "bad.toml"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_give_one_line_and_status_2(files, capsys, tmp_path, mistake):
    arguments, says = MISTAKES[mistake]
    verb, *rest = [a.replace("{files}", str(files)) for a in arguments]
    out = [] if verb == "eval" else ["--out", str(tmp_path / "out")]
    status = main([verb, *rest, *out, "--json", str(tmp_path / "result.json")])
    printed = capsys.readouterr()
    assert status == 2
    assert printed.err.startswith(f"ddi {verb}: error: ") and says in printed.err
    assert printed.err.count("\n") == 1 and printed.out == ""
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_unwritable_json_is_an_error_too(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert main(["env", "--json", str(tmp_path / "file" / "env.json")]) == 2
    assert capsys.readouterr().err.startswith("ddi env: error: ")


def test_missing_matplotlib_names_the_extra(files, capsys, tmp_path, no_matplotlib):
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "ddi-kernels[report]" in capsys.readouterr().err


def test_bench_hands_its_options_to_the_suite(capfd, tmp_path, monkeypatch):
    (tmp_path / "bench").mkdir()  # another folder of that name in the current one is not taken
    (tmp_path / "bench" / "__main__.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "op", "--help"]) == 0
    text = capfd.readouterr().out
    assert text.startswith("usage: bench op") and "--json" in text and "--seed" in text


def test_bench_passes_the_status_of_the_suite_on(capfd):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "op", "--cases", "no such case"])
    assert stopped.value.code == 2
    assert capfd.readouterr().err.startswith("bench op: error: ")


def test_bench_needs_a_checkout(capsys, monkeypatch, tmp_path):
    # Where an installed package lies.
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "site-packages" / "ddi" / "cli" / "bench.py"))
    assert main(["bench", "op"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ddi bench: error: ") and "has no folder bench" in error
    assert "clone the repository" in error and error.count("\n") == 1


def test_ctrl_c_is_no_traceback(capsys, monkeypatch):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr(ddi_kernels, "collect_env", stop)
    assert main(["env"]) == 130
    assert capsys.readouterr().err == "ddi env: interrupted\n"


@pytest.mark.parametrize("arguments", ([], ["fly"], ["eval"], ["eval", "x", "--split", "train"]))
def test_usage_mistakes_exit_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and "error:" in capsys.readouterr().err


VERBS = ("demo", "train", "grid", "eval", "calibrate", "freeze", "run", "report", "env")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_json_and_seed(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and "--json" in text and "--seed" in text
