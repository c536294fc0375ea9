"""`scene_digits`: a digit at random scale and place over a crop of a photograph, from easy to hard.

Each scene has a difficulty d, known and uniform in [0, 1]: from a large digit of strong contrast on
plain ground (0) to a smaller, fading one over a photograph, with clutter and noise (1). All scenes
of a chunk are drawn together by integer array arithmetic (see draw.py): seconds for 12,000.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from .base import Dataset, Split, verify_checksum
from .draw import (
    SIDE,
    Ints,
    Stream,
    blend,
    epoch_stream,
    fixed_stream,
    load_scans,
    missing_extra,
    place,
    split_scans,
    spread,
)


@dataclass(frozen=True)
class SceneConfig:
    """All constants of a scene. Those named `_easy` and `_hard` hold at d = 0 and d = 1."""

    train_scenes: int = 12_000
    validation_scenes: int = 2_000
    test_scenes: int = 5_000
    size_min_easy: int = 22  # side of the digit, pixels
    size_min_hard: int = 15
    size_max_easy: int = 30
    size_max_hard: int = 28
    contrast_easy: int = 96  # least difference in luma of digit and ground, 0 .. 255
    contrast_hard: int = 30
    contrast_max_easy: int = 127  # at most 127: a lighter or a darker digit then always fits
    contrast_max_hard: int = 100
    tint: int = 40  # largest departure of the digit's channels from grey
    fade_hard: int = 72  # opacity the digit may lose, of 256
    clutter_hard: int = 3  # pieces of other scans
    clutter_size_min: int = 4
    clutter_size_max: int = 8
    clutter_opacity: int = 160  # of 256
    noise_hard: int = 62  # 62 / 256 * 104.5 = deviation 25 of 255


CONFIG = SceneConfig()
_TAG = 7
_CHUNK = 250  # scenes drawn at once: the arrays stay in the cache
_PIECE = 4  # a clutter piece is 4x4 of a scan's 8x8 values
_ONE = 256  # fixed-point unit of difficulty and opacity
_LUMA = np.array([77, 150, 29], dtype=np.int64)  # of 256, ITU-R BT.601
_SCALES = (1, 2, 3)  # photograph pixels per scene pixel
# Photographs are cut into five bands of columns; no split sees another's.
_BANDS = {"train": (0, 2, 4), "validation": (1,), "test": (3,)}
_SHA256 = {
    "validation": "3c1077153fe77fbc7d3c32b97984e03f15d2c8524450d2118a387e8154fa91fc",
    "test": "313f07c6ff49885d7be20b42a5d234ae42aa4cab2f3a5f13bfce433bfd21dddd",
}


class SceneDigits(Dataset):
    """Digits over photographs, graded from easy to hard; 10 classes."""

    name = "scene_digits"
    num_classes = 10
    mean = (0.4178, 0.4516, 0.4212)
    std = (0.3231, 0.2526, 0.2779)

    def __init__(self) -> None:
        super().__init__()
        load_scans()
        _load_photographs()

    def train(self, seed: int, epoch: int) -> Split:
        stream = epoch_stream(self.name, _TAG, seed, epoch)
        return draw_scenes(stream, "train", CONFIG.train_scenes)

    def _load(self, which: str) -> Split:
        count = {"validation": CONFIG.validation_scenes, "test": CONFIG.test_scenes}[which]
        split = draw_scenes(fixed_stream(which, _TAG), which, count)
        return verify_checksum(self.name, which, split, _SHA256[which])


def draw_scenes(stream: Stream, which: str, count: int, config: SceneConfig = CONFIG) -> Split:
    """Draw `count` scenes from the scans and the photograph bands of the split `which`."""
    ids = split_scans()[which]
    scan = spread(stream, ids, count)
    hard = stream.below(_ONE + 1, count)
    images = np.empty((count, 3, SIDE, SIDE), dtype=np.uint8)
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        images[part] = _draw_chunk(stream, which, scan[part], hard[part], config)
    return Split(
        images=torch.from_numpy(images),
        labels=torch.from_numpy(load_scans()[1][scan]),
        difficulty=torch.from_numpy((hard / _ONE).astype(np.float32)),
        scan=torch.from_numpy(scan),
    )


def _draw_chunk(stream: Stream, which: str, scan: Ints, hard: Ints, config: SceneConfig) -> NDArray[np.uint8]:
    n = len(scan)
    image = _draw_ground(stream, which, hard)
    size_min = _graded(config.size_min_easy, config.size_min_hard, hard)
    size_max = _graded(config.size_max_easy, config.size_max_hard, hard)
    size = size_min + stream.below(size_max + 1 - size_min, n)
    top, left = stream.below(SIDE + 1 - size, 2, n)
    opacity = place(load_scans()[0][scan], size, top, left)
    colour = _draw_colour(stream, image, opacity, hard, config)
    fade = stream.below(_graded(0, config.fade_hard, hard) + 1, n)
    opacity = opacity * (_ONE - fade).astype(np.int32)[:, None, None] >> 8
    image = blend(image, colour, opacity[:, None])
    for piece in range(config.clutter_hard):
        # Piece p comes in with probability clutter_hard * d - p, so d * clutter_hard on average.
        wanted = config.clutter_hard * hard - piece * _ONE
        chosen = np.flatnonzero(stream.below(_ONE, n) < wanted)
        image[chosen] = _add_clutter(stream, which, image[chosen], config)
    noise = stream.triangular(*image.shape) * hard.astype(np.int32)[:, None, None, None]
    image += noise * config.noise_hard >> 16
    return np.clip(image, 0, 255).astype(np.uint8)


def _graded(easy: int, hard_value: int, hard: Ints) -> Ints:
    """From `easy` at difficulty 0 to `hard_value` at difficulty 1 (256)."""
    return easy + ((hard_value - easy) * hard >> 8)


def _draw_ground(stream: Stream, which: str, hard: Ints) -> NDArray[np.int32]:
    """int32[N, 3, 32, 32]: crops of photographs, their contrast growing with difficulty."""
    pixels, corners = _load_photographs()[which]
    corner, stride = corners[:, stream.below(corners.shape[1], len(hard))]
    step = np.arange(SIDE)
    index = (corner[:, None] + step * stride[:, None])[:, :, None] + step
    crop = np.stack([plane[index] for plane in pixels], axis=1).astype(np.int32)
    mean = crop.sum((2, 3), keepdims=True, dtype=np.int32) >> 10
    return blend(mean, crop, hard.astype(np.int32)[:, None, None, None])


def _draw_colour(
    stream: Stream,
    image: NDArray[np.int32],
    opacity: NDArray[np.int32],
    hard: Ints,
    config: SceneConfig,
) -> NDArray[np.int32]:
    """int32[N, 3, 1, 1]: digit colours that differ enough in luma from the ground they cover."""
    n = len(hard)
    covered = (image * opacity[:, None]).sum((2, 3), dtype=np.int64)
    ground = covered @ _LUMA // opacity.sum((1, 2), dtype=np.int64) >> 8
    least = _graded(config.contrast_easy, config.contrast_hard, hard)
    most = _graded(config.contrast_max_easy, config.contrast_max_hard, hard)
    contrast = least + stream.below(most + 1 - least, n)
    lighter = stream.below(2, n) == 1
    lighter = np.where(ground + contrast > 255, False, np.where(ground < contrast, True, lighter))
    luma = np.where(lighter, ground + contrast, ground - contrast)
    # A tint of no luma, and within the room left, so that clipping cannot eat into the contrast.
    room = np.minimum(config.tint, np.minimum(luma, 255 - luma))[:, None]
    tint = stream.below(room + 1, n, 3) - room // 2
    colour = luma[:, None] + tint - (tint @ _LUMA >> 8)[:, None]
    return np.clip(colour, 0, 255).astype(np.int32)[:, :, None, None]


def _add_clutter(
    stream: Stream, which: str, image: NDArray[np.int32], config: SceneConfig
) -> NDArray[np.int32]:
    n = len(image)
    ids = split_scans()[which]
    scan = ids[stream.below(len(ids), n)]
    top, left = stream.below(8 - _PIECE + 1, 2, n)
    step = np.arange(_PIECE)
    rows, columns = (top[:, None] + step)[:, :, None], (left[:, None] + step)[:, None, :]
    glyphs = load_scans()[0][scan[:, None, None], rows, columns]
    span = config.clutter_size_max + 1 - config.clutter_size_min
    size = config.clutter_size_min + stream.below(span, n)
    row, column = stream.below(SIDE + 1 - size, 2, n)
    opacity = place(glyphs, size, row, column) * config.clutter_opacity >> 8
    colour = stream.below(256, n, 3, 1, 1).astype(np.int32)
    return blend(image, colour, opacity[:, None])


@lru_cache(maxsize=1)
def _load_photographs() -> dict[str, tuple[NDArray[np.uint8], Ints]]:
    """Per split: planes uint8[3, P] of all its bands at all scales, and where crops may start.

    The second array, int64[2, C], holds the flat index of each possible crop's first pixel, and the
    number of pixels from one of its rows to the next.
    """
    try:
        from sklearn.datasets import load_sample_images

        photographs = load_sample_images().images
    except ImportError as error:
        raise ImportError(missing_extra("scikit-learn and pillow")) from error
    return {which: _index_bands(photographs, bands) for which, bands in _BANDS.items()}


def _index_bands(
    photographs: list[NDArray[np.uint8]], bands: tuple[int, ...]
) -> tuple[NDArray[np.uint8], Ints]:
    pixels, corners, offset = [], [], 0
    for photograph in photographs:
        for band in bands:
            for scale in _SCALES:
                view = _shrink(np.array_split(photograph, 5, axis=1)[band], scale)
                height, width = view.shape[:2]
                rows = np.arange(height - SIDE + 1)[:, None] * width
                first = (offset + rows + np.arange(width - SIDE + 1)).ravel()
                corners.append(np.stack([first, np.full_like(first, width)]))
                pixels.append(view.reshape(-1, 3).T)
                offset += height * width
    return np.concatenate(pixels, axis=1), np.concatenate(corners, axis=1)


def _shrink(image: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Mean over scale x scale pixels; what is left over at the right and below is dropped."""
    height, width = image.shape[0] // scale, image.shape[1] // scale
    cells = image[: height * scale, : width * scale].reshape(height, scale, width, scale, 3)
    return (cells.sum((1, 3), dtype=np.int64) // (scale * scale)).astype(np.uint8)
