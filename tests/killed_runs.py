"""Runs that are killed as soon as they have saved their first step."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def kill_once_saved(arguments: list[object], saved: Path) -> None:
    """Start `cidl ARGUMENTS`, and kill it and its worker once `saved` is there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cidl_sim.cli", *map(str, arguments)],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not saved.exists() and process.poll() is None:
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert saved.exists()
