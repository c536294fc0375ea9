"""Energy counters: RAPL on a made-up sysfs, NVML on a library that is compiled for the test."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from ddi_kernels import collect_env
from ddi_kernels.collect_env import format_env
from ddi_kernels.prices import energy_counters
from ddi_kernels.prices.energy_counters import counter_availability, measure_joules

NO_NVML = "libnvidia-ml-that-is-nowhere.so"


def zone(root, folder, name, energy, span=1_000_000):
    path = root / folder
    path.mkdir()
    for file, value in (("name", name), ("energy_uj", energy), ("max_energy_range_uj", span)):
        (path / file).write_text(f"{value}\n")
    return path / "energy_uj"


def test_packages_are_added_up_and_their_parts_are_not(tmp_path):
    first = zone(tmp_path, "intel-rapl:0", "package-0", 100)
    core = zone(tmp_path, "intel-rapl:0:0", "core", 50)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 7)
    psys = zone(tmp_path, "intel-rapl:2", "psys", 1000)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 100)
    with measure_joules(tmp_path, NO_NVML) as measured:
        with pytest.raises(RuntimeError, match="before the end of the with block"):
            _ = measured.joules
        for file, value in ((first, 500_100), (core, 300_000), (second, 250_007), (psys, 900_000)):
            file.write_text(str(value))
    assert measured.by_counter == pytest.approx({"package-0": 0.5, "package-1": 0.25})
    assert measured.joules == pytest.approx(0.75) and measured.seconds > 0


def test_a_counter_that_went_around(tmp_path):
    file = zone(tmp_path, "intel-rapl:0", "package-0", 990_000, span=1_000_000)
    with measure_joules(tmp_path, NO_NVML) as measured:
        file.write_text("20000")
    assert measured.joules == pytest.approx(0.03)


def test_a_counter_that_stood_still(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 990_000)
    with measure_joules(tmp_path, NO_NVML) as measured:
        pass
    assert measured.joules == 0.0


def test_without_any_counter_the_error_says_what_was_looked_for(tmp_path):
    with pytest.raises(RuntimeError, match=r"rapl: no .*/intel-rapl:\*.*nvml: .*nowhere.so.*ddi.energy"):
        with measure_joules(tmp_path, NO_NVML):
            pass
    zone(tmp_path, "intel-rapl:0", "psys", 5)
    assert "processor package" in counter_availability(tmp_path, NO_NVML)["rapl"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_counter_that_may_not_be_read(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 5).chmod(0)
    with pytest.raises(RuntimeError, match="intel-rapl:0/energy_uj may not be read; as root: chmod a\\+r"):
        with measure_joules(tmp_path, NO_NVML):
            pass


def test_a_permission_error_is_told_with_the_remedy(tmp_path, monkeypatch):
    file = zone(tmp_path, "intel-rapl:0", "package-0", 5)

    def refuse(self):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(energy_counters._RaplPackage, "read", refuse)
    says = counter_availability(tmp_path, NO_NVML)["rapl"]
    assert says == f"{file} may not be read; as root: chmod a+r {tmp_path}/intel-rapl:*/energy_uj"


def test_a_damaged_counter(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", "many")
    assert "intel-rapl:0 cannot be read" in counter_availability(tmp_path, NO_NVML)["rapl"]


# Counts as NVML does: handles are pointers, millijoules of 64 bits. Each GPU takes more from call to call.
NVML = """
#include <stddef.h>
static unsigned long long gpu[2] = {5000000000ull, 70ull};
const char* nvmlErrorString(int code) { return code == 3 ? "Not Supported" : "Driver Not Loaded"; }
int nvmlInit_v2(void) { return INIT; }
int nvmlDeviceGetCount_v2(unsigned* count) { *count = COUNT; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** handle) {
  *handle = &gpu[index];
  return index < COUNT ? 0 : 2;
}
int ENERGY(void* handle, unsigned long long* millijoules) {
  unsigned long long* mine = handle;
  *millijoules = *mine;
  *mine += handle == gpu ? 1500 : 250;
  return SUPPORTED ? 0 : 3;
}
"""


@pytest.fixture
def nvml(tmp_path):
    """Compiles a library with so many GPUs; fails, lacks the counter, or does not support it if told to."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")

    def build(count=2, init=0, supported=1, energy="nvmlDeviceGetTotalEnergyConsumption"):
        path = tmp_path / f"libnvml{count}{init}{supported}{len(energy)}.so"
        (tmp_path / "nvml.c").write_text(NVML)
        macros = {"COUNT": count, "INIT": init, "SUPPORTED": supported, "ENERGY": energy}
        defines = [f"-D{name}={value}" for name, value in macros.items()]
        command = [compiler, "-shared", "-fPIC", *defines, "-o", str(path), str(tmp_path / "nvml.c")]
        subprocess.run(command, check=True)
        return str(path)

    return build


def test_gpus_are_added_up(tmp_path, nvml):
    library = nvml()
    assert counter_availability(tmp_path, library)["nvml"] == "available: gpu 0, gpu 1"
    with measure_joules(tmp_path, library) as measured:
        pass
    assert measured.by_counter == pytest.approx({"gpu 0": 1.5, "gpu 1": 0.25})


def test_processors_and_gpus_together(tmp_path, nvml):
    file = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    with measure_joules(tmp_path, nvml(count=1)) as measured:
        file.write_text("500000")
    assert measured.by_counter == pytest.approx({"package-0": 0.5, "gpu 0": 1.5})
    assert measured.joules == pytest.approx(2.0)


def test_what_nvml_refuses_is_told(tmp_path, nvml):
    cases = {
        nvml(init=9): r"libnvml.*: Driver Not Loaded \(NVML error 9\)",
        nvml(supported=0): r"the energy counter of gpu 0: Not Supported \(NVML error 3\)",
        nvml(count=0): "knows no GPU",
        nvml(energy="nvmlOld"): "cannot be used .*nvmlDeviceGetTotalEnergyConsumption",
    }
    for library, says in cases.items():
        with pytest.raises(RuntimeError, match=f"nvml: .*{says}"):
            with measure_joules(tmp_path, library):
                pass


def test_env_says_which_counters_there_are():
    env = collect_env()
    assert env["energy"] == counter_availability() and set(env["energy"]) == {"rapl", "nvml"}
    assert env["energy"]["rapl"] in format_env(env)
