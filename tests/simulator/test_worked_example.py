"""docs/tutorial/worked_example.md computes a schedule by hand; the engine's trace is it, to the last event."""

from __future__ import annotations

from pathlib import Path

import pytest

from cidl_sim.core.device import DeviceProfile, read_device
from cidl_sim.core.feasibility import check_plan
from cidl_sim.core.plan import Load, Plan, read_plan
from cidl_sim.core.trace import Trace
from cidl_sim.core.workload import Workload, read_workload
from cidl_sim.policies.build import build_plan
from cidl_sim.simulator.engine import simulate

FOLDER = Path(__file__).parents[2] / "docs/tutorial/worked_example"

# visit: block, start, end, workspace, accounted bytes after it
EXECUTIONS = [
    (0, "A", 2, 5, 0, 6),
    (1, "B", 5, 7, 1, 4),
    (2, "C", 7, 11, 2, 3),
    (3, "D", 15, 17, 0, 5),
    (4, "E", 17, 20, 0, 6),
    (5, "A", 20, 23, 0, 5),
    (6, "B", 23, 25, 1, 2),
    (7, "C", 25, 29, 2, 5),
    (8, "D", 29, 31, 0, 3),
    (9, "E", 31, 34, 0, 1),
]
# visit, block, start, end, weight bytes, first load of its weights, accounted bytes after it
LOADS = [
    (0, "A", 0, 2, 2, True, 3),
    (1, "B", 2, 5, 3, True, 6),
    (2, "C", 5, 6, 1, True, 8),
    (3, "D", 11, 15, 4, True, 7),
    (4, "E", 15, 17, 2, True, 5),
    (6, "B", 17, 20, 3, False, 6),
    (7, "C", 20, 21, 1, False, 7),
    (8, "D", 25, 29, 4, False, 5),
    (9, "E", 29, 31, 2, False, 3),
]
# worker, cause, the visit that is held up, start, end, accounted bytes when it goes on
WAITS = [
    ("executor", "load", 0, 0, 2, 3),
    ("loader.0", "gate", 3, 6, 7, 6),
    ("loader.0", "memory", 3, 7, 11, 7),
    ("executor", "load", 3, 11, 15, 7),
    ("loader.0", "memory", 8, 21, 25, 8),
]
# visit, block, time, weight bytes, accounted bytes after it; A stays from visit 0 to visit 5
UNLOADS = [
    (1, "B", 7, 3, 4),
    (2, "C", 11, 1, 3),
    (3, "D", 17, 4, 5),
    (4, "E", 20, 2, 6),
    (5, "A", 23, 2, 5),
    (6, "B", 25, 3, 2),
    (7, "C", 29, 1, 5),
    (8, "D", 31, 4, 3),
    (9, "E", 34, 2, 1),
]


@pytest.fixture(scope="module")
def example() -> tuple[Workload, DeviceProfile, Plan, Trace]:
    workload, device = read_workload(FOLDER / "workload.json"), read_device(FOLDER / "device.toml")
    plan = read_plan(FOLDER / "plan.json")
    check_plan(workload, device, plan)
    return workload, device, plan, simulate(workload, device, plan)


def test_the_trace_is_the_schedule_computed_by_hand_to_the_last_event(example):
    workload, _, _, trace = example
    by_hand = [
        *(("execute", "executor", v, a, b, ws, False, None, held) for v, _, a, b, ws, held in EXECUTIONS),
        *(("load", "loader.0", v, a, b, size, cold, None, held) for v, _, a, b, size, cold, held in LOADS),
        *(("wait", worker, v, a, b, 0, False, cause, held) for worker, cause, v, a, b, held in WAITS),
        *(("unload", "executor", v, at, at, size, False, None, held) for v, _, at, size, held in UNLOADS),
    ]
    recorded = [
        (s.operation, s.worker, s.visit, s.start_s, s.end_s, s.bytes, s.cold, s.cause, s.resident_bytes)
        for s in trace.spans
    ]
    assert sorted(recorded, key=str) == sorted(by_hand, key=str)
    assert trace.events == ()
    for visit, name, *_ in (*EXECUTIONS, *LOADS, *UNLOADS):
        assert workload.visits[visit].block.name == name


def test_the_figures_of_the_example_follow_from_its_spans(example):
    _, device, _, trace = example
    assert trace.makespan_s == 34
    assert trace.executor_busy_s == 2 * (3 + 2 + 4 + 2 + 3)
    assert trace.loader_busy_s == 12 + 10
    assert trace.idle_s == {"executor": {"load": 6.0}, "loader.0": {"gate": 1.0, "memory": 8.0}}
    assert trace.peak_resident_bytes == device.memory_limit_bytes == 9


def test_without_retaining_a_the_example_ends_four_seconds_earlier(example):
    workload, device, plan, _ = example
    gates = {load.visit: load.gate for load in plan.loads}
    loads = [Load(visit=visit.number, gate=gates.get(visit.number)) for visit in workload.visits]
    trace = simulate(workload, device, build_plan("by_hand", workload, device, loads, keep=()))
    assert trace.makespan_s == 30
    assert [(s.start_s, s.end_s) for s in trace.of("load") if s.visit in (3, 5)] == [(7, 11), (13, 15)]


def test_the_page_tells_the_same_times():
    page = (FOLDER.parent / "worked_example.md").read_text()
    for visit, name, start, end, *_ in EXECUTIONS:
        assert f"visit {visit} ({name}) {start}-{end}" in page
    for visit, name, start, end, *_ in LOADS:
        assert f"load {visit} ({name}) {start}-{end}" in page
