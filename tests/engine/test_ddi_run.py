"""ddi_run, the engine for the shell: what it prints and writes, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn
from built import Build, run
from tiny_plans import CLASSES, CORPUS, SIZE

import ddi
from ddi_kernels import engine

PLAN = CORPUS / "resnet_gated.ddi"
EXITS = CORPUS / "exits.ddi"
IMAGES = 5


@pytest.fixture
def images(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).standard_normal((IMAGES, 3, SIZE, SIZE), np.float32)
    np.save(tmp_path / "x.npy", x)
    return tmp_path / "x.npy"


def answer(build: Build, *arguments: str | Path) -> dict[str, Any]:
    finished = run(build.program, *arguments, "--json")
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def complaint(build: Build, *arguments: str | Path) -> str:
    """The one line that it says of a mistake."""
    finished = run(build.program, *arguments)
    assert finished.returncode == 1 and finished.stdout == ""
    (line,) = finished.stderr.splitlines()
    assert line.startswith("ddi_run: ")
    return line


def test_json_says_what_python_says(engine_build: Build, images: Path) -> None:
    pytest.importorskip("ddi_kernels._engine", reason="ddi_kernels._engine is not built")
    got = answer(engine_build, PLAN, "--input", images, "--batch", "2")
    x = np.load(images)
    logits, report = engine.load(PLAN, max_batch=IMAGES)(x, report=True)
    wanted = {"images": IMAGES, "batch": 2, "threads": 1, "calls": 3, "class": logits.argmax(1).tolist()}
    wanted |= {"weight_bytes": report.weight_bytes, "activation_bytes": report.activation_bytes}
    wanted |= {"macs": report.macs, "exit": [report.exit] * IMAGES, "isa": engine._module().cpu_isa()}
    times = {"p50_ms": got.pop("p50_ms"), "p99_ms": got.pop("p99_ms")}
    assert got == wanted
    assert 0 < times["p50_ms"] <= times["p99_ms"]


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("threads", [1, 2])
def test_output_is_what_python_computes(batch: int, threads: int, engine_build: Build, images: Path) -> None:
    pytest.importorskip("ddi_kernels._engine", reason="ddi_kernels._engine is not built")
    output = images.parent / "y.npy"
    got = answer(
        engine_build,
        PLAN,
        "--input",
        images,
        "--output",
        output,
        "--batch",
        str(batch),
        "--threads",
        str(threads),
    )
    assert got["threads"] == threads and got["calls"] == -(-IMAGES // batch)
    logits = np.load(output)
    assert logits.dtype == np.float32 and logits.shape == (IMAGES, CLASSES)
    assert np.array_equal(logits, engine.load(PLAN, max_batch=IMAGES)(np.load(images)))
    assert [path.name for path in images.parent.iterdir() if path.suffix == ".part"] == []


def test_one_image_without_a_batch(engine_build: Build, images: Path) -> None:
    np.save(images.parent / "one.npy", np.load(images)[0])
    one = answer(engine_build, PLAN, "--input", images.parent / "one.npy")
    many = answer(engine_build, PLAN, "--input", images)
    assert one["class"] == many["class"][:1] and one["macs"] == many["macs"][:1]


def test_no_images(engine_build: Build, images: Path) -> None:
    np.save(images, np.zeros((0, 3, SIZE, SIZE), np.float32))
    got = answer(engine_build, PLAN, "--input", images, "--output", images.parent / "y.npy")
    assert got["images"] == got["calls"] == 0 and got["class"] == []
    assert np.load(images.parent / "y.npy").shape == (0, CLASSES)


def test_repeat(engine_build: Build, images: Path) -> None:
    got = answer(engine_build, PLAN, "--input", images, "--batch", "2", "--repeat", "7")
    assert got["calls"] == 21 and got["images"] == IMAGES


def test_text_and_trace(engine_build: Build, images: Path) -> None:
    finished = run(engine_build.program, PLAN, "--input", images, "--trace")
    lines = finished.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:IMAGES]] == [f"image {i}" for i in range(IMAGES)]
    assert "5 calls of 1 on " in lines[IMAGES] and "median" in lines[IMAGES]
    steps = [line.split(" ms  ") for line in lines[IMAGES + 1 :]]
    assert all(float(ms) >= 0 for ms, _ in steps)
    assert [name for _, name in steps] == engine._module().Network.load(str(PLAN)).steps


def test_budgets(engine_build: Build, images: Path) -> None:
    worst = engine.load(EXITS).exit_worst_macs
    assert len(worst) == 3
    for exit, macs in enumerate(worst):
        got = answer(engine_build, EXITS, "--input", images, "--budget-macs", str(macs))
        assert got["exit"] == [exit] * IMAGES and max(got["macs"]) <= macs
    message = complaint(engine_build, EXITS, "--input", images, "--budget-macs", str(worst[0] - 1))
    assert "no exit fits into" in message and str(worst[0]) in message
    late = answer(engine_build, EXITS, "--input", images, "--budget-ms", "1e-9")
    assert late["exit"] == [0] * IMAGES
    early = answer(engine_build, EXITS, "--input", images, "--budget-ms", "1e6")
    assert early["exit"] == [2] * IMAGES


def test_joules(engine_build: Build, images: Path) -> None:
    energy = (3e-12, 2e-11, 0.0)
    worst = engine.load(EXITS).exit_worst_work
    for exit, (macs, weights, activations) in enumerate(worst):
        joules = energy[0] * macs + energy[1] * weights + energy[2] * activations
        model = ("--energy", ",".join(map(repr, energy)))
        got = answer(engine_build, EXITS, "--input", images, "--budget-joules", repr(joules), *model)
        assert got["exit"] == [exit] * IMAGES and got["joules"] == [joules] * IMAGES
        if exit == 0:
            less = repr(0.99 * joules)
            message = complaint(engine_build, EXITS, "--input", images, "--budget-joules", less, *model)
            assert "no exit fits into" in message and "joules" in message
    free = answer(engine_build, EXITS, "--input", images, "--energy", "0,0,0")
    assert free["joules"] == [0.0] * IMAGES and free["exit"] == [2] * IMAGES
    text = run(engine_build.program, EXITS, "--input", images, "--energy", "1,0,0").stdout
    assert f"MMAC, {worst[-1][0]:.6g} J\n" in text


def test_confidence(engine_build: Build, images: Path) -> None:
    network = engine.load(EXITS)
    for confidence in (1e-9, 0.34, 0.36, 0.4, 1):
        got = answer(engine_build, EXITS, "--input", images, "--confidence", str(confidence))
        expected = [network(x[None], confidence=confidence, report=True)[1] for x in np.load(images)]
        assert got["exit"] == [report.exit for report in expected]
        assert got["macs"] == [macs for report in expected for macs in report.macs]


def test_help(engine_build: Build) -> None:
    for option in ("--help", "-h"):
        finished = run(engine_build.program, option)
        assert finished.returncode == 0 and finished.stdout.startswith("usage: ddi_run PLAN --input")
        assert finished.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a plan and --input are needed"),
        ([PLAN], "a plan and --input are needed"),
        (["--input", "x.npy"], "a plan and --input are needed"),
        ([PLAN, PLAN, "--input", "x.npy"], "two plans"),
        ([PLAN, "--input"], "--input needs a value"),
        ([PLAN, "--colour", "red"], "unknown option --colour"),
        ([PLAN, "--colour"], "--colour needs a value, or is unknown"),
        ([PLAN, "--batch", "0"], "--batch is '0'; expected a positive number"),
        ([PLAN, "--batch", "1.5"], "--batch is '1.5'; expected a whole number"),
        ([PLAN, "--threads", "two"], "--threads is 'two'; expected a positive number"),
        ([PLAN, "--repeat", "-1"], "--repeat is '-1'; expected a positive number"),
        ([PLAN, "--budget-ms", "nan"], "--budget-ms is 'nan'; expected a positive number"),
        ([PLAN, "--budget-macs", "1e300"], "--budget-macs is '1e300'; expected a positive number"),
        ([PLAN, "--budget-joules", "-1"], "--budget-joules is '-1'; expected a positive number"),
        ([PLAN, "--input", "x.npy", "--budget-joules", "1"], "--budget-joules needs --energy"),
        ([PLAN, "--energy", "1,2"], "--energy is '1,2'; expected three finite numbers from 0 on"),
        ([PLAN, "--energy", "1,2,3,4"], "--energy is '1,2,3,4'; expected three"),
        ([PLAN, "--energy", "1,-2,3"], "--energy is '1,-2,3'; expected three"),
        ([PLAN, "--energy", "1,nan,3"], "--energy is '1,nan,3'; expected three"),
        ([PLAN, "--energy", "1,2,inf"], "--energy is '1,2,inf'; expected three"),
        ([PLAN, "--energy", ",,"], "--energy is ',,'; expected three"),
        ([PLAN, "--confidence", "0"], "--confidence is '0'; expected a positive number"),
        ([PLAN, "--confidence", "1.1"], "--confidence is '1.1'; expected at most 1"),
        (["/no/such.ddi", "--input", "x.npy"], "cannot open /no/such.ddi: No such file"),
        ([__file__, "--input", "x.npy"], "this is no plan"),
        ([PLAN, "--input", "/no/such.npy"], "/no/such.npy: cannot be opened"),
        ([PLAN, "--input", "/"], "/: cannot be read"),
    ],
)
def test_mistakes(arguments: list[str], message: str, engine_build: Build) -> None:
    assert message in complaint(engine_build, *arguments)


def test_sessions_out_of_reach(engine_build: Build, images: Path) -> None:
    many = ("--input", images, "--batch", "100000")
    assert "max_batch is 100000; expected 1 to 65536" in complaint(engine_build, PLAN, *many)
    many = ("--input", images, "--threads", "5000")
    assert "threads is 5000; expected 1 to 1024" in complaint(engine_build, PLAN, *many)


def test_loading_holds_a_plan_once(engine_build: Build, tmp_path: Path) -> None:
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 1024, 1), *(nn.Conv2d(1024, 1024, 1) for _ in range(12)), nn.Conv2d(1024, 3, 1)]
    image = torch.zeros(1, 3, 1, 1)
    ddi.freeze(nn.Sequential(*convs, nn.Flatten(), nn.Linear(3, 3)), image, tmp_path / "net.ddi")
    np.save(tmp_path / "x.npy", image.numpy())
    # KiB of addresses: for the file, for its weights packed, which are as large, and for all else.
    limit = int(3.5 * (tmp_path / "net.ddi").stat().st_size) // 1024
    limited = ("sh", "-c", 'ulimit -v "$0" && exec "$@"', str(limit), engine_build.program)
    finished = run(*limited, tmp_path / "net.ddi", "--input", tmp_path / "x.npy")
    assert finished.returncode == 0, finished.stderr


def test_output_that_cannot_be_written(engine_build: Build, images: Path) -> None:
    output = images.parent / "missing" / "y.npy"
    assert f"{output}: cannot be written" in complaint(
        engine_build, PLAN, "--input", images, "--output", output
    )


WRONG_SHAPE = f"expected images [N, 3, {SIZE}, {SIZE}]"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, SIZE, SIZE)), "holds <f8; expected '<f4' (numpy.float32)"),
        (np.zeros((2, 3, SIZE, SIZE), ">f4"), "holds >f4; expected '<f4'"),
        (np.zeros((2, 3, SIZE, SIZE), np.uint8), "holds |u1; expected '<f4'"),
        (np.zeros((2, 3, SIZE, SIZE), np.float32, order="F"), "Fortran order; save numpy.ascontiguousarray"),
        (np.zeros((2, 4, SIZE, SIZE), np.float32), WRONG_SHAPE),
        (np.zeros((3, SIZE, SIZE + 1), np.float32), WRONG_SHAPE),
        (np.zeros((1, 1, 3, SIZE, SIZE), np.float32), WRONG_SHAPE),
        (np.float32(1), WRONG_SHAPE),
        (np.zeros(3, [("a", "<f4")]), "expected '<f4'"),
    ],
    ids=["float64", "big endian", "bytes", "Fortran", "channels", "width", "dims", "scalar", "records"],
)
def test_other_arrays(array: Any, message: str, engine_build: Build, images: Path) -> None:
    np.save(images, array)
    line = complaint(engine_build, PLAN, "--input", images)
    assert str(images) in line and message in line


def test_arrays_cut_short(engine_build: Build, images: Path) -> None:
    whole = images.read_bytes()
    for size in (0, 5, 9, 11, 12, 60, 127, 128, 1000, len(whole) - 1):
        images.write_bytes(whole[:size])
        assert str(images) in complaint(engine_build, PLAN, "--input", images)


def test_arrays_of_absurd_shape(engine_build: Build, images: Path) -> None:
    for shape in (
        "(-1, 3, 8, 8)",
        "(2147483648, 3, 8, 8)",
        "(99999999999999999999,)",
        "(65536, 65536, 65536, 65536)",
    ):
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
        header += b" " * (118 - len(header) - 1) + b"\n"
        images.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        assert "is too large" in complaint(engine_build, PLAN, "--input", images)


def test_headers_that_are_not_numpys(engine_build: Build, images: Path) -> None:
    whole = images.read_bytes()
    for old, new in (
        (b"descr", b"desks"),
        (b"'shape'", b"'shade'"),
        (b"fortran", b"cobol__"),
        (b"), }", b"   }"),
    ):
        assert old in whole
        images.write_bytes(whole.replace(old, new, 1))
        assert "its header is not NumPy's" in complaint(engine_build, PLAN, "--input", images)
