"""How fast the machine computes just now: kept with what runs teach, believed by half when a run is predicted."""

from __future__ import annotations

import pytest

from cidl_sim.calibration.fit import Seen
from cidl_sim.calibration.prediction import at_pace, forecast
from cidl_sim.calibration.profile import RECENT, fit_device, learned
from cidl_sim.core.device import DeviceProfile
from cidl_sim.executor.pace import pace
from tests.calibration.test_fit import MACHINE, QUICK, Observation, observations, plan_of, seen, workload


def at(run: Seen, found: object) -> Seen:
    """The run, made when the machine computed at this pace."""
    header = run.trace.header.model_copy(update={"machine": {**MACHINE, "pace": found}})
    return Seen(run.workload, run.trace.model_copy(update={"header": header}))


def profile_at(*paces: float) -> DeviceProfile:
    made = [Observation(at(one.seen, p), one.result) for one, p in zip(observations(QUICK), paces, strict=True)]
    return fit_device("this", made, 45)


def test_a_profile_keeps_the_pace_of_its_runs_and_learns_that_of_others():
    before = profile_at(2e9, 8e9)
    assert before.provenance.pace == pytest.approx(4e9)
    after = learned(before, [at(seen(QUICK, "next_block"), 16e9)])
    assert after.provenance.pace == pytest.approx(4e9 * 4 ** (1 - RECENT))


@pytest.mark.parametrize("nothing", ["quick", 0.0, -1.0, float("inf"), float("nan")])
def test_a_pace_that_is_none_teaches_nothing(nothing):
    before = profile_at(4e9, 4e9)
    assert learned(before, [at(seen(QUICK, "next_block"), nothing)]).provenance.pace == pytest.approx(4e9)
    assert learned(before, [seen(QUICK, "next_block")]).provenance.pace == pytest.approx(4e9)


@pytest.mark.parametrize(("now", "longer"), [(4e9, 1), (2e9, 2**0.5), (9e9, 2 / 3), (1e6, 3**0.5), (4e15, 3**-0.5)])
def test_executions_follow_the_root_of_the_pace_and_loads_do_not(now, longer):
    device = profile_at(4e9, 4e9)
    changed = at_pace(device, now)
    for kind, known in device.measured.items():
        assert changed.measured[kind].exec_s == pytest.approx(known.exec_s * longer)
        assert changed.measured[kind].load_s == known.load_s


def test_without_a_look_now_or_then_the_profile_is_as_it_was():
    device = profile_at(4e9, 4e9)
    assert at_pace(device, None) is device
    unknown = fit_device("this", observations(QUICK), 45)
    assert unknown.provenance.pace is None
    assert at_pace(unknown, 4e9) is unknown


def test_a_slower_machine_is_expected_to_take_longer():
    device = profile_at(4e9, 4e9)
    plan = plan_of("sequential", QUICK).model_copy(update={"compute_threads": 1, "baseline_bytes": 0})
    usual, slow = (forecast(workload(), plan, device, 1000, now) for now in (4e9, 2e9))
    assert usual.makespan_s == forecast(workload(), plan, device, 1000).makespan_s < slow.makespan_s


def test_a_look_finds_a_pace():
    assert 1e6 < pace() < 1e15
