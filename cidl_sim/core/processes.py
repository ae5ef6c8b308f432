"""Processes that end with the one that started them, however that ends."""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress

_SET_PARENT_DEATH_SIGNAL = 1


def ends_with(parent: int) -> bool:
    """Have the kernel send SIGTERM here when the parent dies, however it dies (Linux only).

    False if it is gone already. To be called early: whoever imports for seconds first would outlive it in that time.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGTERM))
    return os.getppid() == parent


def end_with(parent: int) -> None:
    """The same for the processes of a pool, as their initializer."""
    if not ends_with(parent):
        os._exit(128 + signal.SIGTERM)
