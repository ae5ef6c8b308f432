"""The evaluators that need no trace against the engine, to the last bit."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cidl_sim.core.device import DeviceProfile, Loader, Measured
from cidl_sim.core.errors import DeviceError, InfeasibleError, PlanError
from cidl_sim.core.plan import Load, Plan
from cidl_sim.core.timed import timed
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.policies.build import build_plan, deep_prefetch
from cidl_sim.simulator import batch, engine, plain, quick
from cidl_sim.simulator.arrays import Evaluation, arrays_of, evaluation_of
from tests.conftest import analytic_device, uniform_device, uniform_workload
from tests.core.strategies import cases


def simulated(workload: Workload, device: DeviceProfile, plan: Plan) -> Evaluation | None:
    """What the engine finds; None where the plan cannot finish."""
    try:
        return evaluation_of(engine.simulate(workload, device, plan))
    except InfeasibleError:
        return None


def assert_equal(found: Evaluation, expected: Evaluation | None) -> None:
    if expected is None:
        assert found.makespan_s == math.inf
        return
    assert found.makespan_s == expected.makespan_s
    assert found.peak_resident_bytes == expected.peak_resident_bytes
    assert found.first_start_s == expected.first_start_s
    assert found.loader_busy_s == pytest.approx(expected.loader_busy_s)
    assert found.executor_busy_s == pytest.approx(expected.executor_busy_s)
    assert found.stalls_s == pytest.approx(expected.stalls_s, abs=1e-9)


@given(cases(plain=True), st.booleans(), st.randoms(use_true_random=False))
def test_plain_python_is_the_engine_whatever_the_order_of_the_loads(case, shuffled, chance):
    workload, device, plan = case
    if shuffled:
        loads = list(plan.loads)
        chance.shuffle(loads)
        plan = plan.model_copy(update={"loads": tuple(loads)})
    priced = timed(workload, device)
    assert priced.is_plain
    expected = simulated(workload, device, plan)
    assert_equal(plain.evaluate(priced, plan), expected)
    assert_equal(batch.evaluate(arrays_of(priced), plan), expected)


@given(cases())
def test_the_quickest_evaluator_is_the_engine_with_everything_switched_on(case):
    workload, device, plan = case
    priced = timed(workload, device)
    expected = simulated(workload, device, plan)
    assert_equal(quick.evaluate(priced, plan), expected)
    assert_equal(batch.evaluate(arrays_of(priced), plan), expected)
    assert quick.makespan_s(priced, plan) == (math.inf if expected is None else expected.makespan_s)


@given(cases(), st.integers(0, 99), st.booleans())
def test_deep_prefetch_needs_no_plan(case, chance, contention):
    workload, device, _ = case
    if not contention:
        device = device.model_copy(update={"loader": Loader(bandwidth_bytes_per_s=1.0), "thermal": ()})
    following = workload.next_same_weights
    keep = {v for v, then in enumerate(following) if then is not None and (v * 37 + chance) % 5 == 0}
    expected = simulated(workload, device, deep_prefetch("x", workload, device, keep))
    expected_s = math.inf if expected is None else expected.makespan_s
    priced = timed(workload, device)
    assert quick.deep_makespan_s(priced, keep) == expected_s


def test_patience_ends_and_nothing_changes(monkeypatch):
    workload, device = uniform_workload(4, 3), uniform_device(3, 2.0, 1.5)
    priced, plan = timed(workload, device), deep_prefetch("x", workload, device, {0, 4})
    found = quick.evaluate(priced, plan), quick.deep_makespan_s(priced, {0, 4}), quick.makespan_s(priced, plan)
    monkeypatch.setattr(quick, "COMPILED_S", 0.0)
    assert quick.evaluate(priced, plan) == found[0]
    assert quick.deep_makespan_s(priced, {0, 4}) == found[1] == found[2]


def test_a_plan_that_cannot_finish_is_named_where_that_is_asked_for():
    workload, device = uniform_workload(2, 2), analytic_device(1)
    priced, plan = timed(workload, device), deep_prefetch("x", workload, device, {0})
    assert quick.makespan_s(priced, plan) == math.inf
    with pytest.raises(InfeasibleError, match="visit 1"):
        quick.checked_makespan_s(priced, plan)


def test_only_a_plan_that_needs_a_load_of_unknown_cost_is_refused():
    blocks = [Block(name=name, kind=name, weights="w", weight_bytes=1) for name in ("a", "b")]
    workload = Workload(name="twins", stages=[Stage(name="s", blocks=blocks)])
    measured = {"a": Measured(load_s=1.0, exec_s=1.0), "b": Measured(exec_s=1.0)}
    priced = timed(workload, DeviceProfile(name="d", memory_limit_bytes=2, measured=measured))
    assert plain.deep_makespan_s(priced, {0}) == 3.0
    with pytest.raises(DeviceError, match="no load cost for kind 'b'"):
        plain.deep_makespan_s(priced, set())


def test_an_unknown_visit_is_named():
    workload, device = uniform_workload(2, 1), uniform_device(2, 1.0, 1.0)
    plan = build_plan("x", workload, device, [Load(visit=0), Load(visit=7)], ())
    with pytest.raises(PlanError, match="visit 7: the workload has only 2 visits"):
        quick.evaluate(timed(workload, device), plan)


def test_a_plan_for_a_plain_device_is_made_without_numba():
    code = (
        "import sys, cidl_sim as c\n"
        "w, d = c.find_workload('opensora-small-48x48-lpl15-tdtm8'), c.find_device('iphone-15-pro')\n"
        "c.best_plan(w, d, time_limit_s=0.0); sys.exit('numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
