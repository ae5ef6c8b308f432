"""Limits that change in simulated time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cidl_sim.core.errors import InfeasibleError
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import simulate
from tests.conftest import uniform_device, uniform_workload

WORKLOAD = uniform_workload(8, 6)


def test_a_limit_that_shrinks_costs_time_and_one_that_grows_saves_it():
    device = uniform_device(5, 2, 1)
    plan = make_plan("spread", WORKLOAD, device)
    unchanged = simulate(WORKLOAD, device, plan)
    shrunk = simulate(WORKLOAD, device, plan, limit_changes=[(20.0, 3)])
    grown = simulate(WORKLOAD, device, plan, limit_changes=[(20.0, 8)])
    assert grown.makespan_s < unchanged.makespan_s < shrunk.makespan_s
    (event,) = shrunk.events
    assert (event.kind, event.at_s, event.values["limit_bytes"]) == ("limit_changed", 20.0, 3)
    assert event.values["unloaded"] == event.values["unloaded_bytes"]
    # What a trace says of its changes is what a replay of it takes.
    assert shrunk.limit_changes == ((20.0, 3),)
    assert simulate(WORKLOAD, device, plan, limit_changes=shrunk.limit_changes).makespan_s == shrunk.makespan_s


def test_a_rotating_set_settles_where_the_limit_changes_and_more_memory_is_not_slower():
    workload, device = uniform_workload(28, 12), uniform_device(16, 24, 8)
    plan = make_plan("rotating", workload, device)
    unchanged = simulate(workload, device, plan).makespan_s
    shrunk, grown = (simulate(workload, device, plan, limit_changes=[(900.0, slots)]).makespan_s for slots in (14, 20))
    assert grown < unchanged < shrunk < 1.2 * unchanged


def test_after_a_change_memory_stays_below_the_new_limit():
    device = uniform_device(6, 1, 1)
    plan = make_plan("prefix", WORKLOAD, device)
    trace = simulate(WORKLOAD, device, plan, limit_changes=[(15.5, 2)])
    # One load may be in flight and one visit at work when the limit falls.
    settled = [held for at_s, held in trace.memory_curve if at_s > 17.5]
    assert max(settled) <= 2


def test_a_limit_below_the_running_block_ends_the_run_and_names_it():
    device = uniform_device(3, 1, 1)
    with pytest.raises(InfeasibleError, match="block 'b1' needs 1 bytes"):
        simulate(WORKLOAD, device, make_plan("sequential", WORKLOAD, device), limit_changes=[(3.0, 0)])


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=3), st.integers(1, 9))
def test_equal_changes_give_equal_traces_and_every_visit_runs(changes, slots):
    device = uniform_device(slots, 1.5, 1)
    plan = make_plan("next_block" if slots > 1 else "sequential", WORKLOAD, device)
    timed = [(float(at_s), limit) for at_s, limit in changes]
    one, two = (simulate(WORKLOAD, device, plan, limit_changes=timed) for _ in range(2))
    assert one.to_json() == two.to_json()
    assert [span.visit for span in one.of("execute")] == list(range(len(WORKLOAD.visits)))
