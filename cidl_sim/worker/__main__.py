"""The start of the child process; see `child`."""

from __future__ import annotations

import gc
import sys


def start() -> int:
    """Import what a run needs and do the job. Returns the exit code."""
    # Libraries make millions of objects that stay: much of their import would go into looking for garbage in them.
    gc.disable()
    from cidl_sim.worker.child import main

    return main()


if __name__ == "__main__":
    sys.exit(start())
