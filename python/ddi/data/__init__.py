"""Image data sets of 3x32x32 uint8 images, by name: `get_dataset("scene_digits")`.

`digits32` and `scene_digits` are drawn from images that ship inside scikit-learn; CIFAR is read
from a folder the user names. Nothing is ever downloaded, and images stay uint8 until `normalize`.
"""

from .base import Dataset, DatasetMismatchError, Split
from .registry import get_dataset, list_datasets

__all__ = ["Dataset", "DatasetMismatchError", "Split", "get_dataset", "list_datasets"]
