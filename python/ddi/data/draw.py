"""Tools to draw images from scikit-learn's digit scans: random numbers, scan split, placement.

Everything is integer arithmetic on numpy arrays over all samples at once: fast without a Python
loop per image, and equal on every CPU, since integer sums depend on neither order nor rounding.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

SIDE = 32
SPLITS = ("train", "validation", "test")
NUM_VALIDATION = 200
NUM_TEST = 500
_ONE = 64  # fixed-point unit of a position on the glyph's grid

Ints = NDArray[np.int64]


class Stream:
    """Random integers keyed by a tuple, made from the raw output of PCG64.

    numpy promises that raw output never changes, but not so for `Generator.integers` and its kin.

    Args:
        key: non-negative integers, for instance (seed, epoch, split).
    """

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def below(self, bound: ArrayLike, *shape: int) -> Ints:
        """int64[shape], uniform in 0 .. bound - 1; `bound` broadcasts and is below 2**31."""
        raw = self._bits.random_raw(shape) >> np.uint64(32)
        return (raw * np.asarray(bound, dtype=np.uint64) >> np.uint64(32)).astype(np.int64)

    def permutation(self, n: int) -> Ints:
        """int64[n], the numbers 0 .. n - 1 in random order."""
        return np.argsort(self._bits.random_raw(n), kind="stable").astype(np.int64)

    def triangular(self, *shape: int) -> NDArray[np.int32]:
        """int32[shape] in -255 .. 255, mean 0, deviation 104.5: two bytes each, summed."""
        count = int(np.prod(shape))
        raw = self._bits.random_raw(-(-count // 4)).astype("<u8").view("<u2")[:count]
        pairs = raw.astype(np.int32).reshape(shape)
        return (pairs & 255) + (pairs >> 8) - 255


def epoch_stream(name: str, tag: int, seed: int, epoch: int) -> Stream:
    """The stream of one training epoch; `tag` keeps the data sets' streams apart."""
    if seed < 0 or epoch < 0:
        raise ValueError(f"{name}.train: got seed={seed}, epoch={epoch}; allowed: integers >= 0")
    return Stream(seed, epoch, SPLITS.index("train"), tag)


def fixed_stream(which: str, tag: int) -> Stream:
    """The stream of the validation or the test split."""
    return Stream(0, 0, SPLITS.index(which), tag)


@lru_cache(maxsize=1)
def load_scans() -> tuple[NDArray[np.int32], Ints]:
    """Scikit-learn's digit scans: int32[1797, 8, 8] with values 0 .. 16, and labels int64[1797]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(missing_extra("scikit-learn")) from error
    digits = load_digits()
    return digits.images.astype(np.int32), digits.target.astype(np.int64)


def missing_extra(package: str) -> str:
    """The message of an ImportError for an optional package of this module."""
    return f"ddi.data needs {package} to draw digits: pip install ddi-kernels[data]"


@lru_cache(maxsize=1)
def split_scans() -> dict[str, Ints]:
    """Scan indices of each split: 1,097 train, 200 validation, 500 test; classes evenly spread."""
    labels = load_scans()[1]
    order = Stream(1797).permutation(len(labels))
    rest = order[np.argsort(labels[order], kind="stable")]
    parts = {}
    for name, size in (("test", NUM_TEST), ("validation", NUM_VALIDATION)):
        # Every (len/size)-th of the scans sorted by class: exactly `size`, classes in proportion.
        taken = np.diff(np.arange(len(rest) + 1) * size // len(rest)) > 0
        parts[name], rest = np.sort(rest[taken]), rest[~taken]
    return {"train": np.sort(rest), **parts}


def spread(stream: Stream, ids: Ints, n: int) -> Ints:
    """int64[n]: the scans `ids` in random order, each as often as any other (give or take one)."""
    return ids[stream.permutation(n) % len(ids)]


def place(glyphs: NDArray[np.int32], size: Ints, top: Ints, left: Ints) -> NDArray[np.int32]:
    """Enlarge glyphs bilinearly and put each on an empty canvas.

    Args:
        glyphs: int32[N, K, K] with values 0 .. 16.
        size: int64[N], the side of the enlarged glyph.
        top: int64[N], its first row. left: int64[N], its first column.

    Returns:
        int32[N, 32, 32], opacity in 0 .. 256; 0 outside the glyph.
    """
    rows = _taps(glyphs.shape[-1], size, top)
    columns = _taps(glyphs.shape[-1], size, left)
    # Largest sum: 16 * 64 * 64 = 256 << 8.
    return (rows @ glyphs @ columns.transpose(0, 2, 1) + 128) >> 8


def _taps(source: int, size: Ints, start: Ints) -> NDArray[np.int32]:
    """int32[N, 32, source]: bilinear weights (sum 64) of each canvas row; 0 outside the glyph."""
    row = (np.arange(SIDE) - start[:, None]).astype(np.int32)
    side = size[:, None].astype(np.int32)
    position = ((2 * row + 1) * source - side) * _ONE // (2 * side)
    position = np.clip(position, 0, _ONE * (source - 1))
    distance = np.abs(position[..., None] - _ONE * np.arange(source, dtype=np.int32))
    inside = (row >= 0) & (row < side)
    return np.maximum(_ONE - distance, 0) * inside[..., None]


def blend(under: NDArray[np.int32], over: ArrayLike, opacity: ArrayLike) -> NDArray[np.int32]:
    """`over` laid on `under`; opacity 0 .. 256."""
    return under + (((np.asarray(over) - under) * np.asarray(opacity) + 128) >> 8)
