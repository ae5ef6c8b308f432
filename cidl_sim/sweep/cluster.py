"""A sweep on Dask: a scheduler at some address, or a cluster of processes on this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from cidl_sim.core.errors import InputError, MachineError
from cidl_sim.sweep.evaluate import Inputs
from cidl_sim.sweep.parts import evaluate_part

if TYPE_CHECKING:
    from distributed import Client

# Parts in the scheduler's hands for each thread of its workers: its memory stays flat however long the sweep is.
PARTS_PER_THREAD = 2
CONNECT_S = 10


def on_cluster(
    inputs: Inputs, identity: str, missing: list[int], workers: int | None, address: str | None
) -> Iterator[tuple[int, bytes]]:
    """Parts as they are finished. What a dead worker had is evaluated again by another.

    Raises MachineError for a scheduler that cannot be reached, has no workers, or gives up on a part.
    """
    # Connected at once, so that what cannot be reached is refused before anything else.
    stack = ExitStack()
    return _finished(stack, stack.enter_context(_client(workers, address)), inputs, identity, missing)


def _finished(
    stack: ExitStack, client: Client, inputs: Inputs, identity: str, missing: list[int]
) -> Iterator[tuple[int, bytes]]:
    from distributed import KilledWorker, as_completed

    waiting = iter(missing)
    with stack:
        # As a task of its own it can be made again when the workers that hold it die.
        shared = client.submit(_same, inputs, key=f"cidl-sweep-inputs-{identity}")
        running: dict[str, int] = {}

        def submit(number: int) -> object:
            future = client.submit(_part, shared, identity, number, key=f"cidl-sweep-{identity}-{number}")
            running[future.key] = number
            return future

        threads = sum(client.nthreads().values())
        first = [submit(number) for number in islice(waiting, max(1, threads) * PARTS_PER_THREAD)]
        queue = as_completed(first)
        for future in queue:
            number = running.pop(future.key)
            try:
                yield number, future.result()
            except KilledWorker as problem:
                raise MachineError(
                    f"part {number}: its workers died again and again ({problem.last_worker}); the same command goes on"
                ) from None
            future.release()
            following = next(waiting, None)
            if following is not None:
                queue.add(submit(following))


def _same(inputs: Inputs) -> Inputs:
    return inputs


def _part(inputs: Inputs, identity: str, number: int) -> bytes:
    return evaluate_part(inputs, identity, number)


@contextmanager
def _client(workers: int | None, address: str | None) -> Iterator[Client]:
    from distributed import Client, LocalCluster

    if address is None:
        with (
            LocalCluster(
                n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client
        return
    try:
        client = Client(address, timeout=CONNECT_S)
    except ValueError:
        raise InputError(f"--cluster {address!r}: write an address such as tcp://10.0.0.1:8786") from None
    except OSError as problem:
        raise MachineError(f"--cluster {address}: no scheduler answers there ({_first_line(problem)})") from None
    with client:
        if not client.nthreads():
            raise MachineError(f"--cluster {address}: the scheduler has no workers yet")
        yield client


def _first_line(problem: BaseException) -> str:
    return str(problem).partition("\n")[0] or type(problem).__name__
