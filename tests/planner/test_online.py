"""Replanning on the way: within the limit, silent while nothing moves, worth it where something does."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cidl_sim.core.device import Executor, Loader, ThermalStep
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.feasibility import largest_need
from cidl_sim.core.schedule import Schedule
from cidl_sim.core.workload import Workload
from cidl_sim.planner.online import TRIED_ROUNDS, Replanning, remaining_workload, slowed
from cidl_sim.planner.online_comparison import Change, compare_online
from cidl_sim.policies.catalog import POLICIES, STREAMING, make_plan
from cidl_sim.simulator.engine import Engine, makespan_s, simulate
from tests.conftest import analytic_device, uniform_device, uniform_workload
from tests.core.strategies import devices, workloads

WORKLOAD = uniform_workload(8, 12)
CONTENDED = analytic_device(
    5,
    loader=Loader(bandwidth_bytes_per_s=0.5, slowdown_while_executing=1.7),
    executor=Executor(flops_per_s=1.0, slowdown_while_loading=1.4),
)


def slower_loads(factor: float, from_visit: int = 20) -> tuple[np.ndarray, np.ndarray]:
    count = len(WORKLOAD.visits)
    return np.where(np.arange(count) >= from_visit, factor, 1.0), np.ones(count)


@pytest.mark.parametrize("policy", STREAMING)
@pytest.mark.parametrize("device", [uniform_device(5, 2, 1), CONTENDED], ids=["plain", "contended"])
def test_while_nothing_moves_the_run_is_that_of_the_fixed_plan(policy, device):
    workload = uniform_workload(8, 12, flops=1)
    plan = make_plan(policy, workload, device)
    online = Replanning(workload, device, plan)
    assert simulate(workload, device, plan, online=online).to_json() == simulate(workload, device, plan).to_json()
    assert online.replans == 0


def test_where_loads_slow_down_another_policy_takes_over():
    device = uniform_device(5, 2, 1)
    plan = make_plan("spread", WORKLOAD, device)
    assert plan.policy == "spread:3"
    online = Replanning(WORKLOAD, device, plan)
    trace = simulate(WORKLOAD, device, plan, factors=slower_loads(8.0), online=online)
    (event,) = (event for event in trace.events if event.kind == "replanned")
    assert event.values["policy"] == "rotating:4"
    assert trace.makespan_s < makespan_s(WORKLOAD, device, plan, factors=slower_loads(8.0))
    assert (online.replans, online.adopted, len(online.planning_s)) == (1, 1, 1)


def test_where_the_executor_heats_up_the_plan_follows():
    device = uniform_device(5, 10, 1)
    plan = make_plan("spread", WORKLOAD, device)
    hot = device.model_copy(update={"thermal": (ThermalStep(after_s=140, factor=0.2),)})
    online_s = makespan_s(WORKLOAD, hot, plan, online=Replanning(WORKLOAD, device, plan))
    assert online_s < makespan_s(WORKLOAD, hot, plan)


@given(st.data())
def test_memory_stays_within_the_limit_and_every_visit_runs(data):
    workload = data.draw(workloads())
    device = data.draw(devices(workload))
    try:
        plan = make_plan(data.draw(st.sampled_from(sorted(POLICIES))), workload, device)
    except InfeasibleError:
        plan = make_plan("sequential", workload, device)
    least = largest_need(workload)[0] + device.baseline_bytes
    limits = st.integers(max(1, least), max(1, least) + 30)
    count = len(workload.visits)
    factors = [data.draw(st.sampled_from([0.2, 1.0, 5.0])) for _ in range(2)]
    late = np.arange(count) >= count // 3
    engine = Engine(
        workload,
        device,
        plan,
        limit_changes=[(at_s, data.draw(limits)) for at_s in (2.0, 10.0)],
        factors=(np.where(late, factors[0], 1.0), np.where(late, factors[1], 1.0)),
        online=Replanning(workload, device, plan),
    )
    starts = _StartsWithinTheLimit(engine.schedule)
    engine.recorder = starts
    engine.run()
    assert starts.visits == list(range(count))


class _StartsWithinTheLimit:
    """A recorder that looks at the memory whenever something starts."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self.visits: list[int] = []

    def load_started(self, at_s, load, worker, *, cold):
        assert self._schedule.resident_bytes <= self._schedule.memory_limit_bytes

    def visit_started(self, at_s, visit):
        assert self._schedule.resident_bytes <= self._schedule.memory_limit_bytes
        self.visits.append(visit.number)

    def __getattr__(self, name):
        return lambda *arguments, **values: None


CHANGES = {
    "nothing": Change(0.3, 5),
    "less memory": Change(0.3, 3),
    "more memory": Change(0.3, 7),
    "heat": Change(0.3, 5, executions=4.0),
    "slow disk": Change(0.3, 5, loads=4.0),
    "fast disk": Change(0.3, 5, loads=0.25),
    "less memory, slow disk": Change(0.3, 4, loads=4.0),
}


@pytest.mark.parametrize("costs", [(2, 1), (10, 1), (1, 1), (10, 5)])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_replanning_is_not_worse_than_the_fixed_plan_nor_better_than_any_can_be(costs, change):
    compared = compare_online(WORKLOAD, uniform_device(5, *costs), [change])
    # A set that fits the rates of the moment may be worse under those that come later.
    assert compared.online_s <= 1.03 * compared.fixed_s
    assert compared.hindsight_s <= compared.fixed_s
    assert compared.bound_s <= min(compared.online_s, compared.hindsight_s) * (1 + 1e-9)


def test_without_a_change_nothing_differs():
    compared = compare_online(WORKLOAD, uniform_device(5, 2, 1), [Change(0.3, 5)])
    assert compared.undisturbed_s == compared.fixed_s == compared.online_s
    assert compared.replans == 0


def test_what_remains_begins_with_the_next_round_and_is_short():
    stages = remaining_workload(WORKLOAD, 8 * 2 + 3).stages
    assert [stage.rounds for stage in stages] == [TRIED_ROUNDS]
    assert remaining_workload(WORKLOAD, 8 * 10).stages[0].rounds == 2
    assert remaining_workload(WORKLOAD, 8 * 10 + 1).stages[0].rounds == 1
    assert remaining_workload(WORKLOAD, 8 * 11 + 1) is None


@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_a_slowed_device_takes_so_many_times_as_long(loads, executions):
    device, workload = analytic_device(1), uniform_workload(1, 1, flops=3)
    for changed in (
        slowed(device, loads, executions),
        slowed(uniform_device(1, 1, 3), loads, executions),
    ):
        seconds = makespan_s(workload, changed, make_plan("sequential", workload, changed))
        assert math.isclose(seconds, loads + 3 * executions)


def test_a_workload_without_rounds_has_nothing_to_replan():
    workload: Workload = uniform_workload(12, 1)
    device = uniform_device(3, 2, 1)
    compared = compare_online(workload, device, [Change(0.3, 2)])
    assert compared.online_s == compared.fixed_s
