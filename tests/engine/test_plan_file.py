"""The file that a network is frozen to: its layout, and what the engine says of one that is malformed."""

from __future__ import annotations

import os
import re
import struct
import zlib
from pathlib import Path

import pytest
import torch
from frozen_models import freeze
from tiny_plans import CORPUS, PLANS, SIZE, tiny_model, tiny_plan
from tolerances import assert_close

import ddi
from ddi.files import write_atomic
from ddi.freeze.plan import BITS, IMAGE, NONE, VECTOR, PlanWriter
from ddi_kernels import engine

_engine = pytest.importorskip("ddi_kernels._engine", reason="ddi_kernels._engine is not built")

HEADER = struct.Struct("<8sIIQQQQI8xI")
MAGIC = b"\x89DDI\r\n\x1a\n"


@pytest.fixture(scope="module")
def plan() -> bytes:
    return (CORPUS / "resnet_gated.ddi").read_bytes()


def settled(plan: bytes) -> bytes:
    """The plan with the checksums that its bytes have."""
    head = plan[:48] + struct.pack("<I8x", zlib.crc32(plan[64:]))
    return head + struct.pack("<I", zlib.crc32(head)) + plan[64:]


def read_error(plan: bytes) -> str:
    with pytest.raises(ValueError) as error:
        _engine.Network.read(plan)
    return str(error.value)


def tables(plan: bytes) -> dict[str, list[tuple[int, ...]]]:
    """The tables at the start of the graph, decoded as the format says, and the word behind them."""
    count = HEADER.unpack_from(plan)[4]
    words = list(struct.unpack_from(f"<{count}q", plan, 64))
    at, found = 0, {}
    for name, width in (("buffers", 4), ("values", 3), ("constants", 3), ("names", 2)):
        rows, at = words[at], at + 1
        found[name] = [tuple(words[at + i * width : at + (i + 1) * width]) for i in range(rows)]
        at += rows * width
    return {**found, "rest": [tuple(words[at:])]}


def test_header_and_tables_are_as_documented(plan: bytes) -> None:
    magic, version, dtype, size, words, offset, blob, body_crc, head_crc = HEADER.unpack_from(plan)
    assert (magic, version, dtype, size) == (MAGIC, 1, 0, len(plan))
    assert HEADER.size == 64 and plan[52:60] == bytes(8)
    assert offset % 64 == 0 and offset >= 64 + 8 * words and offset + blob == size
    assert body_crc == zlib.crc32(plan[64:]) and head_crc == zlib.crc32(plan[:60])
    found = tables(plan)
    (metadata, image, steps, *_) = found["rest"][0]
    first, length = found["names"][metadata]
    assert plan[offset + first :][:length].startswith(b'{"model": "ResNet"')
    buffer, channel, channels = found["values"][image]
    assert found["buffers"][buffer] == (0, 3, SIZE, SIZE) and (channel, channels) == (0, 3)
    kinds = {kind for kind, *_ in found["buffers"]}
    assert kinds == {0, 1, 2, 3}  # images, vectors, bits, the LSTM's state
    assert all(at % 64 == 0 and at + 4 * numel <= blob for _, at, numel in found["constants"])
    assert steps == len(_engine.Network.read(plan).steps)


def test_weights_are_little_endian_and_unpacked(tmp_path: Path) -> None:
    weight = torch.arange(12.0).reshape(4, 3, 1, 1)
    conv = torch.nn.Conv2d(3, 4, 1, bias=False)
    conv.weight.data.copy_(weight)
    model = torch.nn.Sequential(conv, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    ddi.freeze(model.eval(), torch.zeros(1, 3, 2, 2), tmp_path / "net.ddi")
    assert weight.numpy().astype("<f4").tobytes() in (tmp_path / "net.ddi").read_bytes()


@pytest.mark.parametrize("name", PLANS)
def test_freezing_twice_gives_the_bytes_of_the_corpus(name: str) -> None:
    # Up to the version in the metadata; `python tests/engine/tiny_plans.py` brings the corpus up to date.
    plan = tiny_plan(name)
    assert plan == tiny_plan(name)
    assert tables(plan)["buffers"] == tables((CORPUS / f"{name}.ddi").read_bytes())["buffers"]


def test_the_corpus_has_every_kind_of_step() -> None:
    codes: set[int] = set()
    for name in PLANS:
        (_, _, steps, *words) = tables((CORPUS / f"{name}.ddi").read_bytes())["rest"][0]
        for _ in range(steps):
            code, _, length = words[:3]
            codes.add(code)
            words = words[3 + length :]
    assert codes == set(range(1, 11))


@pytest.mark.parametrize("name", [name for name, (_, dtype) in PLANS.items() if dtype == torch.float32])
@torch.no_grad()
def test_tiny_networks_compute_what_their_models_do(name: str, tmp_path: Path) -> None:
    model, x = tiny_model(name), torch.randn(2, 3, SIZE, SIZE)
    assert_close(freeze(model, SIZE, tmp_path)(x), model(x))


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.ddi")), ids=lambda path: path.stem)
def test_the_engine_survives_the_corpus(path: Path) -> None:
    if path.stem.startswith("crash_"):  # inputs that once broke something
        with pytest.raises(ValueError, match="^(plan|run): "):
            engine.load(path, max_batch=2)
    else:
        x = torch.randn(2, 3, SIZE, SIZE)
        assert engine.load(path, max_batch=2)(x).isfinite().all()


def test_truncated_anywhere(plan: bytes, tmp_path: Path) -> None:
    _, _, _, _, words, offset, _, _, _ = HEADER.unpack_from(plan)
    sections = {0: "less than a header", 63: "less than a header", 64: "its header says"}
    sections |= {64 + 8 * at: "its header says" for at in range(0, words, 97)}
    sections |= {at: "its header says" for at in (offset - 1, offset, offset + 100, len(plan) - 1)}
    path = tmp_path / "net.ddi"
    for size, message in sections.items():
        path.write_bytes(plan[:size])
        with pytest.raises(ValueError, match=f"the file has {size} bytes.*{message}"):
            engine.load(path)


def test_a_graph_that_ends_early_says_where(plan: bytes) -> None:
    # Every word less is a plan of its own, whose checksums are right.
    words = HEADER.unpack_from(plan)[4]
    messages = set()
    for count in range(words):
        shorter = settled(plan[:24] + struct.pack("<Q", count) + plan[32:])
        message = read_error(shorter)
        assert message.startswith("plan: ")
        messages.add(re.sub(r"\d+", "N", message))
    assert "plan: the graph ends before number of buffers" in messages
    assert len(messages) > 20


def test_any_byte_of_the_header_matters(plan: bytes) -> None:
    for at in range(64):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(plan)
            damaged[at] ^= flip
            message = read_error(bytes(damaged))
            wanted = "this is no plan" if at < 8 else "of the format" if at < 12 else "header is damaged"
            assert wanted in message, f"byte {at}: {message}"


def test_any_byte_of_the_contents_matters(plan: bytes) -> None:
    for at in range(64, len(plan), 61):
        damaged = bytearray(plan)
        damaged[at] ^= 0x10
        assert "checksum of its contents differs" in read_error(bytes(damaged))


def test_sizes_in_the_header_are_not_trusted(plan: bytes) -> None:
    for at in (24, 32, 40):  # words, offset and bytes of the blob
        for value in (0, 1, 2**31, 2**61, 2**63 - 1, 2**63, 2**64 - 1):
            message = read_error(settled(plan[:at] + struct.pack("<Q", value) + plan[at + 8 :]))
            assert message.startswith("plan: ")


def test_another_version_says_which(plan: bytes) -> None:
    other = settled(plan[:8] + struct.pack("<I", 7) + plan[12:])
    assert "version 7 of the format; this build reads version 1, freeze the network again" in read_error(
        other
    )


def test_another_type_is_refused(plan: bytes) -> None:
    assert "data type is unknown" in read_error(settled(plan[:12] + struct.pack("<I", 9) + plan[16:]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file has 0 bytes, less than a header"),
        (b"PK\x03\x04" + bytes(100), "this is no plan: its first bytes differ"),
        (MAGIC.replace(b"\r\n", b"\n") + bytes(100), "this is no plan: its first bytes differ"),
    ],
    ids=["empty", "zip", "line ends"],
)
def test_other_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        engine.load(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        engine.load(tmp_path / "missing.ddi")
    with pytest.raises(IsADirectoryError):
        engine.load(tmp_path)


def test_an_interrupted_write_leaves_the_old_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.ddi"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_atomic(path, bytes(1000))
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("net.ddi", b"old")]


def written(*steps: tuple[str, list[int]], size: int = 4, kernel: int = 1, channels: int = 1) -> bytes:
    """A plan of steps between value 0, the image, value 1, another like it, and value 2, a vector.

    Value 3 is bit 1 of two, constant 0 is a weight of kernel x kernel.
    """
    plan = PlanWriter(torch.float32)
    for _ in range(2):
        plan.value(plan.buffer(IMAGE, channels, size, size))
    plan.value(plan.buffer(VECTOR, channels))
    plan.value(plan.buffer(BITS, 2), 1, 1)
    plan.constant(torch.ones(channels, channels, kernel, kernel))
    mean = plan.step("mean", "mean", [1, 2, NONE])
    trunk = [plan.step(code, code, words) for code, words in steps]
    return plan.to_bytes("{}", 0, [*trunk, mean], [("network", len(trunk) + 1, [], 2)])


def conv(kernel: int = 1, padding: int = 0, channels: int = 1) -> list[int]:
    return [channels, kernel, kernel, 1, 1, padding, padding, 1, 1, 1, 0, NONE]


def conv_step(kernel: int = 1, padding: int = 0, channels: int = 1) -> tuple[str, list[int]]:
    return "conv2d", [0, 1, NONE, NONE, 0, *conv(kernel, padding, channels), NONE, NONE]


def test_a_plan_written_by_hand_runs() -> None:
    network = _engine.Network.read(written(conv_step(3, 1), kernel=3))
    assert network.steps == ["conv2d", "mean"] and network.exit_worst_work == [(9 * 16, 4 * 9, 4 * 32)]
    assert _engine.Session(network, 2, 1).memory_bytes > 0


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            written(("linear", [2, 2, 0, *conv(padding=3)])),
            "a linear layer has a kernel, padding or a stride",
        ),
        (
            written(("block", [0, 1, 3, NONE, NONE, 2, NONE, 1, *conv(), *conv(), 0])),
            "keep is a part of a buffer",
        ),
        (written(conv_step(3, 2), kernel=3), "the output's size is not the operation's"),
        (written(conv_step(9, 2), kernel=9), "the kernel is larger than its image"),
        (
            written(*[conv_step(63, 31)] * 2000, kernel=63, size=64),
            "and those before it use the same constants too often",
        ),
        (
            written(conv_step(63, 31, 8), kernel=63, size=2**14 - 1, channels=8),
            "has too many multiply-adds",
        ),
        (written(conv_step(), size=2**15 + 2**14), "buffer 0 is too large"),
    ],
    ids=["linear", "keep", "size", "kernel", "constants", "multiply-adds", "image"],
)
def test_plans_that_would_overrun(plan: bytes, message: str) -> None:
    assert message in read_error(plan)


def test_names_of_any_bytes_are_told_as_text() -> None:
    plan = written(("linear", [2, 2, 9, *conv()])).replace(b"linear", b"l\xff\x1b[1m")
    message = read_error(settled(plan))
    assert message == "plan: step 0 (l??[1m) activation is 9; expected 0 to 5"


def test_absurd_memory_is_refused() -> None:
    network = _engine.Network.read(written(conv_step(), size=2**14))  # images of 1 GiB
    with pytest.raises(
        ValueError, match="a session for 65536 images would take .* more than this machine has"
    ):
        _engine.Session(network, 2**16, 1)
