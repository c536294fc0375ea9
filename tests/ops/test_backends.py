"""Choice of the implementation, its reasons, and the environment report."""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
import threading
from contextvars import ContextVar
from types import SimpleNamespace

import pytest
import torch
from native import require_native

import ddi_kernels
from ddi_kernels import active_channels, backend, backends, collect_env, current_backend
from ddi_kernels.collect_env import format_env

OPEN = torch.tensor([[True, False]])


def run_python(code: str, **variables: str) -> subprocess.CompletedProcess:
    """A fresh interpreter that finds the package where this one does."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | variables
    return subprocess.run(
        [sys.executable, *code.split(" ", 1)], env=environment, capture_output=True, text=True
    )


def test_innermost_choice_holds_and_ends():
    before = current_backend()
    with backend("reference"):
        with backend("auto"):
            assert current_backend() == "auto"
        assert current_backend() == "reference"
        with pytest.raises(KeyError), backend("native"):
            raise KeyError
        assert current_backend() == "reference"
    assert current_backend() == before


def test_a_choice_is_of_one_thread_only():
    seen = []
    with backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(current_backend()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="backend: expected one of auto, .*got 'fast'"):
        with backend("fast"):
            pass


def test_triton_raises_where_an_operator_has_no_kernel():
    with backend("triton"), pytest.raises(RuntimeError, match="active_channels.*'triton'.*no Triton kernel"):
        active_channels(OPEN)


def test_triton_says_what_is_missing(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ok, reason = backends.triton_available()
    assert not ok and ("CUDA" in reason or "not installed" in reason)
    with backend("triton"), pytest.raises(RuntimeError) as error:
        backends.choose("some_op", None, lambda: pytest.fail("asked without Triton"))
    assert reason in str(error.value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "not installed" in backends.triton_available()[1]


def test_triton_is_taken_on_a_gpu_and_by_name(monkeypatch):
    monkeypatch.setattr(backends, "triton_available", lambda: (True, ""))
    no_native, too_small = "no such kernel", "the groups are too small"
    with backend("auto"):
        assert backends.choose("some_op", no_native, lambda: None, on_gpu=True) == "triton"
        assert backends.choose("some_op", no_native, lambda: None, on_gpu=False) == "reference"
        assert backends.choose("some_op", no_native, lambda: too_small, on_gpu=True) == "reference"
        assert backends.choose("some_op", no_native, None, on_gpu=True) == "reference"
        monkeypatch.setattr(backends, "native_library", torch)
        assert backends.choose("some_op", None, lambda: None, on_gpu=True) == "triton"
        assert backends.choose("some_op", None, lambda: too_small, on_gpu=True) == "native"
        assert backends.choose("some_op", None, lambda: None, on_gpu=False) == "native"
    with backend("triton"):
        assert backends.choose("some_op", None, lambda: None) == "triton"
        with pytest.raises(RuntimeError, match=f"some_op.*'triton'.*{too_small}"):
            backends.choose("some_op", None, lambda: too_small)
    with backend("reference"):
        assert backends.choose("some_op", None, lambda: None, on_gpu=True) == "reference"


def test_importing_the_package_defines_no_triton_kernel():
    code = "-c import sys, ddi_kernels; print('ddi_kernels.triton.implicit_gemm' in sys.modules)"
    assert run_python(code, TRITON_INTERPRET="1").stdout.strip() == "False"


def test_the_cuda_library_is_left_alone_by_a_torch_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert backends._load_cuda() == (None, "this torch is built without CUDA")


def test_the_reason_of_a_failed_cuda_build_reaches_the_user(monkeypatch, tmp_path):
    (tmp_path / "_build_info.json").write_text('{"cuda": {"built": false, "reason": "nvcc is not found"}}')
    monkeypatch.setattr(backends, "__file__", str(tmp_path / "backends.py"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setitem(sys.modules, "ddi_kernels._C_cuda", None)
    library, reason = backends._load_cuda()
    assert library is None and "nvcc is not found" in reason and "DDI_BUILD=cuda" in reason


def test_devices_without_a_compiled_kernel_are_named(monkeypatch):
    meta = torch.empty(1, device="meta")
    assert backends.no_native_kernel("gather_samples", OPEN) is None
    assert "meta" in backends.no_native_kernel("gather_samples", meta)


def test_native_raises_with_its_reason_when_missing(monkeypatch):
    monkeypatch.setattr(backends, "native_library", None)
    monkeypatch.setattr(backends, "_native_reason", "it was eaten by a dog")
    assert backends.native_available() == (False, "it was eaten by a dog")
    with backend("native"), pytest.raises(RuntimeError, match="active_channels.*eaten by a dog"):
        active_channels(OPEN)


def test_falling_back_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(backends, "native_library", None)
    monkeypatch.setattr(backends, "_native_reason", "it was eaten by a dog")
    monkeypatch.setattr(backends, "_told_fallback", False)
    with caplog.at_level(logging.WARNING), backend("auto"):
        for _ in range(3):
            assert active_channels(OPEN)[1].tolist() == [1]
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "reference" in caplog.text and "eaten by a dog" in caplog.text


def test_every_backend_answers_with_a_reason():
    for name, available in backends.AVAILABILITY.items():
        ok, reason = available()
        assert name in (*backends.NAMES, "cuda")
        assert isinstance(ok, bool) and (ok or reason)
    assert backends.reference_available() == (True, "")


@pytest.mark.parametrize("text", [None, "not json", "[1]"], ids=["absent", "garbage", "list"])
def test_build_information_may_be_absent_or_broken(monkeypatch, tmp_path, text):
    monkeypatch.setattr(backends, "__file__", str(tmp_path / "backends.py"))
    if text is not None:
        (tmp_path / "_build_info.json").write_text(text)
    assert backends.build_info() == {}


def test_the_reason_of_a_failed_build_reaches_the_user(monkeypatch, tmp_path):
    (tmp_path / "_build_info.json").write_text('{"built": false, "reason": "no compiler found"}')
    monkeypatch.setattr(backends, "__file__", str(tmp_path / "backends.py"))
    monkeypatch.setitem(sys.modules, "ddi_kernels._C", None)  # import raises ModuleNotFoundError
    library, reason = backends._load_native()
    assert library is None and "no compiler found" in reason


def test_environment_sets_the_default():
    code = "-c import ddi_kernels; print(ddi_kernels.current_backend())"
    assert run_python(code, DDI_BACKEND="reference").stdout.strip() == "reference"


def test_a_wrong_environment_variable_is_named(monkeypatch):
    monkeypatch.setattr(backends, "_current", ContextVar("test", default="fast"))
    for call in (current_backend, lambda: active_channels(OPEN)):
        with pytest.raises(ValueError, match="DDI_BACKEND: expected one of auto, .*got 'fast'"):
            call()


def test_compiled_library_answers_about_instruction_sets(isa):
    library = backends.native_library
    assert library.cpu_isa() == isa
    with pytest.raises(ValueError, match="set_cpu_isa.*'neon9'"):
        library.set_cpu_isa("neon9")
    assert library.set_cpu_isa(None) == library.cpu_isa()


def test_environment_caps_the_instruction_set():
    require_native()
    code = "-c from ddi_kernels import _C; print(_C.cpu_isa())"
    assert run_python(code, DDI_CPU_ISA="scalar").stdout.strip() == "scalar"


def test_collect_env_is_plain_data_with_the_reasons():
    env = collect_env()
    assert json.loads(json.dumps(env)) == env
    assert env["torch"]["version"] == torch.__version__
    assert env["kernels"]["reference"] == "available"
    ok, reason = backends.native_available()
    assert env["kernels"]["native"] == ("available" if ok else reason)
    assert (env["kernels"]["cpu_isa_used"] is not None) == ok
    assert "DDI_CPU_ISA" in env["variables"]
    text = format_env(env)
    assert all(name in text for section in env.values() for name in section)


@pytest.mark.parametrize("detected", ["avx512_bf16", "avx512_amx"])
def test_collect_env_says_how_to_ask_for_amx(detected, monkeypatch):
    library = SimpleNamespace(detected_cpu_isa=lambda: detected, cpu_isa=lambda: "avx512_bf16")
    monkeypatch.setattr(backends, "native_library", library)
    says = "DDI_CPU_ISA=avx512_amx asks for it" in format_env(collect_env())
    assert says == (detected == "avx512_amx")


def test_collect_env_runs_as_a_module_whatever_the_settings():
    result = run_python("-m ddi_kernels.collect_env", DDI_BACKEND="fast")
    assert result.returncode == 0 and result.stderr == ""
    assert "torch" in result.stdout and "DDI_BACKEND: expected one of" in result.stdout


def test_collect_env_stays_a_function_of_the_package():
    importlib.import_module("ddi_kernels.collect_env")
    assert ddi_kernels.collect_env is collect_env and callable(collect_env)


def test_public_names_exist():
    for name in ddi_kernels.__all__:
        assert callable(getattr(ddi_kernels, name)), name
    with pytest.raises(AttributeError, match="no_such_name"):
        ddi_kernels.no_such_name  # noqa: B018
