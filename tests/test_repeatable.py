"""A test draws the same in every run: alone, behind others, in any order."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
PLUGINS = ["cacheprovider", "terminal", "faulthandler", "xdist", "hypothesispytest", "benchmark"]

ONE = """
import random, numpy, pytest, torch

AT_IMPORT = torch.rand(()).item()

@pytest.fixture(scope="module", params=[1, 2])
def model(request):
    return [torch.nn.Linear(1, 1).weight.item(), request.param]

@pytest.fixture
def image():
    return numpy.random.rand()

@pytest.mark.parametrize("size", [1, 2])
def test_draws(model, image, size, record_property):
    own = [random.random(), torch.rand(()).item(), torch.randperm(100).tolist()]
    record_property("drawn", [AT_IMPORT, model, image, own])

def test_draws_without_the_model(record_property):
    record_property("drawn", [random.random(), torch.rand(()).item()])
"""


class Recorder:
    """What tests say that they have drawn, by name."""

    def __init__(self) -> None:
        self.drawn: dict[str, Any] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        assert report.passed, report.longrepr
        if report.when == "call":
            self.drawn |= {report.nodeid.split("/")[-1]: value for _, value in report.user_properties}


def drawn(folder: Path, *chosen: str) -> dict[str, Any]:
    recorder = Recorder()
    off = [word for name in PLUGINS for word in ("-p", f"no:{name}")]
    ids = [str(folder / one) for one in chosen]
    where = ["--rootdir", str(folder), "-c", str(folder / "none.ini"), "--import-mode", "importlib"]
    assert pytest.main([*off, "-p", "repeatable", *where, *ids], [recorder]) == 0
    assert recorder.drawn
    return recorder.drawn


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "none.ini").touch()
    (tmp_path / "deeper").mkdir()
    for name in ("test_a.py", "test_b.py", "deeper/test_a.py"):
        (tmp_path / name).write_text(ONE)
    return tmp_path


def test_draws_are_those_of_the_name(folder: Path) -> None:
    whole = drawn(folder, "test_a.py", "test_b.py")
    assert whole == drawn(folder, "test_b.py", "test_a.py")
    for name in [*whole][1::4]:
        assert drawn(folder, name) == {name: whole[name]}
    assert drawn(folder, "deeper/test_a.py").items() <= whole.items()  # a moved file


def test_other_tests_draw_other_values(folder: Path) -> None:
    whole = drawn(folder, "test_a.py", "test_b.py")
    assert len({repr(value) for value in whole.values()}) == len(whole) == 10
    # The model is made once for the tests that share it, and differs with what it is made of.
    of_a = [value for name, value in whole.items() if name.startswith("test_a.py::test_draws[")]
    assert len({at_import for at_import, *_ in of_a}) == 1
    assert len({repr(model) for _, model, *_ in of_a}) == 2


def test_hypothesis_draws_no_seed() -> None:
    settings = pytest.importorskip("hypothesis").settings
    assert settings().derandomize and settings().database is None


def unseeded(tree: ast.AST) -> list[str]:
    """Generators that a file asks the system to seed."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found = []
    for call in calls:
        name = ast.unparse(call.func)
        fresh = name.split(".")[-1] in FRESH and not (call.args or call.keywords)
        if fresh or name.split(".")[-1] in SYSTEM or name == "torch.seed":
            found.append(ast.unparse(call))
    return found


FRESH = {"default_rng", "Random", "RandomState"}
SYSTEM = {"SystemRandom", "urandom", "token_bytes", "token_hex", "uuid4"}


def test_no_generator_is_left_to_the_system() -> None:
    broken = "default_rng(); np.random.default_rng(1); random.Random(); os.urandom(3); torch.seed()"
    seen = ["default_rng()", "random.Random()", "os.urandom(3)", "torch.seed()"]
    assert unseeded(ast.parse(broken)) == seen
    found = {
        path.name: calls for path in TESTS.rglob("*.py") if (calls := unseeded(ast.parse(path.read_text())))
    }
    assert found == {}
