"""The script behind `make check-gpu`: what fails or hangs is said, and does not stop it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "gpu" / "check.py"


@pytest.fixture
def check(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("check_gpu", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "OUT", tmp_path)
    return module


def test_steps(check, capsys, tmp_path):
    code = "import os, ddi; print('first'); print(os.environ['WHAT'])"
    assert check.run("good", 100, sys.executable, "-P", "-c", code, WHAT="second")
    assert capsys.readouterr().out == "check-gpu: good: ok\n  second\n"
    assert (tmp_path / "good.log").read_text() == "first\nsecond\n"
    assert not check.run("bad", 100, sys.executable, "-c", "print('why'); raise SystemExit(3)")
    assert capsys.readouterr().out == "check-gpu: bad: failed (3)\n  why\n"
    assert not check.run("slow", 0.5, sys.executable, "-c", "import time; time.sleep(60)")
    assert "check-gpu: slow: failed (not done after 0.5 s)" in capsys.readouterr().out


def test_a_failure_is_the_status(check, monkeypatch, capsys):
    asked = []

    def run(name, *rest, **environment):
        asked.append(name)
        return name != "test_samples_gpu"

    monkeypatch.setattr(check, "run", run)
    monkeypatch.setattr(check.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        check.main()
    assert stopped.value.code == 1 and asked[0] == "build" and len(asked) >= 9
    monkeypatch.setattr(check, "run", lambda name, *rest, **environment: name != "build")
    with pytest.raises(SystemExit, match="1"):
        check.main()
