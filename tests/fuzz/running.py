"""Damages good files and sees what becomes of it: one line, or an answer, within ten seconds and within memory."""

from __future__ import annotations

import random
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from tests.fuzz.kinds import FORESEEN, Kind

LONGEST_S = 10
MOST_BYTES = 1 << 30  # beyond what the process takes anyway


class HangError(BaseException):
    """An input kept the package busy for longer than `LONGEST_S`. Nothing that is there catches it."""


@dataclass
class Outcome:
    """What came of a number of inputs of one kind."""

    kind: str
    inputs: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    faults: list[str] = field(default_factory=list)


def run(
    kind: Kind,
    folder: Path,
    seeds: range,
    on_input: Callable[[int], None] = lambda done: None,
    keep: Path | None = None,
) -> Outcome:
    """Damage the kind's file once for each seed. Inputs that are faults are kept in `keep`."""
    good = folder / "good"
    good.mkdir(parents=True)
    kind.make(good)
    kind.use(_copied(good, folder / "use"))  # a good one is read
    content, left_behind = (good / kind.target).read_bytes(), _names(folder / "use")
    before = _peak_bytes()
    outcome = Outcome(kind.name)
    for seed in seeds:
        chance = random.Random(f"{kind.name}/{seed}")
        damaged = kind.damage(content, chance)
        used = _copied(good, folder / "use")
        (used / kind.target).write_bytes(damaged)
        began_s = time.perf_counter()
        problem = ""
        try:
            with _no_longer_than(LONGEST_S):
                kind.use(used)
        except FORESEEN as refused:
            outcome.refused += 1
            if "\n" in str(refused) or not str(refused):
                problem = f"not one line: {str(refused)!r}"
        except HangError:
            problem = "a hang"
        except BaseException as fault:
            problem = f"{type(fault).__name__}: {fault} at {_place_of(fault)}"
        took_s = time.perf_counter() - began_s
        if not problem and (half := _names(used) - left_behind):
            problem = f"files left behind: {sorted(half)}"
        if not problem and _peak_bytes() - before > MOST_BYTES:
            problem = f"memory: {(_peak_bytes() - before) / 1e6:.0f} MB"
            before = _peak_bytes()
        if problem:
            outcome.faults.append(f"seed {seed}: {problem}")
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{kind.name.replace(' ', '-')}-{seed}").write_bytes(damaged)
        outcome.inputs += 1
        outcome.slowest_s = max(outcome.slowest_s, took_s)
        on_input(outcome.inputs)
    return outcome


def _copied(good: Path, used: Path) -> Path:
    shutil.rmtree(used, ignore_errors=True)
    shutil.copytree(good, used)
    return used


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _place_of(fault: BaseException) -> str:
    frames = traceback.extract_tb(fault.__traceback__)
    own = [frame for frame in frames if "cidl_sim" in frame.filename] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}"


@contextmanager
def _no_longer_than(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
