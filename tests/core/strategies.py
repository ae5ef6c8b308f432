"""Random workloads, devices and plans for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from cidl_sim.core.device import DeviceProfile, Executor, Loader, Noise, ThermalStep
from cidl_sim.core.feasibility import largest_need
from cidl_sim.core.plan import Gate, Load, Plan
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.policies.build import build_plan


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Up to three stages of up to five blocks; some stages visit the weights of the stage before again."""
    stages: list[Stage] = []
    for s in range(draw(st.integers(1, 3))):
        rounds = draw(st.integers(1, 4))
        if stages and draw(st.booleans()):
            group = stages[-1].group
            blocks = [
                b.model_copy(update={"name": f"s{s}.{i}", "kind": f"s{s}.{i}"}) for i, b in enumerate(stages[-1].blocks)
            ]
        else:
            group = f"g{s}"
            blocks = [
                Block(
                    name=f"s{s}.{i}",
                    kind=f"s{s}.{i}",
                    weight_bytes=draw(st.integers(0, 8)),
                    workspace_bytes=draw(st.integers(0, 4)),
                    flops=draw(st.integers(0, 6)),
                )
                for i in range(draw(st.integers(1, 5)))
            ]
        stages.append(Stage(name=f"s{s}", group=group, rounds=rounds, blocks=tuple(blocks)))
    return Workload(name="random", stages=tuple(stages))


@st.composite
def devices(draw: st.DrawFn, workload: Workload, *, plain: bool = False) -> DeviceProfile:
    """A device that can run the workload block by block, with some room beyond that."""
    need, _ = largest_need(workload)
    baseline = draw(st.integers(0, 3))
    limit = max(1, baseline + need + draw(st.integers(0, 20)))
    if plain:
        loader, executor, thermal = Loader(bandwidth_bytes_per_s=1.0), Executor(flops_per_s=1.0), ()
    else:
        slow = st.sampled_from([1.0, 1.5, 3.0])
        loader = Loader(
            channels=draw(st.integers(1, 3)),
            latency_s=draw(st.sampled_from([0.0, 0.5])),
            bandwidth_bytes_per_s=draw(st.sampled_from([0.5, 1.0, 4.0])),
            slowdown_while_executing=draw(slow),
            first_touch_bytes_per_s=draw(st.sampled_from([None, 2.0])),
        )
        executor = Executor(
            flops_per_s=draw(st.sampled_from([0.5, 1.0, 4.0])),
            launch_s=draw(st.sampled_from([0.0, 0.25])),
            slowdown_while_loading=draw(slow),
        )
        steps = draw(st.lists(st.integers(0, 40), max_size=2, unique=True))
        thermal = tuple(ThermalStep(after_s=t, factor=draw(st.sampled_from([0.5, 0.8, 1.2]))) for t in sorted(steps))
    return DeviceProfile(
        name="random",
        memory_limit_bytes=limit,
        baseline_bytes=baseline,
        loader=loader,
        executor=executor,
        thermal=thermal,
        noise=Noise(load=0.2, execute=0.1),
    )


@st.composite
def plans(draw: st.DrawFn, workload: Workload, device: DeviceProfile) -> Plan:
    """A plan of valid form (loads in order, random keeps and gates); it may still not fit the memory."""
    following, previous = workload.next_same_weights, workload.previous_same_weights
    keep = {v.number for v in workload.visits if following[v.number] is not None and draw(st.integers(0, 3)) == 0}
    loads = []
    for visit in workload.visits:
        if previous[visit.number] in keep:
            continue
        gate = None
        if visit.number and draw(st.booleans()):
            gate = Gate(visit=draw(st.integers(0, visit.number - 1)), edge=draw(st.sampled_from(["start", "end"])))
        loads.append(Load(visit=visit.number, gate=gate))
    return build_plan("random", workload, device, loads, keep)


@st.composite
def cases(draw: st.DrawFn, *, plain: bool = False) -> tuple[Workload, DeviceProfile, Plan]:
    """A workload, a device for it and a plan for both."""
    workload = draw(workloads())
    device = draw(devices(workload, plain=plain))
    return workload, device, draw(plans(workload, device))
