"""How work says how far it is to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable

# Pieces done, pieces in all, and in a few words what is under way.
Progress = Callable[[int, int, str], None]
# The same of work in several steps: before it, the step's name. `partial(progress, name)` is the progress of one step.
StepProgress = Callable[[str, int, int, str], None]


def silent(*_: object) -> None:
    """Progress that nobody looks at, of any kind."""
