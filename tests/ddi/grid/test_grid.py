"""Grids of trainings: what a file stands for, rows and checkpoints of finished runs, going on."""

import dataclasses
import json

import pytest

import ddi
from ddi.cli import main
from ddi.data import get_dataset
from ddi.evaluate.evaluate_budget import evaluate_budget
from ddi.grid import measure_grid as measuring_module
from ddi.grid.grid import read_grid, read_rows, row_key, write_rows
from ddi.grid.measure_grid import measure_grid
from ddi.grid.run_grid import run_grid, with_needs
from ddi.measure.timing import Timing
from ddi_kernels import collect_env

GRID = """
rows = "rows.jsonl"
checkpoints = "checkpoints"

[train]
dataset = "digits32"
batch_size = 256
backbone_epochs = 1
gates_epochs = 1
joint_epochs = 1
teacher = "dense"

[[runs]]
network = "cifar_resnet8"
gating = ["both", "layer", "backbone", "dense"]
target = [0.5, 0.3]
seed = 0
group_size = 4
exits = "1"

[[runs]]
network = "cifar_resnet8"
gating = "narrow"
target = 0.3
seed = 0
model_kwargs = { width = 8 }
"""


def write(folder, text=GRID):
    path = folder / "grid.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A grid whose runs but one have ended, and its folder."""
    folder = tmp_path_factory.mktemp("grid")
    grid = read_grid(write(folder, GRID.replace('"layer", ', "").replace("[0.5, 0.3]", "0.5")))
    run_grid(grid, folder / "work", jobs=2)
    return folder, grid


def test_what_a_file_stands_for(tmp_path):
    grid = read_grid(write(tmp_path))
    assert [run.name for run in grid.runs] == [
        "cifar_resnet8_both_0.5_s0",
        "cifar_resnet8_both_0.3_s0",
        "cifar_resnet8_layer_0.5_s0",
        "cifar_resnet8_layer_0.3_s0",
        "cifar_resnet8_backbone_s0",
        "cifar_resnet8_dense_s0",
        "cifar_resnet8_narrow_0.3_s0",
    ]
    both, _, layer, _, backbone, dense, narrow = (run.config(tmp_path) for run in grid.runs)
    assert both.gates == {"kind": "ddi", "group_size": 4, "layers": True, "channels": True}
    assert layer.gates == {"kind": "ddi", "group_size": 4, "layers": True, "channels": False}
    assert both.init == layer.init == dense.init == str(tmp_path / "cifar_resnet8_backbone_s0.safetensors")
    assert backbone.init is None and narrow.init is None and backbone.exits == "1"
    assert (both.mac_target, dense.gates, narrow.model_kwargs) == (0.5, None, {"width": 8})
    taught = str(tmp_path / "cifar_resnet8_dense_s0.safetensors")
    assert both.teacher == layer.teacher == narrow.teacher == taught
    assert backbone.teacher is None and dense.teacher is None
    # All but the backbone are trained equally long, those that go on from it included.
    epochs = [sum(stage.epochs for stage in config.stages()) for config in (both, dense, narrow, backbone)]
    assert epochs == [2, 2, 3, 1]


def test_a_filter_takes_along_what_runs_need(tmp_path):
    grid = read_grid(write(tmp_path))
    for name, needed in [("backbone", 1), ("dense", 2), ("narrow", 3), ("layer_0.3", 3), ("layer", 4)]:
        keys = {run.key for run in grid.runs if name in run.name}
        assert len(with_needs(grid, keys)) == needed
        assert ("cifar_resnet8", "backbone", 1.0, 0, "macs") in with_needs(grid, keys)


def test_a_run_held_to_another_resource_is_another_run(tmp_path):
    text = (
        GRID
        + """
[[runs]]
network = "cifar_resnet8"
gating = ["both", "dense"]
target = 0.5
seed = 0
resource = "joules"
"""
    )
    *_, joules = (runs := read_grid(write(tmp_path, text)).runs)
    assert joules.name == "cifar_resnet8_both_0.5_joules_s0" and joules.config(tmp_path).resource == "joules"
    assert len(runs) == 8  # dense networks are held to nothing


def test_rows_say_what_the_checkpoints_do(finished):
    folder, grid = finished
    rows = read_rows(grid.rows)
    assert {row["gating"] for row in rows} == {"backbone", "both", "dense", "narrow"} and len(rows) == 4
    assert json.loads(grid.rows.read_text().splitlines()[0])["header"]
    data = get_dataset("digits32")
    dense_macs = ddi.count_macs(ddi.create_model("cifar_resnet8"), data.test().images[:1].float()).dense
    for row in rows:
        model, meta = ddi.load_model(grid.checkpoints / row["checkpoint"])
        result = ddi.evaluate.evaluate(model, data, data.test())
        assert row["accuracy"] == result.accuracy and row["exit_accuracy"] == result.exit_accuracy
        assert row["macs"] == round(result.macs.mean().item())
        assert row["mac_ratio"] == pytest.approx(dense_macs / row["macs"], abs=1e-3)
        assert row["ms_b1"] is None and meta["train"]["seed"] == 0
    narrow = next(row for row in rows if row["gating"] == "narrow")
    assert narrow["mac_ratio"] > 3.5 and narrow["exit_accuracy"] == []


def test_checkpoints_are_small(finished):
    folder, grid = finished
    small = grid.checkpoints / "cifar_resnet8_backbone_s0.safetensors"
    assert (
        small.stat().st_size
        < 0.6 * (folder / "work/cifar_resnet8_backbone_s0/model.safetensors").stat().st_size
    )


def test_finished_runs_are_not_run_again_and_new_ones_are(finished, monkeypatch):
    folder, grid = finished
    before = grid.rows.read_bytes()
    assert len(run_grid(grid, folder / "work")) == 4
    assert grid.rows.read_bytes() == before
    more = read_grid(write(folder, GRID.replace("[0.5, 0.3]", "0.5")))
    run_grid(more, folder / "work", only="layer")
    assert [row["gating"] for row in read_rows(grid.rows)][4:] == ["layer"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"layer"', '"depth"', "unknown gating 'depth'; allowed: backbone, dense"),
        ("batch_size = 256", "batch = 256", "unknown keys.*batch"),
        ("seed = 0\ngroup", "group", "'seed' is missing"),
        ('"backbone", ', "", 'needs a run of cifar_resnet8 with gating = "backbone", seed 0'),
        (', "dense"]', "]", 'both_0.5_s0 needs a run of cifar_resnet8 with gating = "dense", seed 0'),
        ('"dense"\n\n', '"both"\n\n', "teacher must be one of backbone, dense, got 'both'"),
        ("[train]", "jobs = 2\n[train]", "unknown keys.*jobs.*allowed: rows, checkpoints"),
        ("[train]", "[train", "grid.toml: Expected"),
        ("target = [0.5, 0.3]", "target = 2", "mac_target must lie in"),
    ],
)
def test_bad_files_are_refused_before_anything_runs(tmp_path, old, new, message):
    with pytest.raises(ValueError, match=message):
        read_grid(write(tmp_path, GRID.replace(old, new, 1)))


def test_a_damaged_row_file_is_not_written_over(tmp_path, capsys):
    path = write(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"network": ')
    assert main(["grid", str(path)]) == 2
    assert "rows.jsonl is damaged" in capsys.readouterr().err
    assert (tmp_path / "rows.jsonl").read_text() == '{"network": '


@pytest.mark.parametrize("line", ["3", "\x00", '{"gating": "both"}'])
def test_rows_that_are_none(tmp_path, line):
    (tmp_path / "rows.jsonl").write_text('{"header": true}\n' + line)
    with pytest.raises(ValueError, match="rows.jsonl is damaged.* line 2"):
        read_rows(tmp_path / "rows.jsonl")


# Measuring.


@pytest.fixture
def unmeasured(finished, tmp_path, monkeypatch):
    """The finished grid with a file of its rows that is this test's own."""
    monkeypatch.setattr(measuring_module, "CONFIDENCES", (0.5, 0.9))
    grid = finished[1]
    keys = {run.key for run in grid.runs}
    rows = [row for row in read_rows(grid.rows) if row_key(row) in keys]
    write_rows(tmp_path / "rows.jsonl", sorted(rows, key=row_key))  # not as they happened to end
    return dataclasses.replace(grid, rows=tmp_path / "rows.jsonl")


def fake_time_passes(calls, meanwhile=lambda: None):
    """Stands for `ddi.measure.timing.time_passes`: 1 ms and more, by the order of the networks."""

    def time_passes(providers, pool, batch, threads, passes):
        assert len(pool) == 256 and (threads, passes) == (1, 9)
        data = get_dataset("digits32")
        assert (pool == data.normalize(data.test().images[:256])).all()
        for network in providers.values():
            assert network(pool[:batch]).shape == (batch, 10)
        calls.append((batch, list(providers)))
        meanwhile()
        middle = {name: place * batch for place, name in enumerate(providers, 1)}
        return {name: Timing.of([0.0, middle[name], 99.0 * batch]) for name in providers}

    return time_passes


@pytest.mark.parametrize("only", ["_0.", ""])
def test_all_rows_of_a_network_are_measured_in_turns_once_one_lacks_times(unmeasured, monkeypatch, only):
    calls = []
    monkeypatch.setattr(measuring_module, "time_passes", fake_time_passes(calls))
    before = read_rows(unmeasured.rows)
    done = {"ms_b1": 777.0, "ms_b32": 888.0}
    write_rows(unmeasured.rows, [row | done if row["target"] == 0.5 else row for row in before])
    before = read_rows(unmeasured.rows)
    rows = measure_grid(unmeasured, only)
    assert rows == read_rows(unmeasured.rows)
    names = [row["checkpoint"] for row in before if only in row["checkpoint"]]
    with_exits = [row["checkpoint"] for row in before if row["exit_accuracy"]]
    ways = []
    for name in names:
        ways += [name, *(f"{name} {c}" for c in (0.5, 0.9) if name in with_exits)]
    assert len(names) >= 2 and calls == [(1, ways), (32, ways)]
    for row, old in zip(rows, before, strict=True):
        if row["checkpoint"] in names:
            place = ways.index(row["checkpoint"]) + 1
            times = {"ms_b1": place, "ms_b32": place * 32.0}
            halting = row.pop("halting", None)
            assert row == old | times | {"measured_on": collect_env()["system"]["cpu"]}
            ms = None if halting is None else [(one["ms_b1"], one["ms_b32"]) for one in halting]
            after = [(place + i, 32.0 * (place + i)) for i in (1, 2)]
            assert ms == (after if row["checkpoint"] in with_exits else None)
        else:
            assert row == old
    measure_grid(unmeasured, only)
    assert len(calls) == 2  # nothing is measured twice


def test_halting_is_what_the_network_does_at_a_confidence(unmeasured, monkeypatch):
    monkeypatch.setattr(measuring_module, "time_passes", fake_time_passes([]))
    row = next(row for row in measure_grid(unmeasured) if row["gating"] == "both")
    model, _ = ddi.load_model(unmeasured.checkpoints / row["checkpoint"])
    data = get_dataset("digits32")
    assert [one["confidence"] for one in row["halting"]] == list(measuring_module.CONFIDENCES)
    for one in row["halting"]:
        limits = ddi.Budget(confidence=one["confidence"])
        found = evaluate_budget(model, data, data.test(), limits)
        assert one["accuracy"] == pytest.approx(found.accuracy, abs=2e-3)
        assert one["macs"] == pytest.approx(found.macs.mean().item(), rel=2e-3)


def test_a_measurement_that_breaks_off_changes_no_row(unmeasured, monkeypatch):
    before = unmeasured.rows.read_bytes()

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring_module, "time_passes", fake_time_passes([], interrupted))
    with pytest.raises(KeyboardInterrupt):
        measure_grid(unmeasured)
    assert unmeasured.rows.read_bytes() == before


def test_trainings_that_end_during_a_measurement_keep_their_rows(unmeasured, monkeypatch):
    rows = read_rows(unmeasured.rows)
    late = rows[0] | {"seed": 9}
    monkeypatch.setattr(
        measuring_module,
        "time_passes",
        fake_time_passes([], lambda: write_rows(unmeasured.rows, [*rows, late])),
    )
    found = measure_grid(unmeasured)
    assert found[-1] == late and all(row["ms_b32"] for row in found[:-1])


def test_measuring_by_the_command(unmeasured, finished, tmp_path, capsys):
    text = (finished[0] / "grid.toml").read_text()
    text = text.replace('"checkpoints"', f'"{finished[1].checkpoints}"')
    (tmp_path / "grid.toml").write_text(text)
    assert main(["grid", str(tmp_path / "grid.toml"), "--measure", "--only", "narrow"]) == 0
    measured = [row for row in read_rows(unmeasured.rows) if row["ms_b1"] is not None]
    assert [row["gating"] for row in measured] == ["narrow"] and measured[0]["ms_b1"] > 0
    write_rows(unmeasured.rows, [row | {"checkpoint": "no"} for row in read_rows(unmeasured.rows)])
    assert main(["grid", str(tmp_path / "grid.toml"), "--measure"]) == 2
    assert "no such file" in capsys.readouterr().err
