"""The worker says how long the run under way will still take."""

from __future__ import annotations

from types import SimpleNamespace

from cidl_sim.core.forecast import NOTED_SHARES, Forecast
from cidl_sim.worker.estimating import Estimates
from tests.conftest import uniform_workload


class Run:
    """A runtime as far as estimates look at it."""

    def __init__(self) -> None:
        self.elapsed_s, self.schedule, self.noted = 0.0, SimpleNamespace(current=0), []

    def note(self, kind: str, **values: object) -> None:
        self.noted.append((kind, values))


def foreseen(visits: int, visit_s: float) -> Forecast:
    ends = tuple(visit_s * (i + 1) for i in range(visits))
    return Forecast(makespan_s=ends[-1], low_s=0.0, high_s=ends[-1], device_sha256="x", ends_s=ends)


def test_progress_tells_the_time_left_and_the_trace_keeps_it():
    workload, run = uniform_workload(4, 5), Run()
    estimates = Estimates(workload, foreseen(20, 10.0))
    assert estimates.words == ""
    estimates.begin(run)
    for visit in workload.visits[:10]:
        run.elapsed_s, run.schedule.current = 10.0 * (visit.number + 1), visit.number + 1
        estimates(visit)
    assert estimates.words == ", about 2 min left"
    kinds = [kind for kind, _ in run.noted]
    assert kinds == ["predicted", "time_left", "time_left", "time_left"]
    assert [values["share"] for kind, values in run.noted if kind == "time_left"] == list(NOTED_SHARES[:3])


def test_of_a_resumed_run_the_rest_counts():
    workload, run = uniform_workload(4, 5), Run()
    run.schedule.current = 10
    estimates = Estimates(workload, foreseen(20, 10.0))
    estimates.begin(run)
    run.elapsed_s, run.schedule.current = 10.0, 11
    estimates(workload.visits[10])
    assert run.noted[-1][1]["share"] == 0.1
    assert abs(run.noted[-1][1]["left_s"] - 90.0) < 1e-6


def test_without_a_forecast_nothing_is_said():
    workload, run = uniform_workload(1, 2), Run()
    estimates = Estimates(workload, None)
    estimates.begin(run)
    estimates(workload.visits[0])
    assert (estimates.words, run.noted) == ("", [])
