import pytest
from hypothesis import given

from cidl_sim.core.errors import InfeasibleError, TraceError
from cidl_sim.core.trace import StageOutline, Trace, read_trace
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import simulate
from tests.conftest import uniform_device, uniform_workload
from tests.core.strategies import cases


def small_trace(policy: str = "next_block", load_s: float = 2, exec_s: float = 1) -> Trace:
    workload, device = uniform_workload(2, 2), uniform_device(2, load_s, exec_s)
    return simulate(workload, device, make_plan(policy, workload, device))


def test_the_figures_of_a_sequential_run():
    trace = small_trace("sequential")
    assert trace.makespan_s == 12
    assert trace.executor_busy_s == 4
    assert trace.loader_busy_s == 8
    assert trace.overlap_s == 0
    assert trace.idle_s == {"executor": {"load": 8.0}, "loader.0": {"gate": 3.0}}
    assert trace.peak_resident_bytes == 1


def test_the_figures_of_an_overlapped_run():
    trace = small_trace("next_block")
    # Loads end at 2, 4, 6, 8; each visit starts when its load ends.
    assert trace.makespan_s == 9
    assert trace.overlap_s == 3
    assert trace.idle_s["executor"] == {"load": 5.0}


def test_groups_add_up_to_the_makespan():
    trace = small_trace()
    assert sum(group["elapsed_s"] for group in trace.groups.values()) == trace.makespan_s


@given(cases())
def test_busy_and_idle_times_fill_the_executors_time(case):
    workload, device, plan = case
    try:
        trace = simulate(workload, device, plan)
    except InfeasibleError:
        return
    idle = sum(trace.idle_s.get("executor", {}).values())
    assert trace.executor_busy_s + idle == pytest.approx(trace.makespan_s)
    assert trace.overlap_s <= min(trace.executor_busy_s, trace.loader_busy_s) + 1e-9
    assert sum(group["elapsed_s"] for group in trace.groups.values()) == pytest.approx(trace.makespan_s)
    assert trace.memory_curve[-1][1] == device.baseline_bytes


@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_a_trace_survives_its_file(tmp_path, name):
    trace = small_trace()
    trace.write(tmp_path / name)
    assert read_trace(tmp_path / name) == trace


def test_equal_traces_give_equal_bytes_compressed_too(tmp_path):
    for name in ("a.json.gz", "b.json.gz"):
        small_trace().write(tmp_path / name)
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()


@pytest.mark.parametrize(("name", "data"), [("t.json", b"{}"), ("t.json", b"\xff"), ("t.json.gz", b"no gzip")])
def test_a_wrong_file_is_refused_with_its_name(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TraceError, match=r"t\.json"):
        read_trace(tmp_path / name)
    with pytest.raises(TraceError, match="missing"):
        read_trace(tmp_path / "missing.json")


def test_the_rounds_that_ran_are_read_from_the_spans():
    workload, device = uniform_workload(2, 5), uniform_device(2, 2, 1)
    plan = make_plan("next_block", workload, device)
    trace = simulate(workload, device, plan, stage_rounds={0: 3})
    assert trace.stage_rounds == {0: 3}
    assert [event.kind for event in trace.events] == ["stage_ended_early"]


def test_stages_add_up_to_the_makespan_and_a_visit_knows_its_place():
    trace = small_trace()
    assert trace.stages == {0: trace.groups["denoiser"]}
    assert [tuple(trace.header.place_of(visit)) for visit in range(4)] == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]
    with pytest.raises(IndexError):
        trace.header.place_of(4)


def test_a_stage_outline_has_a_kind_for_each_block():
    with pytest.raises(ValueError, match="2 blocks but 1 kinds"):
        StageOutline(name="s", group="s", rounds=1, blocks=("a", "b"), kinds=("k",))
