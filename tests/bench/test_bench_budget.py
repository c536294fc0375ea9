"""The bench of budgets: what it asks of the engine, and what it says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import ddi
from bench.__main__ import main
from bench.budget import Bench, busy_core, count_exceeded, spin_ms, time_deadline

pytest.importorskip("ddi_kernels._engine", reason="ddi_kernels._engine is not built")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = ddi.create_model("cifar_resnet8", gates=ddi.DDIConfig(group_size=4), exits=[1, 2])
    path = tmp_path_factory.mktemp("budget") / "net.safetensors"
    ddi.save_model(path, model, "cifar_resnet8", {"dataset": "digits32"}, exits=[1, 2])
    return path


@pytest.fixture
def bench(checkpoint: Path, tmp_path: Path) -> Bench:
    return Bench(checkpoint, str(tmp_path), 0)


def test_deadlines_rise_from_the_shortest_exit_to_the_network(bench: Bench) -> None:
    deadlines = bench.deadlines(20)
    assert deadlines == sorted(deadlines) and deadlines[0] < deadlines[-1] and len(deadlines) == 6


def test_a_row_of_a_deadline(bench: Bench) -> None:
    generous, hopeless = time_deadline(bench, 1e3, 20), time_deadline(bench, 1e-3, 20)
    assert generous["within_budget_share"] == generous["no_halting_share"] == 1.0
    assert generous["exits"] == {"exit0": 0, "exit1": 0, "network": 1}
    assert hopeless["within_budget_share"] == hopeless["no_halting_share"] == 0.0
    assert hopeless["exits"]["exit0"] == 1 and 0 <= hopeless["accuracy"] <= 1


def test_exceeded_budgets_are_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert count_exceeded(bench, 50)["macs_exceeded"] == 0

    class Careless:
        """An engine that halts for nobody."""

        def __init__(self, engine: object) -> None:
            self.engine = engine

        def __getattr__(self, name: str) -> object:
            return getattr(self.engine, name)

        def __call__(self, x: torch.Tensor, max_macs: int, report: bool) -> object:
            return self.engine(x, report=report)  # type: ignore[operator]

    monkeypatch.setattr(bench, "engine", Careless(bench.engine))
    assert count_exceeded(bench, 50)["macs_exceeded"] > 10


def test_spinning_takes_as_long_as_it_is_told() -> None:
    assert spin_ms(2.0) >= 2.0


def test_the_busy_process_ends() -> None:
    with pytest.raises(KeyError), busy_core():
        raise KeyError


def test_command(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--runs", "5", "--mac-runs", "20", "--json", str(tmp_path / "rows.jsonl")]
    assert main(["budget", "--checkpoint", str(checkpoint), *arguments]) == 0
    header, *rows, summary = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert header["header"] and [row["case"] for row in rows] == ["ms"] * 6 + ["macs"]
    assert summary["macs_exceeded"] == 0 and summary["runs"] == 6 * 5 + 20
    assert summary["within_budget_share"] == min(row["within_budget_share"] for row in rows[:6])
    assert "least share within a deadline" in capsys.readouterr().out


def test_a_network_without_branches_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ddi.save_model(tmp_path / "net.safetensors", ddi.create_model("cifar_resnet8"), "cifar_resnet8")
    assert main(["budget", "--checkpoint", str(tmp_path / "net.safetensors")]) == 2
    assert "has no branch classifiers" in capsys.readouterr().err
