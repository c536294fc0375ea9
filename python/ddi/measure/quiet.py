"""A quiet machine for measurements: trainings of the same user pause while something is being timed.

Two lock files in the temporary folder, held with flock, so that a killed process leaves nothing behind. A
training takes `working` around each of its steps, and steps run side by side; `measuring` waits until the
steps that run have ended and keeps others from beginning. Steps queue up behind a measurement that waits,
which would else never find a moment between them. Where there is no flock (Windows), nobody waits.
"""

from __future__ import annotations

import getpass
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # no POSIX
    fcntl = None  # type: ignore[assignment]

__all__ = ["measuring", "working"]


@contextmanager
def measuring() -> Iterator[None]:
    """Holds all trainings of this user between two steps. Not to be nested.

    Example:
        >>> with measuring():
        ...     pass  # take times
    """
    with _locked("turn", exclusive=True), _locked("room", exclusive=True):
        yield


@contextmanager
def working() -> Iterator[None]:
    """Around work that would disturb a measurement; short, for one that begins waits for its end.

    Example:
        >>> with working():
        ...     pass  # one step
    """
    with _locked("turn", exclusive=False):
        pass  # behind a measurement that waits
    with _locked("room", exclusive=False):
        yield


def _path(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"ddi-{getpass.getuser()}-{name}.lock"


@contextmanager
def _locked(name: str, exclusive: bool) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    with open(_path(name), "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield  # closing the file lets go
