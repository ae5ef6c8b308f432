"""Run a sweep: parts in order of their numbers, here, on processes of this machine, or on a Dask cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from cidl_sim.core.errors import MachineError
from cidl_sim.core.files import sha256_of
from cidl_sim.core.processes import end_with
from cidl_sim.sweep.evaluate import Evaluator, Inputs, count_parts, find_inputs, rows_per_part
from cidl_sim.sweep.parts import evaluate_part, part_identity
from cidl_sim.sweep.points import count_points
from cidl_sim.sweep.results import check_folder, is_whole, open_folder, part_name, write_part
from cidl_sim.sweep.spec import Sweep

# Handed out beyond those that are being evaluated, for each worker: none waits, and few results wait to be written.
AHEAD = 1
# What is lost when a worker dies is evaluated again, unless workers die again and again.
RESTARTS = 3
# Fewer simulated visits than these are done before other processes have started.
SMALL_VISITS = 200_000_000

# In a sample nearly every row has a device of its own, whose costs take as long as so many evaluations.
SETUP = 500

OnRows = Callable[[int, int], None]  # rows done, of so many


@dataclass(frozen=True)
class Done:
    """Rows in all, and how many of them were there already."""

    rows: int
    resumed_rows: int


def run_sweep(
    sweep: Sweep,
    folder: Path,
    *,
    workers: int | None = None,
    cluster: str | None = None,
    on_rows: OnRows = lambda done, total: None,
) -> Done:
    """Evaluate every point of `sweep` into the folder; parts that are there and whole are not evaluated again.

    Without more: processes on this machine, or this one alone for what takes seconds. `workers`: a Dask cluster of so
    many processes on this machine; `cluster`: the address of a Dask scheduler. Rows and files are the same in any case.

    Raises SweepError for a folder of another sweep, MachineError for a cluster that cannot be reached.
    """
    total, inputs = count_points(sweep), find_inputs(sweep)
    identity = sha256_of([sweep.sha256, inputs.workloads, inputs.devices])
    check_folder(folder, identity)
    sizes = _sizes(sweep)
    missing = [n for n, rows in sizes.items() if not is_whole(folder / part_name(n), part_identity(identity, n), rows)]
    done = total - sum(sizes[n] for n in missing)
    resumed = done
    parts = _evaluated(inputs, identity, missing, workers, cluster)
    open_folder(folder, sweep, identity)
    on_rows(done, total)
    for number, content in parts:
        write_part(folder, number, content)
        done += sizes[number]
        on_rows(done, total)
    return Done(total, resumed)


def _sizes(sweep: Sweep) -> dict[int, int]:
    total, rows = count_points(sweep), rows_per_part(sweep)
    return {number: min(rows, total - number * rows) for number in range(count_parts(sweep))}


def _evaluated(
    inputs: Inputs, identity: str, missing: list[int], workers: int | None, cluster: str | None
) -> Iterable[tuple[int, bytes]]:
    if workers is not None or cluster is not None:
        from cidl_sim.sweep.cluster import on_cluster

        return on_cluster(inputs, identity, missing, workers, cluster)
    processes = os.cpu_count() or 1
    if processes == 1 or len(missing) <= 1 or _is_small(inputs, missing):
        return ((number, evaluate_part(inputs, identity, number, None)) for number in missing)
    return _on_processes(inputs, identity, missing, processes)


def _is_small(inputs: Inputs, missing: list[int]) -> bool:
    visits = max(len(Evaluator(inputs).workload(n).visits) for n in range(len(inputs.workloads)))
    if inputs.sweep.sample is not None:
        visits *= SETUP
    return len(missing) * rows_per_part(inputs.sweep) * visits < SMALL_VISITS


def _on_processes(inputs: Inputs, identity: str, missing: list[int], processes: int) -> Iterator[tuple[int, bytes]]:
    left = list(missing)
    for attempt in range(RESTARTS + 1):
        try:
            for number, content in _on_pool(inputs, identity, tuple(left), processes):
                yield number, content
                left.remove(number)
            return
        except BrokenProcessPool:
            if attempt == RESTARTS:
                raise MachineError(
                    f"workers died {attempt + 1} times (killed, or out of memory?); the same command goes on"
                ) from None


def _on_pool(inputs: Inputs, identity: str, missing: Sequence[int], processes: int) -> Iterator[tuple[int, bytes]]:
    waiting = iter(missing)
    with ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=end_with, initargs=(os.getpid(),)
    ) as pool:
        running: dict[Future[bytes], int] = {}

        def hand_out() -> None:
            number = next(waiting, None)
            if number is not None:
                running[pool.submit(evaluate_part, inputs, identity, number)] = number

        try:
            for _ in range(processes * (1 + AHEAD)):
                hand_out()
            while running:
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    number = running.pop(future)
                    yield number, future.result()
                    hand_out()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
