"""CIFAR files: read as published, refused when hostile, truncated or foreign."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from ddi.data import cifar as cifar_module
from ddi.data import get_dataset

ROW = 3 * 32 * 32
VALIDATION = 20


def python2_batch(pixels: np.ndarray, labels: list[int], label_key: bytes = b"labels") -> bytes:
    """What Python 2's cPickle writes for {"data": pixels, label_key: labels}."""

    def string(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    def integer(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    raw = pixels.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n"
        + (b"cnumpy\nndarray\n" + integer(0) + b"\x85" + string(b"b") + b"\x87R")
        + (b"(" + integer(1) + b"".join(map(integer, pixels.shape)) + b"\x86")
        + (b"cnumpy\ndtype\n" + string(b"u1") + integer(0) + integer(1) + b"\x87R")
        + (b"(" + integer(3) + string(b"|") + b"NNN" + integer(-1) * 2 + integer(0) + b"tb")
        + (b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb")
    )
    numbers = b"](" + b"".join(map(integer, labels)) + b"e"
    return b"\x80\x02}(" + string(b"data") + array + string(label_key) + numbers + b"u."


def make_pixels(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, ROW), dtype=np.uint8)


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five training files of 12 images each and a test file of 7, in CIFAR-10's format."""
    monkeypatch.setattr(cifar_module, "_NUM_VALIDATION", VALIDATION)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for i in range(1, 6):
        labels = [(i + j) % 10 for j in range(12)]
        (folder / f"data_batch_{i}").write_bytes(python2_batch(make_pixels(12, i), labels))
    (folder / "test_batch").write_bytes(python2_batch(make_pixels(7, 6), [9, 8, 7, 6, 5, 4, 3]))
    return folder


def test_our_pickle_is_what_numpy_reads():
    pixels = make_pixels(2, 0)
    batch = pickle.loads(python2_batch(pixels, [1, 2]), encoding="bytes")
    assert np.array_equal(batch[b"data"], pixels) and batch[b"labels"] == [1, 2]


def test_splits_hold_the_published_images_in_order(cifar10: Path):
    data = get_dataset("cifar10", cifar10.parent)
    test, validation = data.test(), data.validation()
    assert torch.equal(test.images, torch.from_numpy(make_pixels(7, 6)).reshape(7, 3, 32, 32))
    assert test.labels.tolist() == [9, 8, 7, 6, 5, 4, 3]
    last = np.concatenate([make_pixels(12, 4)[4:], make_pixels(12, 5)])
    assert np.array_equal(validation.images.numpy().reshape(VALIDATION, ROW), last)
    assert test.difficulty is None and test.scan is None
    assert (data.num_classes, test.images.dtype, test.labels.dtype) == (
        10,
        torch.uint8,
        torch.int64,
    )


def test_root_may_be_the_folder_itself(cifar10: Path):
    inside = get_dataset("cifar10", str(cifar10)).test()
    assert torch.equal(inside.images, get_dataset("cifar10", cifar10.parent).test().images)


def test_train_images_are_shifted_and_mirrored_published_ones(cifar10: Path):
    published = np.concatenate([make_pixels(12, i) for i in range(1, 6)])[:40]
    published = published.reshape(40, 3, 32, 32)
    labels = [(i + j) % 10 for i in range(1, 6) for j in range(12)][:40]
    padded = np.pad(published, ((0, 0), (0, 0), (4, 4), (4, 4)))
    found: dict[int, tuple[int, int, bool]] = {}
    train = get_dataset("cifar10", cifar10).train(0, 0)
    for image, label in zip(train.images.numpy(), train.labels.tolist(), strict=True):
        for top, left, mirrored in np.ndindex(9, 9, 2):
            crop = padded[:, :, top : top + 32, left : left + 32]
            crop = crop[..., ::-1] if mirrored else crop
            for source in np.flatnonzero((crop == image).all((1, 2, 3))):
                assert labels[source] == label
                found[int(source)] = (top, left, bool(mirrored))
    assert sorted(found) == list(range(40))
    assert len({shift[:2] for shift in found.values()}) > 20
    assert 5 < sum(shift[2] for shift in found.values()) < 35


def test_train_is_keyed_by_seed_and_epoch(cifar10: Path):
    data = get_dataset("cifar10", cifar10)
    first = data.train(3, 1)
    again = get_dataset("cifar10", cifar10).train(3, 1)
    assert torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, data.train(3, 2).images)
    assert not torch.equal(first.images, data.train(4, 1).images)
    with pytest.raises(ValueError, match="seed=0, epoch=-1"):
        data.train(0, -1)


def test_cifar100_reads_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cifar_module, "_NUM_VALIDATION", 3)
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    train, test = [0, 99, 50, 7, 8], [42, 1]
    (folder / "train").write_bytes(python2_batch(make_pixels(5, 1), train, b"fine_labels"))
    (folder / "test").write_bytes(python2_batch(make_pixels(2, 2), test, b"fine_labels"))
    data = get_dataset("cifar100", tmp_path)
    assert data.num_classes == 100
    assert data.test().labels.tolist() == test
    assert data.validation().labels.tolist() == [50, 7, 8]
    assert sorted(data.train(0, 0).labels.tolist()) == [0, 99]


class _Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_hostile_file_runs_no_code(cifar10: Path, tmp_path: Path, protocol: int):
    marker = tmp_path / "owned"
    (cifar10 / "test_batch").write_bytes(pickle.dumps(_Hostile(marker), protocol=protocol))
    with pytest.raises(ValueError, match="mkdir"):
        get_dataset("cifar10", cifar10).test()
    assert not marker.exists()


@pytest.mark.parametrize("kept", [0, 1, 40, 1000, -1])
def test_truncated_file_is_refused(cifar10: Path, kept: int):
    whole = (cifar10 / "test_batch").read_bytes()
    (cifar10 / "test_batch").write_bytes(whole[:kept])
    with pytest.raises(ValueError, match="test_batch is not a readable CIFAR file.*truncated"):
        get_dataset("cifar10", cifar10).test()


FOREIGN = {
    "text": (b"<html>404 not found</html>", "not a readable CIFAR file"),
    "list": (pickle.dumps([1, 2]), "no entries 'data' and 'labels'"),
    "other_keys": (pickle.dumps({b"data": b""}), "no entries 'data' and 'labels'"),
    "data_not_array": (pickle.dumps({b"data": b"", b"labels": []}), "not a uint8 array of shape"),
    "narrow_rows": (python2_batch(np.zeros((1, 9), np.uint8), [0]), r"shape \[N, 3072\]"),
    "label_missing": (python2_batch(make_pixels(2, 0), [0]), "not exactly 2 integer labels"),
    "label_too_large": (python2_batch(make_pixels(2, 0), [0, 10]), r"outside 0 \.\. 9"),
    "label_negative": (python2_batch(make_pixels(2, 0), [0, -1]), r"outside 0 \.\. 9"),
    "float_pixels": (
        python2_batch(make_pixels(1, 0), [0]).replace(b"U\x02u1", b"U\x02f8"),
        "not of uint8",
    ),
    "object_pixels": (
        python2_batch(make_pixels(1, 0), [0]).replace(b"U\x02u1", b"U\x02O8"),
        "not of uint8",
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_file_is_refused(cifar10: Path, case: str):
    content, message = FOREIGN[case]
    (cifar10 / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        get_dataset("cifar10", cifar10).test()


def test_missing_folder_and_missing_file_are_named(cifar10: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="'nowhere' is not|nowhere.*nothing is downloaded"):
        get_dataset("cifar10", tmp_path / "nowhere")
    (cifar10 / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match="lacks data_batch_3"):
        get_dataset("cifar10", cifar10)


def test_too_few_training_images_are_refused(cifar10: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cifar_module, "_NUM_VALIDATION", 60)
    with pytest.raises(ValueError, match="holds 60 training images; more than 60 are needed"):
        get_dataset("cifar10", cifar10).train(0, 0)
