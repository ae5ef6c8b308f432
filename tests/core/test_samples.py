"""What a trace says about costs, on traces whose costs are known: simulated ones."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cidl_sim.core.device import DeviceProfile, Executor, Loader
from cidl_sim.core.samples import Conditions, kinds_of_visits, samples_of
from cidl_sim.core.trace import Trace
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import simulate

POLICIES = ("sequential", "next_block", "prefix:1", "spread:2", "lru")


def workload() -> Workload:
    blocks = [
        Block(name=f"b{i}", kind=f"k{i % 2}", weight_bytes=10 + 7 * (i % 2), flops=20 + 15 * (i % 3 == 0) * (1 - i % 2))
        for i in range(6)
    ]
    blocks = [b.model_copy(update={"kind": f"k{b.weight_bytes}.{b.flops:.0f}"}) for b in blocks]
    return Workload(name="w", stages=[Stage(name="s", rounds=3, blocks=blocks)])


def device(
    latency_s: float, while_executing: float, while_loading: float, first_touch: float | None = None
) -> DeviceProfile:
    return DeviceProfile(
        name="d",
        memory_limit_bytes=60,
        loader=Loader(
            latency_s=latency_s,
            bandwidth_bytes_per_s=5,
            slowdown_while_executing=while_executing,
            first_touch_bytes_per_s=first_touch,
        ),
        executor=Executor(flops_per_s=10, slowdown_while_loading=while_loading),
    )


@settings(deadline=None)
@given(
    policy=st.sampled_from(POLICIES),
    latency_s=st.floats(0, 2),
    while_executing=st.floats(1, 3),
    while_loading=st.floats(1, 3),
    first_touch=st.none() | st.floats(1, 50),
)
def test_durations_free_of_contention_and_first_touch_are_recovered(
    policy, latency_s, while_executing, while_loading, first_touch
):
    truth = device(latency_s, while_executing, while_loading, first_touch)
    trace = simulate(workload(), truth, make_plan(policy, workload(), truth))
    for sample in samples_of(trace, Conditions.of(truth)):
        block = workload().visits[sample.visit].block
        usual = latency_s + block.weight_bytes / 5 if sample.operation == "load" else block.flops / 10
        assert sample.seconds == pytest.approx(usual, rel=1e-6)


def delayed(trace: Trace, seconds: float) -> Trace:
    """As if the driver needed `seconds` before every load and execution of a sequential run."""
    spans, shift = [], 0.0
    for span in sorted(trace.spans, key=lambda s: (s.start_s, s.end_s)):
        if span.operation in ("load", "execute"):
            shift += seconds
            update = {"start_s": span.start_s + shift, "end_s": span.end_s + shift}
            spans.append(span.model_copy(update=update))
    return trace.model_copy(update={"spans": tuple(spans)})


def test_the_drivers_own_time_is_the_gap_before_a_span():
    truth = device(0.0, 1.0, 1.0)
    quiet = simulate(workload(), truth, make_plan("sequential", workload(), truth))
    assert {sample.gap_s for sample in samples_of(quiet)} == {0.0}
    for sample in samples_of(delayed(quiet, 0.25)):
        assert sample.gap_s == pytest.approx(0.25)
        assert sample.cost_s == pytest.approx(sample.seconds + 0.25)


def test_waiting_for_a_load_is_no_gap():
    truth = device(0.0, 1.0, 1.0)
    trace = simulate(workload(), truth, make_plan("next_block", workload(), truth))
    assert trace.idle_s["executor"]["load"] > 1
    assert max(sample.gap_s for sample in samples_of(trace) if sample.operation == "execute") == 0.0


def test_without_slowdowns_the_span_is_the_sample():
    truth = device(0.5, 2.0, 1.5)
    trace = simulate(workload(), truth, make_plan("spread:2", workload(), truth))
    lengths = {(s.operation, s.visit): s.end_s - s.start_s for s in trace.spans if s.operation in ("load", "execute")}
    for sample in samples_of(trace):
        assert sample.seconds == pytest.approx(lengths[sample.operation, sample.visit])


def test_kinds_are_numbered_as_the_visits_are():
    truth = device(0.0, 1.0, 1.0)
    trace = simulate(workload(), truth, make_plan("sequential", workload(), truth))
    assert kinds_of_visits(trace) == [visit.block.kind for visit in workload().visits]
