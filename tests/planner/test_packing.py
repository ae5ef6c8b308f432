"""Packings of who keeps weights: within memory, and better than a pattern that repeats where runs end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cidl_sim.core.timed import timed
from cidl_sim.planner.packing import packed_keeps
from cidl_sim.policies.build import deep_prefetch
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import makespan_s
from tests.conftest import uniform_device, uniform_workload
from tests.core.strategies import cases


@pytest.mark.parametrize(("slots", "expected"), [(10, 57272), (16, 40040)])
def test_a_packing_beats_the_pattern_where_the_loader_is_the_bottleneck(slots, expected):
    workload, device = uniform_workload(28, 30), uniform_device(slots, 96, 8)
    pattern = make_plan("rotating", workload, device)
    keep = packed_keeps(timed(workload, device), set(pattern.keep))
    packed_s = makespan_s(workload, device, deep_prefetch("packed", workload, device, keep))
    assert packed_s <= expected < makespan_s(workload, device, pattern)


@pytest.mark.parametrize("slots", [2, 4, 6])
def test_what_is_kept_leaves_room_for_the_running_visit_and_one_load(slots):
    workload, device = uniform_workload(6, 5), uniform_device(slots, 10, 1)
    keep = packed_keeps(timed(workload, device), set(), rest=1e6)
    across = [sum(1 for v in keep if v < p < workload.next_same_weights[v]) for p in range(len(workload.visits))]
    assert max(across) == slots - 2


@given(cases(), st.sampled_from([1.0, 3.0]))
def test_any_case_has_a_packing_or_none(case, rest):
    workload, device, plan = case
    keep = packed_keeps(timed(workload, device), set(plan.keep), rest)
    assert keep is None or all(workload.next_same_weights[number] is not None for number in keep)
