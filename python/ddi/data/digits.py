"""`digits32`: scikit-learn's digit scans on a lightly tinted plain ground, as 3x32x32 images.

The small and easy data set for quick trials: 1,097 training images an epoch, each shifted and
scaled a little anew; 200 validation and 500 test images, centred. Drawn in milliseconds, all at
once, by integer array arithmetic (see draw.py).
"""

import numpy as np
import torch

from .base import Dataset, Split, verify_checksum
from .draw import (
    SIDE,
    Ints,
    Stream,
    blend,
    epoch_stream,
    fixed_stream,
    load_scans,
    place,
    split_scans,
    spread,
)

_TAG = 32
_SIZE_MIN, _SIZE_MAX = 24, 31
_CENTRED = 28
_GROUND_MAX = 48
_INK_MIN = 160
_SHA256 = {
    "validation": "5e2aaac1d3cefe51cc20b1a1a58b771b88c5f3f0e6f2324855efb63640cd0ce7",
    "test": "3284650ce6fce25bd5cd18348047a6eca374c9769f99c63d942b9cfc9aa9244d",
}


class Digits32(Dataset):
    """Light grey digits on dark, lightly tinted ground; 10 classes."""

    name = "digits32"
    num_classes = 10
    mean = (0.2573, 0.2583, 0.2577)
    std = (0.2339, 0.2332, 0.2336)

    def __init__(self) -> None:
        super().__init__()
        load_scans()

    def train(self, seed: int, epoch: int) -> Split:
        stream = epoch_stream(self.name, _TAG, seed, epoch)
        ids = split_scans()["train"]
        scan = spread(stream, ids, len(ids))
        size = _SIZE_MIN + stream.below(_SIZE_MAX - _SIZE_MIN + 1, len(scan))
        top, left = stream.below(SIDE + 1 - size, 2, len(scan))
        return _draw(stream, scan, size, top, left)

    def _load(self, which: str) -> Split:
        scan = split_scans()[which]
        size = np.full(len(scan), _CENTRED)
        start = (SIDE - size) // 2
        split = _draw(fixed_stream(which, _TAG), scan, size, start, start)
        return verify_checksum(self.name, which, split, _SHA256[which])


def _draw(stream: Stream, scan: Ints, size: Ints, top: Ints, left: Ints) -> Split:
    scans, labels = load_scans()
    opacity = place(scans[scan], size, top, left)[:, None]
    ground = stream.below(_GROUND_MAX, len(scan), 3, 1, 1)
    ink = _INK_MIN + stream.below(256 - _INK_MIN, len(scan), 1, 1, 1)
    images = blend(np.broadcast_to(ground, (len(scan), 3, SIDE, SIDE)), ink, opacity)
    return Split(
        images=torch.from_numpy(images.astype(np.uint8)),
        labels=torch.from_numpy(labels[scan]),
        scan=torch.from_numpy(scan),
    )
