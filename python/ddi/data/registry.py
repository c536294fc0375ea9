"""The data sets by name."""

from collections.abc import Callable
from pathlib import Path

from .base import Dataset
from .cifar import Cifar
from .digits import Digits32
from .scenes import SceneDigits

__all__ = ["get_dataset", "list_datasets"]

_DRAWN: dict[str, Callable[[], Dataset]] = {"digits32": Digits32, "scene_digits": SceneDigits}
_READ: dict[str, Callable[[Path], Dataset]] = {
    "cifar10": lambda root: Cifar("cifar10", root),
    "cifar100": lambda root: Cifar("cifar100", root),
}


def list_datasets() -> list[str]:
    """Names that :func:`get_dataset` knows, sorted.

    Example:
        >>> list_datasets()
        ['cifar10', 'cifar100', 'digits32', 'scene_digits']
    """
    return sorted([*_DRAWN, *_READ])


def get_dataset(name: str, root: str | Path | None = None) -> Dataset:
    """Open a data set by name.

    Args:
        name: one of :func:`list_datasets`.
        root: for `cifar10` and `cifar100`, the folder that holds `cifar-10-batches-py` or
            `cifar-100-python` (or that folder itself); must be None for the others.

    Returns:
        The data set; images are drawn or read when a split is first asked for.

    Raises:
        ValueError: unknown name, or a root where none is used, or none where one is needed.
        FileNotFoundError: root has no such data set.
        ImportError: scikit-learn or pillow is missing.

    Example:
        >>> data = get_dataset("digits32")
        >>> data.test().images.shape
        torch.Size([500, 3, 32, 32])
    """
    if name in _DRAWN:
        if root is not None:
            raise ValueError(
                f"get_dataset: argument root is {str(root)!r}, but {name!r} is drawn from images "
                "inside scikit-learn and reads no folder; leave root out"
            )
        return _DRAWN[name]()
    if name in _READ:
        if root is None:
            raise ValueError(
                f"get_dataset: {name!r} is read from a local folder and nothing is downloaded; "
                "pass root=, the folder of the unpacked 'python version' archive"
            )
        return _READ[name](Path(root))
    raise ValueError(f"get_dataset: unknown name {name!r}; allowed: {', '.join(list_datasets())}")
