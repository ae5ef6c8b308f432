"""How a change of the input has to change the result, whatever the result is.

Without contention and with one loader channel a run is a system of maxima and sums of durations in a fixed order, so
everything that gets slower can only make it end later; heat does not change that, because work that starts later
never ends earlier. With several channels, or with both slowdowns at once, loads that start earlier can do harm:
the tests at the end hold the smallest cases that a random search found. So they can where memory costs time when
it is touched first. The relations that such devices break are therefore claimed, and tested, without them.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cidl_sim.core.device import DeviceProfile, Executor, Loader, Measured, Noise, ThermalStep
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.files import Record
from cidl_sim.core.plan import Gate, Load, Plan
from cidl_sim.core.what_if import with_value
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.policies.build import build_plan, deep_prefetch
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import makespan_s, simulate
from tests.conftest import analytic_device
from tests.core.strategies import cases

ROUNDING = 1e-9


def without_contention(device: DeviceProfile, channels: int = 1) -> DeviceProfile:
    """The device with both slowdowns at one and memory at no cost; latency, rates and thermal steps as they are."""
    alone = {"slowdown_while_executing": 1.0, "channels": channels, "first_touch_bytes_per_s": None}
    return device.model_copy(
        update={
            "loader": device.loader.model_copy(update=alone),
            "executor": device.executor.model_copy(update={"slowdown_while_loading": 1.0}),
        }
    )


@st.composite
def uncontended(draw: st.DrawFn) -> tuple[Workload, DeviceProfile, Plan]:
    """A workload, a device with one channel and without contention, and a plan that can finish."""
    workload, device, plan = draw(cases())
    device = without_contention(device)
    try:
        makespan_s(workload, device, plan)
    except InfeasibleError:
        plan = deep_prefetch("nothing kept", workload, device, set())
    return workload, device, plan


def times(device: DeviceProfile, key: str, factor: float) -> DeviceProfile:
    section, _, field = key.partition(".")
    return with_value(device, key, getattr(getattr(device, section), field) * factor)


@given(uncontended(), st.sampled_from([1.1, 2.0, 7.0]))
def test_more_bandwidth_never_slows_a_plan_down(case, factor):
    workload, device, plan = case
    faster = times(device, "loader.bandwidth_bytes_per_s", factor)
    assert makespan_s(workload, faster, plan) <= makespan_s(workload, device, plan) + ROUNDING


@given(uncontended())
def test_without_latency_doubling_the_bandwidth_halves_pure_load_time(case):
    workload, device, plan = case
    device = with_value(with_value(device, "loader.latency_s", 0.0), "executor.launch_s", 0.0)
    slow, fast = (simulate(workload, d, plan) for d in (device, times(device, "loader.bandwidth_bytes_per_s", 2.0)))

    def seconds_of(trace) -> dict[int, float]:
        return {span.visit: span.end_s - span.start_s for span in trace.of("load")}

    halves = {visit: seconds / 2 for visit, seconds in seconds_of(slow).items()}
    assert seconds_of(fast) == pytest.approx(halves)
    # A run that consists of nothing but loads takes half as long.
    idle = workload.model_copy(
        update={
            "stages": tuple(
                stage.model_copy(update={"blocks": tuple(b.model_copy(update={"flops": 0.0}) for b in stage.blocks)})
                for stage in workload.stages
            )
        }
    )
    plan = deep_prefetch("nothing kept", idle, device, set())
    assert makespan_s(idle, times(device, "loader.bandwidth_bytes_per_s", 2.0), plan) == pytest.approx(
        makespan_s(idle, device, plan) / 2
    )


@given(uncontended(), st.sampled_from([1.1, 2.0, 7.0]))
def test_a_slower_executor_never_lowers_the_makespan(case, factor):
    workload, device, plan = case
    slower = times(device, "executor.flops_per_s", 1 / factor)
    assert makespan_s(workload, slower, plan) >= makespan_s(workload, device, plan) - ROUNDING


@given(uncontended(), st.sampled_from([0.25, 3.0]))
def test_more_latency_never_lowers_the_makespan(case, seconds):
    workload, device, plan = case
    later = with_value(device, "loader.latency_s", device.loader.latency_s + seconds)
    assert makespan_s(workload, later, plan) >= makespan_s(workload, device, plan) - ROUNDING


@given(uncontended(), st.integers(1, 10))
def test_more_memory_never_slows_a_plan_down(case, more):
    workload, device, plan = case
    roomy = with_value(device, "memory_limit_bytes", device.memory_limit_bytes + more)
    assert makespan_s(workload, roomy, plan) <= makespan_s(workload, device, plan) + ROUNDING


@given(uncontended())
def test_contention_of_one_is_no_contention(case):
    workload, device, plan = case
    # Slowdowns of one leave the engine without its fluid model; a thermal factor of one switches it on.
    device = device.model_copy(update={"thermal": ()})
    fluid = device.model_copy(update={"thermal": (ThermalStep(after_s=0.0, factor=1.0),)})
    plain, same = simulate(workload, device, plan), simulate(workload, fluid, plan)
    for operation in ("load", "execute"):
        assert [s.visit for s in same.of(operation)] == [s.visit for s in plain.of(operation)]
        assert [s.end_s for s in same.of(operation)] == pytest.approx([s.end_s for s in plain.of(operation)])


@given(cases(), st.sampled_from([0.25, 4.0]))
def test_a_device_whose_every_rate_is_scaled_takes_the_inverse_time(case, factor):
    # Holds with contention, several channels and heat too: only the unit of time changes.
    workload, device, plan = case
    touch = device.loader.first_touch_bytes_per_s
    scaled = device.model_copy(
        update={
            "loader": device.loader.model_copy(
                update={
                    "bandwidth_bytes_per_s": device.loader.bandwidth_bytes_per_s * factor,
                    "latency_s": device.loader.latency_s / factor,
                    "first_touch_bytes_per_s": touch and touch * factor,
                }
            ),
            "executor": device.executor.model_copy(
                update={
                    "flops_per_s": device.executor.flops_per_s * factor,
                    "launch_s": device.executor.launch_s / factor,
                }
            ),
            "thermal": tuple(s.model_copy(update={"after_s": s.after_s / factor}) for s in device.thermal),
        }
    )
    try:
        usual = makespan_s(workload, device, plan)
    except InfeasibleError:
        return
    assert makespan_s(workload, scaled, plan) == pytest.approx(usual / factor, abs=ROUNDING)


@given(uncontended())
def test_two_stages_that_nothing_crosses_take_the_sum_of_their_times(case):
    workload, device, _ = case
    device = device.model_copy(update={"thermal": ()})
    assume(len({s.group for s in workload.stages}) == len(workload.stages))
    whole = makespan_s(workload, device, gated_at_stages(workload, device))
    parts = [Workload(name=stage.name, stages=(stage,)) for stage in workload.stages]
    assert whole == pytest.approx(sum(makespan_s(part, device, gated_at_stages(part, device)) for part in parts))


@given(uncontended(), st.integers(1, 4))
def test_a_stage_cut_into_two_that_nothing_crosses_takes_the_sum_of_the_parts(case, cut):
    workload, device, _ = case
    device = device.model_copy(update={"thermal": ()})
    blocks = workload.stages[0].blocks
    assume(cut < len(blocks))
    stages = [Stage(name=name, blocks=part) for name, part in (("a", blocks[:cut]), ("b", blocks[cut:]))]
    whole = Workload(name="whole", stages=stages)
    parts = [Workload(name=stage.name, stages=[stage]) for stage in stages]
    assert makespan_s(whole, device, gated_at_stages(whole, device)) == pytest.approx(
        sum(makespan_s(part, device, gated_at_stages(part, device)) for part in parts)
    )


def gated_at_stages(workload: Workload, device: DeviceProfile) -> Plan:
    """Loads as deep as memory allows, but none for a stage before the stage before it has ended."""
    first = {workload.first_visit_of_stage[s] for s in range(1, len(workload.stages))}
    loads = [
        Load(visit=v.number, gate=Gate(visit=v.number - 1, edge="end") if v.number in first else None)
        for v in workload.visits
    ]
    return build_plan("gated", workload, device, loads, ())


def test_memory_that_costs_time_to_touch_can_make_more_memory_slower():
    # With room for one block the second one is read into the first one's memory; with room for two, into memory of its
    # own, which takes 2 s to touch and only 1 s of it passes behind the execution of the first.
    workload = Workload(
        name="two", stages=[Stage(name="s", blocks=[Block(name=n, kind=n, weight_bytes=1, flops=1) for n in "ab"])]
    )
    loader = Loader(bandwidth_bytes_per_s=4.0, first_touch_bytes_per_s=0.5)
    tight, roomy = (analytic_device(room, loader=loader) for room in (1, 2))
    plan = deep_prefetch("nothing kept", workload, tight, set())
    assert makespan_s(workload, tight, plan) == 2 + 0.25 + 1 + 0.25 + 1
    assert makespan_s(workload, roomy, plan) == 2 + 0.25 + 2 + 0.25 + 1


# No dead knob


WITHOUT_EFFECT = {
    "format": "the version of the file",
    "name": "a name",
    "executor.threads": "an instruction to the real executor; what it brings is in the rates and measured costs",
    "measured.a.samples": "how well a cost is known, not how high it is",
    "measured.a.load_spread": "how well a cost is known; simulations take their noise from [noise]",
    "measured.a.exec_spread": "how well a cost is known; simulations take their noise from [noise]",
    "measured.a.workspace_bytes": "what validation predicts the kernel's peak from; plans account the workload's",
    "coreml": "what is said of first and later runs, and of the disk; a simulation takes the costs",
    "provenance": "where the figures come from",
}


def sensitive_device() -> DeviceProfile:
    """A profile in which every figure is given and has something to act on."""
    return DeviceProfile(
        name="sensitive",
        memory_limit_bytes=24,
        baseline_bytes=4,
        loader=Loader(
            channels=1,
            latency_s=0.5,
            bandwidth_bytes_per_s=1.0,
            slowdown_while_executing=1.5,
            first_touch_bytes_per_s=8.0,
        ),
        executor=Executor(
            flops_per_s=1.0,
            efficiency=0.5,
            memory_bandwidth_bytes_per_s=2.0,
            launch_s=0.25,
            slowdown_while_loading=1.25,
            threads=2,
        ),
        measured={"a": Measured(load_s=3, cold_load_s=5, exec_s=2, weight_bytes=2, flops=2, bytes_moved=1, samples=10)},
        noise=Noise(load=0.1, execute=0.1, load_drift=0.1, execute_drift=0.1),
        thermal=(ThermalStep(after_s=40.0, factor=0.5),),
    )


def sensitive_workload() -> Workload:
    """Kind "a" is measured at another size; "b" is bound by arithmetic, "c" by memory traffic."""
    blocks = [
        Block(name="a", kind="a.half", weight_bytes=4, flops=3, bytes_moved=3),
        Block(name="b", kind="b", weight_bytes=6, workspace_bytes=2, flops=3),
        Block(name="c", kind="c", weight_bytes=8, flops=1, bytes_moved=20),
        Block(name="d", kind="d", weight_bytes=5, flops=2),
    ]
    return Workload(name="sensitive", stages=[Stage(name="s", rounds=2, blocks=blocks)])


def figures_of(record: Record, prefix: str = "") -> list[str]:
    """The dotted key of every figure of a profile, those in tables and arrays included, given or not."""
    keys = []
    for field in type(record).model_fields:
        value, key = getattr(record, field), prefix + field
        if key in WITHOUT_EFFECT:
            keys.append(key)
        elif isinstance(value, Record):
            keys += figures_of(value, f"{key}.")
        elif isinstance(value, dict):
            keys += [k for name, inner in value.items() for k in figures_of(inner, f"{key}.{name}.")]
        elif isinstance(value, tuple):
            keys += [k for i, inner in enumerate(value) for k in figures_of(inner, f"{key}.{i}.")]
        else:
            keys.append(key)
    return keys


def with_figure_changed(device: DeviceProfile, key: str) -> DeviceProfile:
    """The profile with the figure under `key` half as large again."""
    data: Any = device.model_dump(mode="json")
    *parents, leaf = key.split(".")
    target = data
    for parent in parents:
        target = target[int(parent)] if isinstance(target, list) else target[parent]
    assert target[leaf], f"{key}: the sensitive profile gives no value to change"
    target[leaf] = target[leaf] * 3 // 2 + 1 if isinstance(target[leaf], int) else target[leaf] * 1.5
    return DeviceProfile.model_validate(data)


@pytest.mark.parametrize("key", figures_of(sensitive_device()))
def test_every_figure_of_a_profile_changes_some_simulated_result(key):
    if key in WITHOUT_EFFECT:
        return
    workload, device = sensitive_workload(), sensitive_device()

    def spans(profile: DeviceProfile) -> list[str]:
        # One plan keeps block "a", which then has a cold load only; the other loads it again.
        plans = (make_plan(policy, workload, profile) for policy in ("prefix:1", "next_block"))
        return [simulate(workload, profile, plan, seed=1).model_dump_json(include={"spans"}) for plan in plans]

    assert spans(with_figure_changed(device, key)) != spans(device)


def test_the_figures_without_effect_are_figures():
    assert set(WITHOUT_EFFECT) < set(figures_of(sensitive_device()))
    assert all(WITHOUT_EFFECT.values())


@pytest.mark.parametrize(
    "key",
    [
        "loader.bandwidth_bytes_per_s",
        "loader.latency_s",
        "executor.flops_per_s",
        "executor.efficiency",
        "executor.launch_s",
    ],
)
def test_on_a_device_that_was_measured_through_and_through_rates_still_count(key):
    workload = sensitive_workload()
    measured = {
        block.kind: Measured(load_s=2, exec_s=1, weight_bytes=block.weight_bytes, flops=block.flops)
        for block in workload.stages[0].blocks
    }
    device = sensitive_device().model_copy(update={"measured": measured})
    plan = make_plan("next_block", workload, device)
    changed = with_value(device, key, 0.75)
    assert makespan_s(workload, changed, plan) != makespan_s(workload, device, plan)


# Where earlier is not better


def one_stage(*blocks: tuple[int, int, int]) -> Workload:
    """Blocks of (weight bytes = load seconds, workspace bytes, flops = execution seconds)."""
    made = [
        Block(name=f"b{i}", kind=f"b{i}", weight_bytes=w, workspace_bytes=s, flops=f)
        for i, (w, s, f) in enumerate(blocks)
    ]
    return Workload(name="w", stages=[Stage(name="s", blocks=made)])


def prefetched_s(workload: Workload, device: DeviceProfile) -> float:
    return makespan_s(workload, device, deep_prefetch("test", workload, device, set()))


def test_with_two_channels_more_memory_can_slow_a_plan_down():
    # b2 is loaded beside b0 as soon as there is room and takes half its bandwidth; b1 runs the later for it.
    workload, loader = one_stage((1, 0, 0), (0, 0, 1), (1, 0, 0)), Loader(channels=2, bandwidth_bytes_per_s=1.0)
    assert prefetched_s(workload, analytic_device(1, loader=loader)) == 2
    assert prefetched_s(workload, analytic_device(2, loader=loader)) == 3


def test_with_two_channels_more_latency_can_speed_a_plan_up():
    # b0 and b2 have no bytes. A second of latency keeps b3 from sharing the bandwidth with b1.
    workload = one_stage((0, 0, 0), (2, 0, 0), (0, 0, 4), (2, 0, 0))
    seconds = [
        prefetched_s(workload, analytic_device(9, loader=Loader(channels=2, latency_s=s, bandwidth_bytes_per_s=1.0)))
        for s in (0.0, 0.5)
    ]
    assert seconds[1] < seconds[0]


def test_where_both_sides_slow_each_other_more_memory_can_slow_a_plan_down():
    # One second of load and one of execution take two one after the other and three side by side.
    workload = one_stage((0, 1, 1), (1, 0, 0))
    loader = Loader(bandwidth_bytes_per_s=1.0, slowdown_while_executing=3.0)
    executor = Executor(flops_per_s=1.0, slowdown_while_loading=3.0)
    assert prefetched_s(workload, analytic_device(1, loader=loader, executor=executor)) == 2
    assert prefetched_s(workload, analytic_device(2, loader=loader, executor=executor)) == 3
