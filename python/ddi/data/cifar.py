"""CIFAR-10 and CIFAR-100, read from the unpacked "python version" archive in a user's folder.

Its files are pickles, and a pickle may run any code: the unpickler here builds uint8 arrays and
plain containers only. They hold the images in planar order already, so reading is a reshape.
https://www.cs.toronto.edu/~kriz/cifar.html
"""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from .base import Dataset, Split
from .draw import SIDE, epoch_stream

_TAG = 10
_NUM_VALIDATION = 5_000
_PAD = 4


@dataclass(frozen=True)
class _Layout:
    """Where an archive keeps its images, and what is known of them."""

    folder: str
    train_files: tuple[str, ...]
    test_file: str
    label_key: bytes
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_LAYOUTS = {
    "cifar10": _Layout(
        "cifar-10-batches-py",
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        "test_batch",
        b"labels",
        10,
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
    ),
    "cifar100": _Layout(
        "cifar-100-python",
        ("train",),
        "test",
        b"fine_labels",
        100,
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
    ),
}


class Cifar(Dataset):
    """CIFAR-10 or CIFAR-100: validation is the last 5,000 of the published training images.

    Training images are cropped at random after padding with 4 black pixels on each side, and
    mirrored half the time.

    Args:
        name: "cifar10" or "cifar100".
        root: the archive's folder, or the one that holds it.

    Raises:
        FileNotFoundError: root has no such folder, or the folder lacks a file.
    """

    def __init__(self, name: str, root: Path) -> None:
        super().__init__()
        self._layout = _LAYOUTS[name]
        self.name = name
        self.num_classes = self._layout.num_classes
        self.mean = self._layout.mean
        self.std = self._layout.std
        self._folder = _find_folder(name, root, self._layout)
        self._published: Split | None = None

    def train(self, seed: int, epoch: int) -> Split:
        stream = epoch_stream(self.name, _TAG, seed, epoch)
        published = self._published_train()
        count = len(published) - _NUM_VALIDATION
        order = stream.permutation(count)
        top, left = stream.below(2 * _PAD + 1, 2, count)
        mirrored = stream.below(2, count) == 1
        images = _augment(published.images.numpy(), order, top, left, mirrored)
        return Split(torch.from_numpy(images), published.labels[torch.from_numpy(order)])

    def _load(self, which: str) -> Split:
        if which == "test":
            return Split(*_read_batch(self._folder / self._layout.test_file, self._layout))
        published = self._published_train()
        return Split(published.images[-_NUM_VALIDATION:], published.labels[-_NUM_VALIDATION:])

    def _published_train(self) -> Split:
        """All training images of the archive, the validation images among them."""
        if self._published is None:
            files = [self._folder / name for name in self._layout.train_files]
            images, labels = zip(*(_read_batch(path, self._layout) for path in files), strict=True)
            split = Split(torch.cat(images), torch.cat(labels))
            if len(split) <= _NUM_VALIDATION:
                raise ValueError(
                    f"{self.name}: {self._folder} holds {len(split)} training images; more than "
                    f"{_NUM_VALIDATION} are needed, the last of which are for validation; unpack "
                    "the archive again"
                )
            self._published = split
        return self._published


def _find_folder(name: str, root: Path, layout: _Layout) -> Path:
    for folder in (root, root / layout.folder):
        if (folder / layout.test_file).is_file():
            missing = [f for f in layout.train_files if not (folder / f).is_file()]
            if missing:
                raise FileNotFoundError(
                    f"{name}: {folder} lacks {', '.join(missing)}; unpack the archive again"
                )
            return folder
    raise FileNotFoundError(
        f"{name}: argument root is {str(root)!r}, where neither {layout.test_file!r} nor "
        f"{layout.folder + '/' + layout.test_file!r} is a file; nothing is downloaded: unpack the "
        "'python version' archive of https://www.cs.toronto.edu/~kriz/cifar.html there"
    )


def _augment(
    images: NDArray[np.uint8],
    order: NDArray[np.int64],
    top: NDArray[np.int64],
    left: NDArray[np.int64],
    mirrored: NDArray[np.bool_],
) -> NDArray[np.uint8]:
    """uint8[len(order), 3, 32, 32]: images[order], padded, cropped at (top, left), mirrored."""
    padded = np.pad(images, ((0, 0), (0, 0), (_PAD, _PAD), (_PAD, _PAD)))
    # [N, 3, 9, 9, 32, 32], a view: every possible crop of every image.
    crops = sliding_window_view(sliding_window_view(padded, SIDE, axis=2), SIDE, axis=3)
    out = crops[order, :, top, left]
    out[mirrored] = out[mirrored, ..., ::-1]
    return out


class _PickledDtype:
    """Stands in for numpy.dtype: remembers what it was asked to be."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like, which one-byte values do not have."""


class _PickledArray:
    """Stands in for numpy.ndarray, whose own __setstate__ trusts its input."""

    def __init__(self, *_: Any) -> None:
        self.pixels = np.empty((0,), dtype=np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _PickledDtype) or dtype.code not in (b"u1", "u1"):
            raise pickle.UnpicklingError("an array in it is not of uint8")
        order: Literal["C", "F"] = "F" if fortran else "C"
        self.pixels = np.frombuffer(raw, dtype=np.uint8).reshape(shape, order=order)


class _ArrayUnpickler(pickle.Unpickler):
    """Builds uint8 arrays and plain containers; refuses to look up anything else."""

    _ALLOWED = {
        ("numpy", "ndarray"): _PickledArray,
        ("numpy", "dtype"): _PickledDtype,
        ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return self._ALLOWED[module, name]


def _read_batch(path: Path, layout: _Layout) -> tuple[Tensor, Tensor]:
    """Images uint8[N, 3, 32, 32] and labels int64[N] of one file of the archive."""
    try:
        with path.open("rb") as file:
            # The archive was pickled by Python 2: strings and pixels alike come as bytes.
            batch = _ArrayUnpickler(file, encoding="bytes").load()
        pixels, labels = _check_batch(batch, layout)
    # A damaged pickle can make the unpickler raise almost anything.
    except Exception as error:
        raise ValueError(
            f"{path} is not a readable CIFAR file ({type(error).__name__}: {error}); it may be "
            "truncated or foreign: unpack the archive again"
        ) from error
    images = pixels.reshape(-1, 3, SIDE, SIDE)
    return torch.from_numpy(images.copy()), torch.from_numpy(labels)


def _check_batch(batch: Any, layout: _Layout) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if not isinstance(batch, dict) or not {b"data", layout.label_key} <= batch.keys():
        raise ValueError(f"it has no entries 'data' and {layout.label_key.decode()!r}")
    data, labels = batch[b"data"], np.asarray(batch[layout.label_key])
    row = 3 * SIDE * SIDE
    if not isinstance(data, _PickledArray) or data.pixels.shape[1:] != (row,):
        raise ValueError(f"'data' is not a uint8 array of shape [N, {row}]")
    pixels = data.pixels
    if labels.dtype.kind != "i" or labels.shape != pixels.shape[:1]:
        raise ValueError(f"there are not exactly {len(pixels)} integer labels")
    if len(labels) and not 0 <= labels.min() <= labels.max() < layout.num_classes:
        raise ValueError(f"a label is outside 0 .. {layout.num_classes - 1}")
    return pixels, labels.astype(np.int64)
