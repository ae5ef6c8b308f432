"""Differences between traces whose figures can be read off their workloads."""

from __future__ import annotations

import pytest
from hypothesis import given

from cidl_sim.core.errors import InfeasibleError, TraceError
from cidl_sim.core.trace import Trace
from cidl_sim.core.workload import Block, Workload
from cidl_sim.policies.catalog import make_plan
from cidl_sim.report.trace_diff import LARGEST, trace_difference
from cidl_sim.simulator.engine import simulate
from tests.conftest import uniform_device, uniform_workload
from tests.core.strategies import cases


def run(policy: str = "sequential", *, rounds: int = 2, load_s: float = 2, exec_s: float = 1, **more) -> Trace:
    workload, device = uniform_workload(2, rounds), uniform_device(2, load_s, exec_s)
    return simulate(workload, device, make_plan(policy, workload, device), **more)


def parts_of(figures: dict, what: str = "makespan") -> dict[str, tuple[float, float, float]]:
    return {part["part"]: (part["a_s"], part["b_s"], part["difference_s"]) for part in figures[what]}


def test_a_trace_and_itself_do_not_differ():
    figures = trace_difference(run(), run())
    assert figures["identical"]
    assert figures["header_differences"] == []
    assert figures["compared"] == "all rounds"
    assert figures["makespan_difference_s"] == 0
    assert all(part["difference_s"] == 0 for part in figures["makespan"] + figures["loader"])
    assert sum(stage["spans_moved"] for stage in figures["stages"]) == 0
    for name in ("largest_by_duration", "largest_by_start", "loads_only_in_a", "loads_only_in_b"):
        assert figures[name] == []


def test_equal_spans_under_other_headers_are_identical_but_for_those():
    other = run()
    other = other.model_copy(update={"header": other.header.model_copy(update={"date": "2026-01-02"})})
    figures = trace_difference(run(), other)
    assert figures["identical"]
    assert figures["header_differences"] == ["date"]


def test_longer_executions_are_told_from_longer_waits():
    figures = trace_difference(run(), run(exec_s=3))
    assert not figures["identical"]
    assert figures["makespan_difference_s"] == 8
    assert parts_of(figures) == {"execute: longer": (4, 12, 8), "wait: load": (8, 8, 0)}
    figures = trace_difference(run(), run(load_s=3))
    assert parts_of(figures) == {"execute: as long": (4, 4, 0), "wait: load": (8, 12, 4)}
    assert parts_of(figures, "loader")["load: longer"] == (8, 12, 4)


def test_what_shrinks_is_negative():
    figures = trace_difference(run(exec_s=3), run())
    assert parts_of(figures)["execute: shorter"] == (12, 4, -8)


def test_spans_that_moved_are_listed_the_largest_first():
    figures = trace_difference(run(), run(exec_s=3))
    by_start, by_duration = figures["largest_by_start"], figures["largest_by_duration"]
    # The last load and the last visit begin three visits later, each two seconds longer.
    last = {"stage": "denoiser", "round": 1, "block": "b1", "start_difference_s": 6}
    assert [{key: row[key] for key in last} for row in by_start[:2]] == [last, last]
    assert {row["operation"] for row in by_start[:2]} == {"load", "execute"}
    assert [row["start_difference_s"] for row in by_start] == [6, 6, 4, 4, 2, 2]
    assert [(row["operation"], row["duration_difference_s"]) for row in by_duration] == [("execute", 2)] * 4
    (stage,) = figures["stages"]
    assert (stage["spans_moved"], stage["spans_in_both"]) == (7, 8)  # not the first load
    assert stage["largest_start_difference_s"] == 6
    assert stage["elapsed_difference_s"] == stage["executing_difference_s"] == 8
    assert stage["loading_difference_s"] == 0


def test_the_lists_of_spans_are_not_endless():
    figures = trace_difference(run(rounds=9), run(rounds=9, exec_s=3))
    assert len(figures["largest_by_start"]) == len(figures["largest_by_duration"]) == LARGEST


def test_loads_that_only_one_has_are_named():
    figures = trace_difference(run(), run("lru"))
    assert [(row["round"], row["block"]) for row in figures["loads_only_in_a"]] == [(1, "b0"), (1, "b1")]
    assert {key: figures["loads_only_in_a"][0][key] for key in ("operation", "bytes", "duration_s")} == {
        "operation": "load",
        "bytes": 1,
        "duration_s": 2,
    }
    assert figures["loads_only_in_b"] == []
    assert figures["stages"][0]["loads_only_in_a"] == 2
    assert parts_of(figures, "loader")["load: only in one"] == (4, 0, -4)


def test_a_load_made_again_has_no_partner_in_a_run_that_made_it_once():
    first = run()
    load = first.of("load")[-1]
    again = load.model_copy(update={"start_s": 20.0, "end_s": 21.0})
    figures = trace_difference(first, first.model_copy(update={"spans": (*first.spans, again)}))
    assert [(row["round"], row["block"], row["start_s"]) for row in figures["loads_only_in_b"]] == [(1, "b1", 20.0)]
    assert figures["loads_only_in_a"] == []


def test_gaps_without_a_span_are_a_part_of_their_own():
    trace = run()
    without_waits = trace.model_copy(update={"spans": tuple(s for s in trace.spans if s.operation != "wait")})
    assert parts_of(trace_difference(trace, without_waits)) == {
        "execute: as long": (4, 4, 0),
        "wait: load": (8, 0, -8),
        "other": (0, 8, 8),
    }


# Workloads


def test_a_stage_that_ended_early_leaves_visits_that_only_one_ran():
    figures = trace_difference(run(), run(stage_rounds={0: 1}))
    assert figures["compared"] == "all rounds"
    assert parts_of(figures)["execute: only in one"] == (2, 0, -2)


def test_workloads_that_differ_in_rounds_are_compared_where_they_meet():
    figures = trace_difference(run(rounds=3), run(rounds=5))
    assert figures["compared"].endswith("(rounds of denoiser 3 and 5)")
    assert parts_of(figures) == {
        "execute: as long": (6, 6, 0),
        "execute: only in one": (0, 4, 4),
        "wait: load": (12, 20, 8),
    }
    assert figures["stages"][0]["spans_moved"] == 0
    assert len(figures["loads_only_in_b"]) == 4


def other_workload(name: str, rounds: int, weight_bytes: int) -> Trace:
    stage = uniform_workload(2, rounds).stages[0]
    blocks = tuple(Block(name=f"{name}{i}", kind="b", weight_bytes=weight_bytes) for i in range(2))
    workload = Workload(name="other", stages=(stage.model_copy(update={"blocks": blocks}),))
    device = uniform_device(4, 2, 1)
    return simulate(workload, device, make_plan("sequential", workload, device))


@pytest.mark.parametrize(("name", "rounds", "weight_bytes"), [("c", 2, 1), ("c", 3, 1), ("b", 2, 2), ("b", 3, 2)])
def test_other_workloads_are_refused(name, rounds, weight_bytes):
    with pytest.raises(TraceError, match=r"different workloads: uniform .* and other"):
        trace_difference(run(), other_workload(name, rounds, weight_bytes))


# Any traces


@given(cases())
def test_parts_add_up_and_differences_change_their_sign_with_the_order(case):
    workload, device, plan = case
    try:
        a = simulate(workload, device, plan)
        b = simulate(workload, device, make_plan("sequential", workload, device), seed=3)
    except InfeasibleError:
        return
    there, back = trace_difference(a, b), trace_difference(b, a)
    assert there["makespan_difference_s"] == -back["makespan_difference_s"]
    for name in ("makespan", "loader"):
        totals = [sum(part["difference_s"] for part in figures[name]) for figures in (there, back)]
        assert totals[0] == pytest.approx(-totals[1])
    for side, trace in (("a_s", a), ("b_s", b)):
        assert sum(part[side] for part in there["makespan"]) == pytest.approx(trace.makespan_s)
    for row, reverse in zip(there["stages"], back["stages"], strict=True):
        for name in ("elapsed_difference_s", "executing_difference_s", "loading_difference_s"):
            assert row[name] == -reverse[name]
        assert row["spans_moved"] == reverse["spans_moved"]
    assert sum(row["elapsed_difference_s"] for row in there["stages"]) == pytest.approx(there["makespan_difference_s"])
    assert there["loads_only_in_a"] == back["loads_only_in_b"]
    assert trace_difference(a, a)["identical"]
