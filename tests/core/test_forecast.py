"""The time left: a simulation's word at first, the run's own later."""

from __future__ import annotations

import pytest

from cidl_sim.core.forecast import Forecast, TimeLeft, in_words
from cidl_sim.core.workload import Block, Stage, Workload


def workload() -> Workload:
    def stage(name: str, rounds: int) -> Stage:
        return Stage(name=name, group=name, rounds=rounds, blocks=[Block(name=name, kind="k", weight_bytes=1)])

    return Workload(name="w", stages=[stage("text", 2), stage("denoiser", 30), stage("decoder", 8)])


def forecast(seconds: list[float]) -> Forecast:
    ends = [sum(seconds[: i + 1]) for i in range(len(seconds))]
    return Forecast(makespan_s=ends[-1], low_s=0.0, high_s=100.0, device_sha256="x", ends_s=tuple(ends))


FORESEEN = [2.0] * 2 + [1.0] * 30 + [0.5] * 8


def run(factors: list[float], until: int) -> TimeLeft:
    """A run of which each visit takes so many times what was foreseen."""
    left, at_s = TimeLeft(workload(), forecast(FORESEEN)), 0.0
    for visit in workload().visits[:until]:
        at_s += FORESEEN[visit.number] * factors[visit.number]
        left.visited(visit, at_s)
    return left


def test_before_the_first_visit_it_is_what_was_foreseen():
    assert run([1.0] * 40, 0).left_s(0) == pytest.approx(sum(FORESEEN))


def test_a_run_that_goes_as_foreseen_has_what_was_foreseen_left():
    assert run([1.0] * 40, 17).left_s(17) == pytest.approx(15 * 1.0 + 8 * 0.5)


@pytest.mark.parametrize("factor", [0.5, 1.4])
def test_from_a_quarter_on_it_is_near_whatever_was_foreseen(factor):
    for until in (10, 20, 30):
        whole = factor * sum(FORESEEN)
        at_s = factor * sum(FORESEEN[:until])
        assert at_s + run([factor] * 40, until).left_s(until) == pytest.approx(whole, rel=0.05)


def test_what_another_group_took_counts_until_the_groups_own_visits_are_known():
    slow_text = [3.0] * 2 + [1.0] * 38
    first = run(slow_text, 2).left_s(2)
    assert first > 1.5 * 34
    assert run(slow_text, 12).left_s(12) == pytest.approx(20 + 4, rel=0.15)


def test_visits_that_are_skipped_are_not_waited_for():
    left = run([1.0] * 40, 12)
    assert left.left_s(32) == pytest.approx(4.0)
    assert left.left_s(40) == 0.0


def test_recent_visits_count_more():
    slower = [1.0] * 17 + [2.0] * 23
    assert run(slower, 32).left_s(32) > 1.4 * 4


@pytest.mark.parametrize(("seconds", "words"), [(7.6, "8 s"), (89, "89 s"), (100, "2 min"), (7500, "2 h 5 min")])
def test_durations_are_said_in_words(seconds, words):
    assert in_words(seconds) == words
