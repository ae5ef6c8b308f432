"""Break points of small workloads, whose values can be worked out by hand."""

from __future__ import annotations

import pytest

from cidl_sim.core.device import DeviceProfile, Loader, Measured
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.workload import Workload
from cidl_sim.planner.bisection import RATE_RESOLUTION
from cidl_sim.planner.break_points import PAYS, break_points, memory_curve
from cidl_sim.planner.reruns import Reruns, best_policy
from cidl_sim.planner.what_if import what_if
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import makespan_s
from tests.conftest import analytic_device, uniform_device, uniform_workload

WORKLOAD = uniform_workload(4, 3, weight_bytes=10, flops=3)


def points(policy: str, workload: Workload = WORKLOAD, device: DeviceProfile | None = None):
    reruns = Reruns(workload, device or analytic_device(25), policy)
    return {point.name: point for point in break_points(reruns)}


def test_no_plan_fits_below_the_largest_block_with_its_workspace_and_the_baseline():
    workload = uniform_workload(4, 3, weight_bytes=10, workspace_bytes=2, flops=3)
    point = points("spread", workload, analytic_device(40, baseline_bytes=5))["feasible"]
    assert point.value == 17
    assert "block 'b0'" in point.sentence


def test_a_policy_that_needs_more_than_the_largest_block_says_so():
    point = points("prefix:2", device=analytic_device(40))["feasible"]
    # Two blocks stay, a third passes by.
    assert point.value == 30
    assert "another policy may do with 10 bytes" in point.sentence


@pytest.mark.parametrize("policy", ["prefix", "spread"])
def test_retention_stops_paying_where_one_block_less_costs_time(policy):
    point = points(policy)["enough_memory"]
    limit = int(point.value)

    def seconds(limit_bytes: int) -> float:
        device = analytic_device(limit_bytes)
        return makespan_s(WORKLOAD, device, make_plan(policy, WORKLOAD, device))

    assert seconds(limit) <= seconds(1000) * (1 + PAYS)
    assert seconds(limit - 1) > seconds(1000) * (1 + PAYS)
    assert point.makespan_s == seconds(limit)
    # Four blocks of 10 bytes that are too slow to load are all worth keeping.
    assert (limit, point.retained_blocks) == (40, 4)
    # Loads of 10 s behind executions of 3 s: the three first loads after the first one are waited for.
    assert point.sentence.startswith("retention stops paying above 40 bytes, with 4 blocks retained")
    assert "still waits 21 s" in point.sentence


def test_memory_that_only_buys_depth_is_not_called_retention():
    workload = uniform_workload(4, 1, weight_bytes=10, flops=10)
    point = points("spread", workload)["enough_memory"]
    assert (point.value, point.retained_blocks) == (20, 0)
    assert point.sentence.startswith("memory stops paying above 20 bytes, with no block retained")
    assert "waits for the first load alone" in point.sentence


def test_a_policy_that_ignores_memory_is_never_paid_for_it():
    point = points("sequential")["enough_memory"]
    assert point.value == 10
    assert "never pays" in point.sentence


def test_loading_is_hidden_where_a_load_takes_no_longer_than_an_execution():
    point = points("next_block")["hidden_loading"]
    # 10 bytes within 3 s, less the thousandth that counts as none.
    assert 3.32 < point.value < 10 / 3 * RATE_RESOLUTION
    assert point.sentence == f"loading is fully hidden above {point.value:.0f} bytes/s (now 1 bytes/s)"
    # The same point is found from above.
    fast = analytic_device(25, loader=Loader(bandwidth_bytes_per_s=100.0))
    assert points("next_block", device=fast)["hidden_loading"].value == pytest.approx(point.value, rel=0.011)


def test_the_loader_binds_where_both_sides_are_busy_for_equally_long():
    point = points("next_block")["binding_loader"]
    # 120 s of loads against 36 s of executions at one a second.
    assert 0.3 <= point.value <= 0.3 * RATE_RESOLUTION
    assert point.makespan_s == pytest.approx(120 + 3 / point.value, rel=1e-6)


def test_rates_without_a_break_point_say_which_side_of_it_all_are():
    slow = analytic_device(25, loader=Loader(bandwidth_bytes_per_s=1.0, latency_s=100.0))
    assert points("next_block", device=slow)["hidden_loading"].sentence == "no bandwidth hides loading fully"
    assert points("sequential", uniform_workload(1, 1, flops=3))["hidden_loading"].sentence.endswith("any bandwidth")
    assert points("sequential", uniform_workload(4, 3))["binding_loader"].sentence.endswith("any rate of the executor")
    weightless = uniform_workload(4, 3, weight_bytes=0, flops=3)
    found = points("sequential", weightless)["binding_loader"]
    assert found.sentence == "the loader binds at no rate of the executor"
    assert found.value is None


def test_rates_that_the_profile_does_not_give_have_no_break_point():
    found = points("next_block", uniform_workload(4, 3), uniform_device(2, 2, 1))
    for name in ("hidden_loading", "binding_loader"):
        assert found[name].value is None
        assert "is not given" in found[name].sentence


def test_the_memory_curve_falls_and_holds_every_point_of_interest():
    reruns = Reruns(WORKLOAD, analytic_device(25), "spread")
    found = break_points(reruns)
    curve = memory_curve(reruns, found)
    limits = [point.memory_limit_bytes for point in curve]
    assert {10, 25, 40} < set(limits)
    assert limits == sorted(set(limits))
    makespans = [point.makespan_s for point in curve]
    assert makespans == sorted(makespans, reverse=True)
    assert curve[0].retained_blocks == 0
    assert curve[-1].retained_blocks == 4


def test_what_if_takes_the_best_policy_and_reports_every_step():
    steps: list[tuple[str, int, int]] = []
    device = analytic_device(25, measured={"b": Measured(load_s=10)})
    figures = what_if(WORKLOAD, device, None, lambda *step: steps.append(step[:3]))
    assert figures.policy == best_policy(WORKLOAD, device)
    assert figures.makespan_s == makespan_s(WORKLOAD, device, make_plan(figures.policy, WORKLOAD, device))
    assert figures.fall_backs == ("analytic cost for kind b",)
    assert list(dict.fromkeys(step[0] for step in steps)) == ["sensitivities", "break points", "memory curve"]
    for name in {step[0] for step in steps}:
        *_, last = [step for step in steps if step[0] == name]
        assert last[1] == last[2]


def test_a_workload_that_does_not_fit_names_the_block():
    for policy in (None, "spread"):
        with pytest.raises(InfeasibleError, match="block 'b0' needs 10 bytes"):
            what_if(WORKLOAD, analytic_device(9), policy)
