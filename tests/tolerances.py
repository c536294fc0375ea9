"""How far a result may be from the float64 reference, per dtype, for values of order one.

The one table of all tests: (atol, rtol). Loosening an entry needs a reason in the commit.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCES = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-5),
    torch.float16: (4e-3, 4e-3),
    torch.bfloat16: (3e-2, 3e-2),
}


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Compares with a float64 (or exact) expectation at the tolerance of the actual dtype."""
    atol, rtol = TOLERANCES.get(actual.dtype, (0.0, 0.0))
    torch.testing.assert_close(actual.to(expected.dtype), expected, atol=atol, rtol=rtol)
