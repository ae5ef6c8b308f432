"""The start of the child process; see `child`."""

from __future__ import annotations

import gc
import os
import signal
import sys

from cidl_sim.core.processes import ends_with


def start() -> int:
    """Import what a run needs and do the job. Returns the exit code."""
    # Before the imports, which take seconds in which the parent may end as well.
    if not ends_with(int(os.environ.get("CIDL_PARENT", os.getppid()))):
        return 128 + signal.SIGTERM
    # Libraries make millions of objects that stay: much of their import would go into looking for garbage in them.
    gc.disable()
    from cidl_sim.worker.child import main

    return main()


if __name__ == "__main__":
    sys.exit(start())
