"""Free memory given back to the system, which the C library would keep for later; garbage seldom sought.

A batch is some large blocks among many small ones, so the heap of a process that maps batch after
batch fills with holes: 100 to 200 MB in a minute, though no more is in use than at the start.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Any, Final

# Of glibc alone; other C libraries give memory back by themselves.
_TRIM: Final[Any] = getattr(ctypes.CDLL(None), "malloc_trim", None)


def collect_rarely() -> None:
    """Look for cycles seldom from now on: neither rows nor modules make any, and a search costs a tenth."""
    gc.set_threshold(100_000, 50, 1000)


def give_back_free_memory() -> None:
    """Return the holes of the heap to the system; takes some milliseconds."""
    if _TRIM is not None:
        _TRIM(0)
