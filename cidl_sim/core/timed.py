"""A workload priced on a device, once: what the engine, the evaluators, the bounds, the models and the search read.

Every visit of one block costs the same, but for the first load of its weights, so blocks are priced, not visits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from cidl_sim.core.costs import Cost, execute_cost, load_cost
from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import DeviceError
from cidl_sim.core.workload import Block, Workload

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Visits:
    """What every device has in common: the visits of a workload as arrays of the shape (visits,), and its blocks."""

    workload: Workload

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The distinct blocks in the order in which they are first visited."""
        blocks = {id(block): block for stage in self.workload.stages for block in stage.blocks}
        return tuple(blocks.values())

    @cached_property
    def block_numbers(self) -> Ints:
        numbers = {id(block): number for number, block in enumerate(self.blocks)}
        rounds = [np.tile([numbers[id(b)] for b in stage.blocks], stage.rounds) for stage in self.workload.stages]
        return np.concatenate(rounds)

    @cached_property
    def block_of(self) -> list[int]:
        found: list[int] = self.block_numbers.tolist()
        return found

    @cached_property
    def load_numbers(self) -> Ints:
        """Twice the number of a visit's block, and one more where the load is a cold one."""
        return 2 * self.block_numbers + (self.previous < 0)

    @cached_property
    def load_keys(self) -> list[int]:
        found: list[int] = self.load_numbers.tolist()
        return found

    @cached_property
    def weight_bytes(self) -> Ints:
        return self._by_visit([block.weight_bytes for block in self.blocks])

    @cached_property
    def workspace_bytes(self) -> Ints:
        return self._by_visit([block.workspace_bytes for block in self.blocks])

    @cached_property
    def weights(self) -> Ints:
        numbers: dict[str, int] = {}
        return self._by_visit([numbers.setdefault(block.weights, len(numbers)) for block in self.blocks])

    @cached_property
    def previous(self) -> Ints:
        return _numbers(self.workload.previous_same_weights)

    @cached_property
    def following(self) -> Ints:
        return _numbers(self.workload.next_same_weights)

    @cached_property
    def stays(self) -> Bools:
        groups = {group: number for number, group in enumerate({stage.group for stage in self.workload.stages})}
        counts = np.diff(self.workload.first_visit_of_stage)
        group = np.repeat([groups[stage.group] for stage in self.workload.stages], counts)
        return np.asarray((self.following >= 0) & (group[self.following] == group))

    def costs_on(self, device: DeviceProfile) -> _Costs:
        """The costs of the blocks on a device; those of the one asked for before, where only memory is another."""
        for known in tuple(self._last_costs):
            if _costs_the_same(known.device, device):
                return known
        # Another thread may put in another device's meanwhile, which is none of ours.
        costs = _Costs(self.blocks, np.unique(self.load_numbers).tolist(), device)
        self._last_costs[:] = [costs]
        return costs

    @cached_property
    def _last_costs(self) -> list[_Costs]:
        return []

    def _by_visit(self, of_blocks: Sequence[int]) -> Ints:
        return np.asarray(np.array(of_blocks, np.int64)[self.block_numbers])


@dataclass(frozen=True, eq=False)
class _Costs:
    """What loads (by `_Visits.load_numbers`) and executions (by block) cost on a device, or why that is unknown."""

    blocks: tuple[Block, ...]
    load_keys: Sequence[int]
    device: DeviceProfile

    @cached_property
    def loads(self) -> dict[int, Cost | DeviceError]:
        found: dict[int, Cost | DeviceError] = {}
        for key in self.load_keys:
            try:
                found[key] = load_cost(self.blocks[key // 2], self.device, cold=bool(key % 2))
            except DeviceError as problem:
                found[key] = problem.with_traceback(None)  # its frames hold all of this
        return found

    @cached_property
    def executions(self) -> list[Cost | DeviceError]:
        found: list[Cost | DeviceError] = []
        for block in self.blocks:
            try:
                found.append(execute_cost(block, self.device))
            except DeviceError as problem:
                found.append(problem.with_traceback(None))
        return found


def _costs_the_same(one: DeviceProfile, other: DeviceProfile) -> bool:
    """Whether all that `core/costs.py` reads, messages included, is equal."""
    return one is other or all(
        getattr(one, name) == getattr(other, name) for name in ("name", "loader", "executor", "measured")
    )


@dataclass(frozen=True, eq=False)
class Timed:
    """A workload on a device: arrays of the shape (visits,), in seconds and bytes, made when they are first asked for.

    `previous` and `following` are the visits of the same weights before and after, or -1. The first load of weights is
    a cold one. Costs that the profile does not have are no error before someone asks for them.
    """

    workload: Workload
    device: DeviceProfile

    # Memory

    @property
    def room_bytes(self) -> int:
        """What weights and workspaces may take together; below zero where not even the baseline fits."""
        return self.device.memory_limit_bytes - self.device.baseline_bytes

    @property
    def weight_bytes(self) -> Ints:
        """The size of each visit's weights."""
        return self._visits.weight_bytes

    @property
    def workspace_bytes(self) -> Ints:
        """What is live beside the weights while each visit runs."""
        return self._visits.workspace_bytes

    # Order

    @property
    def weights(self) -> Ints:
        """The number of each visit's weights, counted from 0 in the order in which they are first visited."""
        return self._visits.weights

    @property
    def previous(self) -> Ints:
        """The visit of the same weights before each visit, or -1."""
        return self._visits.previous

    @property
    def following(self) -> Ints:
        """The visit of the same weights after each visit, or -1."""
        return self._visits.following

    @property
    def stays(self) -> Bools:
        """After which visits weights may stay for the next visit in the same group."""
        return self._visits.stays

    # Costs

    @property
    def is_plain(self) -> bool:
        """Whether nothing on the device stretches loads or executions, and loads come one after another."""
        return not self.is_fluid and self.device.loader.first_touch_bytes_per_s is None

    @property
    def is_fluid(self) -> bool:
        """Whether rates change on the way: contention, several channels, heat."""
        loader, executor = self.device.loader, self.device.executor
        return (
            loader.slowdown_while_executing != 1
            or executor.slowdown_while_loading != 1
            or loader.channels > 1
            or bool(self.device.thermal)
        )

    def load_cost(self, visit: int) -> Cost:
        """The cost of loading the weights of visit number `visit`. DeviceError if the profile has none."""
        return _known(self._costs.loads[self._visits.load_keys[visit]])

    def execute_cost(self, visit: int) -> Cost:
        """The cost of executing visit number `visit`. DeviceError if the profile has none."""
        return _known(self._costs.executions[self._visits.block_of[visit]])

    @cached_property
    def unknown_loads(self) -> Mapping[int, DeviceError]:
        """The visits whose load the profile has no cost for, with the reason."""
        reasons = {key: cost for key, cost in self._costs.loads.items() if isinstance(cost, DeviceError)}
        if not reasons:
            return {}
        return {visit: reasons[key] for visit, key in enumerate(self._visits.load_keys) if key in reasons}

    @cached_property
    def load_fixed_s(self) -> Floats:
        """What passes of each visit's load whatever else happens; 0 where no cost is known."""
        return self._of_loads({key: _fixed_s(cost) for key, cost in self._costs.loads.items()})

    @cached_property
    def load_work_s(self) -> Floats:
        """The rest of each visit's load; 0 where no cost is known."""
        return self._of_loads({key: _work_s(cost) for key, cost in self._costs.loads.items()})

    @cached_property
    def execute_fixed_s(self) -> Floats:
        """What passes of each visit's execution whatever else happens. DeviceError where a cost is unknown."""
        return self._of_executions([_known(cost).fixed_s for cost in self._costs.executions])

    @cached_property
    def execute_work_s(self) -> Floats:
        """The rest of each visit's execution. DeviceError where a cost is unknown."""
        return self._of_executions([_known(cost).work_s for cost in self._costs.executions])

    @property
    def execute_s(self) -> Floats:
        """What each visit's execution takes alone. DeviceError where a cost is unknown."""
        return self.execute_fixed_s + self.execute_work_s

    @cached_property
    def least_execute_s(self) -> Floats:
        """Each visit's execution as fast as the device ever gets. DeviceError where a cost is unknown."""
        return self.execute_fixed_s + self.execute_work_s / max([1.0, *(s.factor for s in self.device.thermal)])

    @cached_property
    def least_load_s(self) -> Floats:
        """For how long each visit's load occupies the loader at least. DeviceError where a cost is unknown.

        With several channels only transfers queue up; latencies may overlap.
        """
        for problem in self.unknown_loads.values():
            raise problem
        return self.load_work_s + self.load_fixed_s if self.device.loader.channels == 1 else self.load_work_s

    # What it is made of

    @cached_property
    def _visits(self) -> _Visits:
        return _visits_of(self.workload)

    @cached_property
    def _costs(self) -> _Costs:
        return self._visits.costs_on(self.device)

    def _of_executions(self, seconds: Sequence[float]) -> Floats:
        return np.asarray(np.array(seconds)[self._visits.block_numbers])

    def _of_loads(self, seconds: Mapping[int, float]) -> Floats:
        table = np.zeros(2 * len(self._visits.blocks))
        table[list(seconds)] = list(seconds.values())
        return np.asarray(table[self._visits.load_numbers])


# Only what somebody holds: a workload may have millions of visits.
_HELD: WeakValueDictionary[tuple[int, int], Timed] = WeakValueDictionary()
_HELD_VISITS: WeakValueDictionary[int, _Visits] = WeakValueDictionary()


def timed(workload: Workload, device: DeviceProfile) -> Timed:
    """`workload` priced on `device`; as long as somebody holds the result, the same one for the same two objects."""
    key = id(workload), id(device)
    found = _HELD.get(key)
    if found is None:
        found = _HELD[key] = Timed(workload, device)
    return found


def _visits_of(workload: Workload) -> _Visits:
    found = _HELD_VISITS.get(id(workload))
    if found is None:
        found = _HELD_VISITS[id(workload)] = _Visits(workload)
    return found


def _numbers(visits: Sequence[int | None]) -> Ints:
    return np.array([-1 if number is None else number for number in visits], np.int64)


def _known(cost: Cost | DeviceError) -> Cost:
    if isinstance(cost, DeviceError):
        raise cost
    return cost


def _fixed_s(cost: Cost | DeviceError) -> float:
    return 0.0 if isinstance(cost, DeviceError) else cost.fixed_s


def _work_s(cost: Cost | DeviceError) -> float:
    return 0.0 if isinstance(cost, DeviceError) else cost.work_s
