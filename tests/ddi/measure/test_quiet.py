"""Trainings pause while something is measured, and nobody waits for one that was killed."""

import os
import subprocess
import sys
import threading
import time

import pytest

from ddi.measure import quiet

pytest.importorskip("fcntl")

HOLD = """
import sys, time, tempfile
tempfile.tempdir = sys.argv[2]
from ddi.measure import quiet
with getattr(quiet, sys.argv[1])():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Lock files of this test's own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return str(tmp_path)


def holder(kind, folder):
    """A process inside of `kind`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, kind, folder], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    return process


def seconds_until_entered(kind, released_by, after):
    """How long this process waits to enter, while another one is killed after so many seconds."""
    killer = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({after})"])
    start = time.perf_counter()
    thread = threading.Thread(target=lambda: (killer.wait(), released_by.kill()))
    thread.start()
    with getattr(quiet, kind)():
        waited = time.perf_counter() - start
    thread.join()
    released_by.wait()
    return waited


@pytest.mark.parametrize(("held", "wants"), [("measuring", "working"), ("working", "measuring")])
def test_one_waits_for_the_other_until_it_is_gone(folder, held, wants):
    assert seconds_until_entered(wants, holder(held, folder), 0.3) >= 0.3


def test_steps_run_side_by_side(folder):
    other = holder("working", folder)
    with quiet.working():
        assert other.poll() is None  # it is still inside
    other.kill()
    other.wait()


def test_a_waiting_measurement_goes_before_the_next_step(folder):
    """Else trainings whose steps overlap would never let it in."""
    step = holder("working", folder)
    waiting = subprocess.Popen([sys.executable, "-c", HOLD, "measuring", folder], stdout=subprocess.PIPE)
    time.sleep(1.5)  # until it waits
    late = subprocess.Popen([sys.executable, "-c", HOLD, "working", folder], stdout=subprocess.PIPE)
    time.sleep(1.5)
    step.kill()
    assert waiting.stdout.readline() == b"held\n"
    waiting.kill()
    assert late.stdout.readline() == b"held\n"
    for process in (step, waiting, late):
        process.kill()
        process.wait()


@pytest.mark.parametrize("module", ["ddi", "bench"])
def test_commands_that_measure_wait_for_a_step_to_end(folder, module):
    """`python -m` of each, on arguments that fail as soon as it has waited."""
    arguments = {
        "ddi": ["run", "no-such-plan.ddi"],
        "bench": ["model", "--suite", "engine", "--cases", "none"],
    }
    step = holder("working", folder)
    command = [sys.executable, "-m", module, *arguments[module]]
    waiting = subprocess.Popen(command, env=os.environ | {"TMPDIR": folder}, stderr=subprocess.PIPE)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(6)
    step.kill()
    step.wait()
    assert b"error" in waiting.communicate(timeout=60)[1] and waiting.returncode == 2


def test_nobody_waits_without_flock(folder, monkeypatch):
    monkeypatch.setattr(quiet, "fcntl", None)
    with quiet.measuring(), quiet.working():
        assert not os.listdir(folder)
