"""A plan that is made again while it runs, when the memory limit or the rates are not what it was made for.

The driver tells what ended (`simulator.engine.OnlinePolicy`). Where the last loads or executions take clearly longer or
shorter than the profile says, or the limit is another, the policies that retain are tried on a few rounds of what
remains, and the best plan of each on the whole rest, simulated from the state as it is. The best of those is adopted if
the run gets shorter by it than with the plan at hand. Planning costs no simulated time; `planning_s` says what it took.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress

from cidl_sim.core.device import DeviceProfile, Measured
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.plan import Plan
from cidl_sim.core.refit import go_on_with, settled_copy
from cidl_sim.core.schedule import Schedule
from cidl_sim.core.timed import timed
from cidl_sim.core.workload import Stage, Visit, Workload
from cidl_sim.policies.build import repeated_positions, repeating_groups
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import Engine
from cidl_sim.simulator.quick import makespan_s

# By so much a rate has to differ from what the plan was made for before another one is sought.
MOVED = 1.2
# How many of the last loads and executions tell a rate: enough that no single one moves their median.
WINDOW = 5
# Spans that are remembered: all that may lie beside one of those.
REMEMBERED = 8 * WINDOW
# Rounds of each remaining stage that a retained set is tried on.
TRIED_ROUNDS = 3
NUMBERED = ("spread", "rotating", "prefix")
NUMBERS_TRIED = 5
# A new plan has to be so much shorter, or a rate near a threshold would change it back and forth.
WORTH_IT = 1e-3
Span = tuple[float, float]  # start and end, in seconds from the start of the run


class Replanning:
    """The online policy: begins with a plan made for `device`, and replaces it when something moved.

    `replans` counts how often a plan was sought, `adopted` how often one was taken; `planning_s` holds the real seconds
    of each search. Loads by several channels are not timed: those share a bandwidth.
    """

    def __init__(self, workload: Workload, device: DeviceProfile, plan: Plan) -> None:
        self._workload = workload
        self._device = device
        self._priced = timed(workload, device)
        self._plan = plan
        self._planned_for = (plan.memory_limit_bytes, 1.0, 1.0)
        # Each with its span of time and its seconds by the profile.
        self._loads: deque[tuple[Span, float]] = deque(maxlen=REMEMBERED)
        self._executions: deque[tuple[Span, float]] = deque(maxlen=REMEMBERED)
        self.replans = 0
        self.adopted = 0
        self.planning_s: list[float] = []

    def load_finished(self, visit: Visit, cold: bool, start_s: float, end_s: float) -> None:
        """Note a load. Memory may have to be touched for a cold one, which says nothing of the loader."""
        loader = self._device.loader
        if loader.channels == 1 and not (cold and loader.first_touch_bytes_per_s):
            self._loads.append(((start_s, end_s), self._priced.load_cost(visit.number).seconds))

    def visit_finished(self, visit: Visit, start_s: float, end_s: float) -> None:
        """Note an execution."""
        self._executions.append(((start_s, end_s), self._priced.execute_cost(visit.number).seconds))

    def replanned(self, schedule: Schedule) -> Plan | None:
        """A better plan for the rest, if something moved and there is one."""
        state = (schedule.memory_limit_bytes, *self._factors(schedule))
        if not _moved(self._planned_for, state):
            return None
        began = time.perf_counter()
        self._planned_for = state
        limit_bytes, loads, executions = state
        device = slowed(self._device, loads, executions).model_copy(update={"memory_limit_bytes": limit_bytes})
        found = self._better(schedule, device)
        self.replans += 1
        self.planning_s.append(time.perf_counter() - began)
        if found is not None:
            self.adopted += 1
            self._plan = found
        return found

    def _factors(self, schedule: Schedule) -> tuple[float, float]:
        """How much longer than the profile says loads and executions take now, free of contention."""
        loader, executor = self._device.loader, self._device.executor
        loads, executions = [span for span, _ in self._loads], [span for span, _ in self._executions]
        # A load in flight is not known yet, nor how much of an execution lay beside it.
        known_until = max((end for _, end in loads), default=0.0) if schedule.loading else math.inf
        settled = [(span, cost) for span, cost in self._executions if span[1] <= known_until]
        return (
            _factor(list(self._loads), executions, loader.slowdown_while_executing),
            _factor(settled, loads, executor.slowdown_while_loading),
        )

    def _better(self, schedule: Schedule, device: DeviceProfile) -> Plan | None:
        """The plan with which the rest of the run takes least, if that is less than with the one at hand."""
        rest = remaining_workload(self._workload, schedule.current)
        if rest is None:
            return None
        staying_s = _left_s(schedule, self._workload, device, None, self._plan)
        best, best_s = None, staying_s * (1 - WORTH_IT)
        for policy in _candidates(rest, device):
            # What fits a few rounds from their beginning need not fit all of them, or from here.
            with suppress(InfeasibleError):
                found = make_plan(policy, self._workload, device)
                found_s = _left_s(schedule, self._workload, device, found, found)
                if found_s < best_s:
                    best, best_s = found, found_s
        return best


def remaining_workload(workload: Workload, visit: int) -> Workload | None:
    """At most `TRIED_ROUNDS` rounds of each stage from the next beginning of a round on; None if none is left."""
    here = workload.visits[visit]
    stages: list[Stage] = []
    for number, stage in enumerate(workload.stages[here.stage :], start=here.stage):
        begun = here.round + (here.position > 0) if number == here.stage else 0
        if begun < stage.rounds:
            stages.append(stage.model_copy(update={"rounds": min(TRIED_ROUNDS, stage.rounds - begun)}))
    return workload.model_copy(update={"stages": tuple(stages)}) if stages else None


def slowed(device: DeviceProfile, loads: float, executions: float) -> DeviceProfile:
    """The device with loads and executions that take so many times as long; heat is part of that."""
    loader, executor = device.loader, device.executor
    changed_loader = {
        "latency_s": loader.latency_s * loads,
        "bandwidth_bytes_per_s": _divided(loader.bandwidth_bytes_per_s, loads),
    }
    changed_executor = {
        "launch_s": executor.launch_s * executions,
        "flops_per_s": _divided(executor.flops_per_s, executions),
        "memory_bandwidth_bytes_per_s": _divided(executor.memory_bandwidth_bytes_per_s, executions),
    }
    return device.model_copy(
        update={
            "loader": loader.model_copy(update=changed_loader),
            "executor": executor.model_copy(update=changed_executor),
            "measured": {kind: _slowed(costs, loads, executions) for kind, costs in device.measured.items()},
            "thermal": (),
        }
    )


def _slowed(costs: Measured, loads: float, executions: float) -> Measured:
    factors = {"load_s": loads, "cold_load_s": loads, "exec_s": executions}
    found = {name: getattr(costs, name) for name in factors}
    return costs.model_copy(update={name: value * factors[name] for name, value in found.items() if value is not None})


def _divided(rate: float | None, factor: float) -> float | None:
    return None if rate is None else rate / factor


def _moved(before: tuple[int, float, float], now: tuple[int, float, float]) -> bool:
    rates = zip(before[1:], now[1:], strict=True)
    return before[0] != now[0] or any(max(a / b, b / a) > MOVED for a, b in rates)


def _factor(timed: Sequence[tuple[Span, float]], others: Sequence[Span], slowdown: float) -> float:
    """The median of undisturbed seconds over cost of the last few; 1 before there are enough to tell."""
    found = []
    for (start, end), cost in timed[-WINDOW:]:
        overlap = sum(max(0.0, min(end, b) - max(start, a)) for a, b in others)
        if cost > 0:
            found.append((end - start - overlap * (1 - 1 / slowdown)) / cost)
    factor = statistics.median(found) if len(found) == WINDOW else 1.0
    return factor if factor > 0 else 1.0


def _candidates(rest: Workload, device: DeviceProfile) -> list[str]:
    """Each policy that retains, with the numbers of blocks by group with which what is left takes least."""
    found = ["lru"]
    groups, priced = repeating_groups(rest), timed(rest, device)
    for policy in NUMBERED if groups else ():
        numbers = dict.fromkeys(groups, 0)
        best = (math.inf, f"{policy}:0")
        for group in groups:
            for d in _numbers(rest, device, group):
                tried = {**numbers, group: d}
                with suppress(InfeasibleError):
                    name = f"{policy}:" + ",".join(f"{g}={n}" for g, n in tried.items())
                    seconds = makespan_s(priced, make_plan(name, rest, device))
                    if seconds < best[0]:
                        best, numbers = (seconds, name), tried
        found.append(best[1])
    return found


def _numbers(rest: Workload, device: DeviceProfile, group: str) -> Iterator[int]:
    """The few largest numbers of blocks that fit: the best one leaves room for one to three others."""
    sizes = [block.weight_bytes for stage in rest.stages if stage.group == group for block in stage.blocks]
    room = device.memory_limit_bytes - device.baseline_bytes
    most = min(repeated_positions(rest, group), int(room * len(sizes) / max(1, sum(sizes))))
    yield from range(most, max(0, most - NUMBERS_TRIED), -1)


def _left_s(schedule: Schedule, workload: Workload, device: DeviceProfile, taken: Plan | None, plan: Plan) -> float:
    """Seconds that the rest takes from here, with another plan taken now or with the one at hand."""
    engine = Engine(workload, device, plan)
    engine.schedule = settled_copy(schedule)
    if taken is not None:
        go_on_with(engine.schedule, taken)
    engine.run()
    return engine.finished_s
