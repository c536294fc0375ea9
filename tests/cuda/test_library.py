"""The CUDA library, built with nvcc and loaded beside a torch that may have no CUDA; no GPU needed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "csrc" / "cuda"))
import nvcc_build  # noqa: E402

OPERATORS = ["active_channels", "gated_conv2d", "gather_samples", "resident_stage"]
OPERATORS += ["scatter_samples", "scatter_samples_"]


HOPPER = ["-gencode=arch=compute_90a,code=sm_90a"]


# An architecture takes most of a minute: one quickly, all that are shipped in test-all and check-kernels.
@pytest.fixture(scope="module", params=["hopper", pytest.param("shipped", marks=pytest.mark.slow)])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The library and what the compiler said of each kernel."""
    if nvcc_build.find_nvcc() is None:
        pytest.skip("nvcc is not installed")
    folder = tmp_path_factory.mktemp("cuda")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "hopper":
            patch.setattr(nvcc_build, "architectures", lambda nvcc: HOPPER)
        reason, output = nvcc_build.build(folder, "-Xptxas", "-v", "-Werror", "all-warnings")
    assert not reason, output
    return folder / nvcc_build.NAME, output


def beside_torch(library: Path, code: str) -> str:
    """What a fresh Python prints that has loaded the library after ddi_kernels."""
    load = (
        "import importlib.util, torch, ddi_kernels\n"
        f"spec = importlib.util.spec_from_file_location('_C_cuda', {str(library)!r})\n"
        "importlib.util.module_from_spec(spec)\n"
    )
    run = subprocess.run([sys.executable, "-c", load + code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_kernels_do_not_spill(built):
    spills = re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", built[1]
    )
    names = set(re.findall(r"for '(sm_\w+)'", built[1]))
    assert names == {"sm_90a"} or {"sm_80", "sm_90a"} <= names
    assert len(spills) >= 12 * len(names) and set(spills) == {("0", "0", "0")}


def test_library_needs_only_the_stable_abi(built):
    listing = subprocess.run(["nm", "-DC", "--undefined-only", built[0]], capture_output=True, text=True)
    assert "aoti_torch_empty_strided" in listing.stdout  # the listing is of what we think
    assert not re.findall(r"\b(?:at|c10|torch)::|cuda_stream", listing.stdout)


@pytest.mark.parametrize("op", OPERATORS)
def test_dispatch_entry_is_registered(built, op):
    code = f"""
has = torch._C._dispatch_has_kernel_for_dispatch_key
print(has("ddi::{op}", "CUDA"), has("ddi::{op}", "CPU"), torch.ops.ddi.{op}.default._schema)
"""
    printed = beside_torch(built[0], code)
    schema = getattr(torch.ops.ddi, op).default._schema
    assert printed == f"True {torch._C._dispatch_has_kernel_for_dispatch_key(f'ddi::{op}', 'CPU')} {schema}"


def test_shapes_are_computed_and_cpu_calls_stay_on_the_cpu(built):
    code = """
x, index = torch.arange(6.0).reshape(3, 2), torch.tensor([2, 0])
print(torch.ops.ddi.gather_samples(x.to("meta"), index.to("meta")).shape)
print(torch.ops.ddi.gather_samples(x, index).tolist())
"""
    assert beside_torch(built[0], code) == "torch.Size([2, 2])\n[[4.0, 5.0], [0.0, 1.0]]"


def test_the_cuda_kernel_refuses_cpu_tensors(built):
    code = """
x, index = torch.ones(3, 2), torch.tensor([2, 0])
op = torch.ops.ddi.gather_samples.default
try:
    op.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), x, index)
except RuntimeError as error:
    print(str(error).splitlines()[0])
"""
    assert "gather_samples: x is not on a GPU, but index is" in beside_torch(built[0], code)


def test_a_missing_compiler_is_a_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(nvcc_build, "find_nvcc", lambda: None)
    reason, _ = nvcc_build.build(tmp_path)
    assert "nvcc is not found" in reason and not list(tmp_path.iterdir())
    monkeypatch.setattr(nvcc_build, "find_nvcc", lambda: str(tmp_path / "absent"))
    assert "absent" in nvcc_build.build(tmp_path / "library")[0]
