"""When setup.py builds the CUDA library, and what becomes of a build that fails."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py, loaded without building anything; nvcc is not to be found."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **options: None)
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.nvcc_build, "find_nvcc", lambda: None)
    monkeypatch.setattr(module.nvcc_build, "torch_has_cuda", lambda: True)
    return module


def test_auto_goes_on_without_nvcc(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "MODE", "auto")
    stale = tmp_path / "_C_cuda.abi3.so"
    stale.touch()
    cpu = tmp_path / "_C.abi3.so"
    cpu.touch()
    builder = script.BuildExt.__new__(script.BuildExt)
    reason = builder.compile_cuda("", tmp_path)
    assert "nvcc is not found" in reason
    builder.record("", reason, tmp_path)
    info = json.loads((tmp_path / "_build_info.json").read_text())
    assert info["built"] is True and info["cuda"] == {"built": False, "reason": reason}
    assert cpu.exists() and not stale.exists()


def test_auto_asks_for_a_torch_with_cuda(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script.nvcc_build, "torch_has_cuda", lambda: False)
    monkeypatch.setattr(script.nvcc_build, "build", lambda folder: ("", "built"))
    monkeypatch.setattr(script, "MODE", "auto")
    assert "this torch has no CUDA; DDI_BUILD=cuda" in script.BuildExt.compile_cuda(None, "", tmp_path)
    monkeypatch.setattr(script, "MODE", "cuda")
    assert script.BuildExt.compile_cuda(None, "", tmp_path) == ""


def test_cuda_is_an_error_without_nvcc(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "MODE", "cuda")
    with pytest.raises(SystemExit, match="DDI_BUILD=cuda, but no CUDA operators: nvcc is not found"):
        script.BuildExt.compile_cuda(None, "", tmp_path)


@pytest.mark.parametrize("mode, cpu", [("cpu", ""), ("auto", "no compiler"), ("none", "DDI_BUILD=none")])
def test_nothing_is_built_that_was_not_asked_for(script, monkeypatch, tmp_path, mode, cpu):
    monkeypatch.setattr(script, "MODE", mode)
    monkeypatch.setattr(script.nvcc_build, "build", lambda folder: pytest.fail("built"))
    assert script.BuildExt.compile_cuda(None, cpu, tmp_path)
