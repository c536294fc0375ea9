"""What every data set offers: three splits of uint8 images [N, 3, 32, 32] and their normalisation.

Images stay uint8 (a quarter of the memory of float32) and are normalised batch by batch with one
multiply and one add, into the channels_last layout that the convolutions run fastest on.
"""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .draw import SIDE


class DatasetMismatchError(RuntimeError):
    """The images drawn on this machine are not the published ones."""


@dataclass(frozen=True)
class Split:
    """Images with their labels.

    Attributes:
        images: uint8[N, 3, 32, 32].
        labels: int64[N].
        difficulty: float32[N] in [0, 1], 0 the easiest; None where it is not known.
        scan: int64[N], index in scikit-learn's `load_digits` of the scan each image was made from
            (images of one scan are not independent: resample scans, not images); None elsewhere.
    """

    images: Tensor
    labels: Tensor
    difficulty: Tensor | None = None
    scan: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


class Dataset(ABC):
    """A named data set; made by :func:`ddi.data.get_dataset`.

    Attributes:
        name: the name it was asked for by.
        num_classes: labels are 0 .. num_classes - 1.
        image_shape: (channels, height, width) of an image, the same in all.
        mean: per-channel mean of the training images, in 0..1.
        std: per-channel standard deviation of the training images, in 0..1.
    """

    name: str
    num_classes: int
    image_shape = (3, SIDE, SIDE)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __init__(self) -> None:
        self._cache: dict[str, Split] = {}

    @abstractmethod
    def train(self, seed: int, epoch: int) -> Split:
        """Training images of one epoch; the same (seed, epoch) always gives the same images.

        Args:
            seed: of the training run, >= 0.
            epoch: >= 0; every epoch is drawn anew.

        Returns:
            A Split in random order.

        Raises:
            ValueError: a negative seed or epoch.
        """

    def validation(self) -> Split:
        """The fixed images on which choices are made; kept in memory, not to be modified."""
        return self._fixed("validation")

    def test(self) -> Split:
        """The fixed images on which results are reported; kept in memory, not to be modified."""
        return self._fixed("test")

    def normalize(self, images: Tensor) -> Tensor:
        """Scale images to zero mean and unit variance per channel.

        Args:
            images: uint8[N, 3, 32, 32].

        Returns:
            float32[N, 3, 32, 32], channels_last, on the images' device.

        Raises:
            ValueError: images of another dtype or shape.

        Example:
            >>> data = get_dataset("digits32")
            >>> x = data.normalize(data.test().images[:8])
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(
                f"{self.name}.normalize: argument images is {images.dtype}{list(images.shape)}; "
                "allowed: torch.uint8[N, 3, H, W], as in Split.images"
            )
        mean = torch.tensor(self.mean, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, 3, 1, 1)
        x = images.contiguous(memory_format=torch.channels_last).float()
        return x.mul_(1 / (255 * std)).sub_(mean / std)

    def _fixed(self, which: str) -> Split:
        if which not in self._cache:
            self._cache[which] = self._load(which)
        return self._cache[which]

    @abstractmethod
    def _load(self, which: str) -> Split:
        """Make or read the "validation" or "test" split."""


def checksum(split: Split) -> str:
    """SHA-256 (hex) of a split's images followed by its labels as little-endian int64."""
    digest = hashlib.sha256(split.images.contiguous().numpy().tobytes())
    digest.update(split.labels.numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def verify_checksum(name: str, which: str, split: Split, expected: str) -> Split:
    """Return `split`, or raise DatasetMismatchError if it is not the one that was published."""
    got = checksum(split)
    if got != expected:
        raise DatasetMismatchError(
            f"{name}.{which}: the images drawn here have SHA-256 {got[:16]}..., the published ones "
            f"{expected[:16]}...; accuracies would not be comparable. The source images inside "
            "scikit-learn, or their JPEG decoding by pillow, differ: install scikit-learn==1.9.1 "
            "numpy==2.3.5 pillow==13.0.0"
        )
    return split
