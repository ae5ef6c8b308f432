"""Every case of conformance/ against the simulator, the compiled evaluator and the real runtime."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace

import jsonschema
import pytest
from conformance_cases.catalog import DRAFTS
from conformance_cases.observing import EventRecorder, check, circumstances_of, events_of, refusal_of
from conformance_cases.records import (
    CASES,
    FOLDER,
    SCHEMA,
    Case,
    Completion,
    Driver,
    Happening,
    Refusal,
    read_case,
    schema_text,
)

from cidl_sim.core.errors import CidlError, DeviceError
from cidl_sim.core.timed import timed
from cidl_sim.core.trace import Trace, covered_s
from cidl_sim.policies.build import deep_prefetch
from cidl_sim.simulator.arrays import arrays_of
from cidl_sim.simulator.batch import evaluate, makespans
from cidl_sim.simulator.engine import Engine, simulate
from tests.conformance.stepped_run import stepped_run

# A run that does not go as its case says would wait for ever.
pytestmark = pytest.mark.timeout(120)

COMMITTED = {path.stem: read_case(path) for path in sorted(CASES.glob("*.json"))}
COMPLETED = [name for name, case in COMMITTED.items() if isinstance(case.expect, Completion)]
REFUSED = [name for name in COMMITTED if name not in COMPLETED]


def asked(driver: Driver) -> list[str]:
    """The cases that a driver can be asked."""
    return [name for name, case in COMMITTED.items() if driver not in case.out_of_scope]


def completion_of(case: Case) -> Completion:
    assert isinstance(case.expect, Completion)
    return case.expect


# The files


def test_the_files_are_what_the_script_writes():
    # If this fails: .venv/bin/python experiments/write_conformance.py
    assert SCHEMA.read_text() == schema_text()
    assert sorted(COMMITTED) == sorted(DRAFTS)
    for name, draft in DRAFTS.items():
        assert (CASES / f"{name}.json").read_text() == draft.completed().to_json(), name


def test_the_files_are_valid_for_the_schema():
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in CASES.glob("*.json"):
        validator.validate(json.loads(path.read_text()))


def test_the_schema_refuses_a_case_that_expects_nothing():
    case = json.loads((CASES / "one_block.json").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**case, "expect": {}}, json.loads(SCHEMA.read_text()))


def test_the_page_counts_and_names_what_there_is():
    page = (FOLDER / "README.md").read_text()
    assert f"{len(COMMITTED)} cases" in page
    for name in {event.event for case in COMMITTED.values() for event in case.events}:
        assert f"`{name}`" in page
    for name in re.findall(r"`cases/(\w+)\.json`", page):
        assert name in COMMITTED
    assert max(len(line) for line in page.splitlines()) <= 120


# What was derived by hand

_INTERVAL = re.compile(r"\b(load|visit) (\d+) ([\d.]*\d)-([\d.]*\d)")


def intervals(events: tuple[Happening, ...]) -> Counter[tuple[str, int, float, float]]:
    """Loads and visits that began and ended, with both times."""
    began: dict[tuple[str, int], float] = {}
    result: Counter[tuple[str, int, float, float]] = Counter()
    for event in events:
        operation, _, edge = event.event.partition("_")
        if edge == "started":
            began[operation, event.visit or 0] = event.at_s
        elif operation in ("load", "visit"):
            result[operation, event.visit or 0, began.pop((operation, event.visit or 0)), event.at_s] += 1
    return result


@pytest.mark.parametrize("name", COMPLETED)
def test_the_times_are_those_derived_by_hand(name):
    case = COMMITTED[name]
    by_hand = Counter(
        (operation, int(visit), float(start_s), float(end_s))
        for operation, visit, start_s, end_s in _INTERVAL.findall(" ".join(case.by_hand))
    )
    assert by_hand == intervals(case.events)


@pytest.mark.parametrize("name", REFUSED)
def test_the_visit_of_a_refusal_is_the_one_found_by_hand(name):
    case = COMMITTED[name]
    assert isinstance(case.expect, Refusal)
    error = case.expect.error
    where = "as a whole" if error.block is None else f"at block {error.block}"
    where = where if error.visit is None else f"at visit {error.visit}"
    assert " ".join(case.by_hand).endswith(f"refused {where}.")


@pytest.mark.parametrize("name", COMPLETED)
def test_what_an_implementation_may_rely_on_holds_in_the_file(name):
    case, expect = COMMITTED[name], completion_of(COMMITTED[name])
    assert max(event.resident_bytes for event in expect.events) == expect.peak_resident_bytes
    assert [e.at_s for e in expect.events] == sorted(e.at_s for e in expect.events)
    assert expect.makespan_s == max(e.at_s for e in expect.events if e.event == "visit_finished")
    ran = [e.visit for e in expect.events if e.event == "visit_started"]
    assert ran == sorted(set(ran))
    if not case.scenario.limit_changes:
        assert expect.peak_resident_bytes <= case.device.memory_limit_bytes


@pytest.mark.parametrize("name", COMPLETED)
def test_no_order_of_ends_that_would_matter_is_left_open(name):
    # Whether a load is waste depends on whether it ends before its stage does, or before the limit changes.
    events = COMMITTED[name].events
    decisions = {e.at_s for e in events if e.event in ("stage_ended_early", "limit_changed", "replanned")}
    assert not decisions & {e.at_s for e in events if e.event == "load_finished"}
    changes = {e.at_s for e in events if e.event == "limit_changed"}
    assert not changes & {e.at_s for e in events if e.event == "visit_finished"}


# The simulator


@pytest.mark.parametrize("name", COMPLETED)
def test_the_simulator_gives_the_events_in_order(name):
    case = COMMITTED[name]
    check(case.workload, case.device, case.plan)
    engine = Engine(case.workload, case.device, case.plan, **circumstances_of(case.workload, case.plan, case.scenario))
    recorder = EventRecorder(engine.schedule)
    engine.recorder = recorder
    engine.run()
    expect = completion_of(case)
    assert events_of(case.workload, case.device.baseline_bytes, recorder.reported) == expect.events
    assert engine.finished_s == expect.makespan_s
    assert engine.schedule.peak_resident_bytes == expect.peak_resident_bytes
    assert_accounted_like(recorder, expect)


def assert_accounted_like(recorder: EventRecorder, expect: Completion) -> None:
    """The schedule's own bytes, whenever it settled, are those of the case."""
    for count, bytes_ in recorder.accounted:
        if count and count <= len(expect.events):
            assert expect.events[count - 1].resident_bytes == bytes_


@pytest.mark.parametrize("name", COMPLETED)
def test_the_trace_says_the_same(name):
    case, expect = COMMITTED[name], completion_of(COMMITTED[name])
    circumstances = circumstances_of(case.workload, case.plan, case.scenario)
    trace = simulate(case.workload, case.device, case.plan, **circumstances)
    assert trace.makespan_s == expect.makespan_s
    assert trace.peak_resident_bytes == expect.peak_resident_bytes
    spans = [("load", s) for s in trace.of("load")] + [("visit", s) for s in trace.of("execute")]
    assert Counter((what, s.visit, s.start_s, s.end_s) for what, s in spans) == intervals(expect.events)
    assert releases_of(trace) == Counter((e.visit, e.at_s) for e in expect.events if e.event == "released")
    cold = {event.visit for event in expect.events if event.cold}
    assert {span.visit for span in trace.of("load") if span.cold} <= cold


def releases_of(trace: Trace) -> Counter[tuple[int | None, float]]:
    return Counter((span.visit, span.end_s) for span in trace.of("unload"))


@pytest.mark.parametrize("name", REFUSED)
def test_the_check_or_the_simulator_refuses_with_the_visit_named(name):
    case = COMMITTED[name]
    assert isinstance(case.expect, Refusal)
    with pytest.raises(CidlError) as raised:
        check(case.workload, case.device, case.plan)
        simulate(case.workload, case.device, case.plan, **circumstances_of(case.workload, case.plan, case.scenario))
    assert refusal_of(case.workload, case.device, case.plan, raised.value) == case.expect.error


@pytest.mark.parametrize("name", [name for name in REFUSED if name.startswith("infeasible_")])
def test_the_simulator_without_the_check_stops_at_the_same_visit(name):
    case = COMMITTED[name]
    assert isinstance(case.expect, Refusal)
    with pytest.raises(CidlError) as raised:
        simulate(case.workload, case.device, case.plan)
    assert refusal_of(case.workload, case.device, case.plan, raised.value) == case.expect.error


# The compiled evaluator


COMPILED = [name for name in asked("batch") if name != "a_kind_without_a_cost"]


def test_the_compiled_evaluator_refuses_a_kind_without_a_cost():
    case = COMMITTED["a_kind_without_a_cost"]
    with pytest.raises(DeviceError, match="kind 'b'"):
        arrays_of(timed(case.workload, case.device))


@pytest.mark.parametrize("name", COMPILED)
def test_the_compiled_evaluator_gives_makespan_peak_and_busy_times(name):
    case = COMMITTED[name]
    evaluation = evaluate(arrays_of(timed(case.workload, case.device)), case.plan)
    if isinstance(case.expect, Refusal):
        assert evaluation.makespan_s == float("inf")
        return
    busy = [covered_s((a, b) for what, _, a, b in intervals(case.events) if what == w) for w in ("load", "visit")]
    assert evaluation.makespan_s == pytest.approx(case.expect.makespan_s, rel=1e-9)
    assert evaluation.peak_resident_bytes == case.expect.peak_resident_bytes
    assert [evaluation.loader_busy_s, evaluation.executor_busy_s] == pytest.approx(busy, rel=1e-9)


def is_deep_prefetch(case: Case) -> bool:
    """Whether the plan is one that a row of the evaluator's matrix stands for: loads in order, without gates."""
    plan = deep_prefetch("case", case.workload, case.device, set(case.plan.keep))
    return case.plan.loads == plan.loads


@pytest.mark.parametrize("name", [name for name in COMPILED if is_deep_prefetch(COMMITTED[name])])
def test_the_compiled_matrix_of_policies_gives_the_makespan(name):
    case = COMMITTED[name]
    compiled = arrays_of(timed(case.workload, case.device))
    keep = compiled.stays[None] & False
    keep[0, list(case.plan.keep)] = True
    expected = case.expect.makespan_s if isinstance(case.expect, Completion) else float("inf")
    assert makespans(compiled, keep)[0] == pytest.approx(expected, rel=1e-9)


# The runtime


def by_instant(events: tuple[Happening, ...]) -> list[tuple[float, Counter[tuple[object, ...]]]]:
    """What happens at each instant; a runtime cannot let several things end at once, so their order is its own."""
    instants: dict[float, Counter[tuple[object, ...]]] = {}
    for e in events:
        instants.setdefault(e.at_s, Counter())[e.event, e.visit, e.stage, e.limit_bytes, e.cold] += 1
    return list(instants.items())


@pytest.mark.parametrize("name", asked("runtime"))
def test_the_runtime_starts_and_releases_the_same_at_each_step(name):
    case, expect = COMMITTED[name], completion_of(COMMITTED[name])
    recorder = stepped_run(case)
    events = events_of(case.workload, case.device.baseline_bytes, recorder.reported)
    assert by_instant(events) == by_instant(expect.events)
    for kind in ("load_started", "visit_started", "visit_finished"):
        assert [e.visit for e in events if e.event == kind] == [e.visit for e in expect.events if e.event == kind]
    assert recorder.schedule.peak_resident_bytes == expect.peak_resident_bytes


# That the comparison could fail


def test_a_wrong_rule_is_noticed():
    # Without its gate the load starts earlier, and the case says so.
    draft = DRAFTS["the_gate_at_a_visits_end"]
    ungated = draft.plan.model_copy(
        update={"loads": tuple(load.model_copy(update={"gate": None}) for load in draft.plan.loads)}
    )
    assert replace(draft, plan=ungated).completed().events != draft.completed().events
