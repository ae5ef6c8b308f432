"""The components on the phone without a technique: published, simulated, and from arithmetic and bytes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.trace import Trace
from cidl_sim.core.workload import Workload
from cidl_sim.devices.published import Rows
from cidl_sim.pipelines.catalog import find_workload
from cidl_sim.pipelines.open_sora.iphone_fit import FITTED_ROWS
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import simulate
from shared.small_runs import round_seconds

COMPONENTS = {"text_encoder": "T5", "denoiser": "STDiT", "decoder": "VAE"}
STEPS = (30, 50)
FULL = {steps: f"opensora-v1.2-256x256-68f-{steps}s" for steps in STEPS}


@dataclass(frozen=True)
class Column:
    """Seconds by component, as one source has them."""

    title: str
    seconds: Mapping[str, float]

    @property
    def total_s(self) -> float:
        """All components together."""
        return sum(self.seconds.values())

    def share(self, component: str) -> float:
        """A component's part of the total."""
        return self.seconds[component] / self.total_s


def elapsed(trace: Trace) -> dict[str, float]:
    """Seconds of each component in a run."""
    return {component: trace.groups[component]["elapsed_s"] for component in COMPONENTS}


def published(rows: Rows, steps: int) -> Column:
    """The component table; for other numbers of steps than the printed 50 so many of its mean step."""
    values = {"text_encoder": "components.t5", "denoiser": "components.stdit_step", "decoder": "components.vae"}
    seconds = {component: rows[row_id].seconds for component, row_id in values.items()}
    seconds["denoiser"] = rows["components.stdit"].seconds if steps == STEPS[-1] else steps * seconds["denoiser"]
    return Column(f"phone, {steps} steps, published", seconds)


def on_the_phone(device: DeviceProfile, steps: int) -> Trace:
    workload = find_workload(FULL[steps])
    return simulate(workload, device, make_plan("sequential", workload, device))


def by_component(workload: Workload, values: Sequence[float]) -> dict[str, float]:
    """The sum over each component's visits of one value for each visit."""
    sums = dict.fromkeys(COMPONENTS, 0.0)
    for visit, value in zip(workload.visits, values, strict=True):
        sums[workload.stages[visit.stage].group] += value
    return sums


def floors(device: DeviceProfile, steps: int) -> tuple[Column, Column]:
    """Arithmetic at the full published rate, and every visit's bytes at the profile's bandwidth."""
    workload = find_workload(FULL[steps])
    flops_per_s, bandwidth = device.executor.flops_per_s, device.loader.bandwidth_bytes_per_s
    assert flops_per_s and bandwidth
    arithmetic = by_component(workload, [visit.block.flops / flops_per_s for visit in workload.visits])
    loads = by_component(workload, [visit.block.weight_bytes / bandwidth for visit in workload.visits])
    return Column("arithmetic", arithmetic), Column("loads", loads)


def full_size_lines(rows: Rows, device: DeviceProfile) -> list[str]:
    """Published, simulated and floors, component by component."""
    bandwidth = (device.loader.bandwidth_bytes_per_s or 0) / 1e9
    lines = [
        "Published: iPhone 15 Pro; simulated: `iphone-15-pro`, Open-Sora v1.2 at 256x256, 68 frames, fp32 (resolution "
        "and frames are not printed). Arithmetic: at the full 2.15 TFLOPS. Bytes: each visit's weights at the "
        f"profile's {bandwidth:.2f} GB/s for later loads, a fitted figure. At these rates a sequential run takes both "
        "added, and no schedule takes less than the arithmetic.",
        "",
        "| component | published s | simulated s | difference | arithmetic s | bytes s | published / both |",
        "|---|---|---|---|---|---|---|",
    ]
    tables = {
        steps: (published(rows, steps), Column("", elapsed(on_the_phone(device, steps))), *floors(device, steps))
        for steps in STEPS
    }
    last = STEPS[-1]
    entries = {name: [column.seconds[c] for column in tables[last]] for c, name in COMPONENTS.items()}
    entries["STDiT, a step"] = [rows["components.stdit_step"].seconds, *(s / last for s in entries.pop("STDiT")[1:])]
    entries |= {f"STDiT, {n} steps": [column.seconds["denoiser"] for column in tables[n]] for n in STEPS}
    entries |= {f"total, {n} steps": [column.total_s for column in tables[n]] for n in STEPS}
    for name, (seconds, predicted, flops_s, bytes_s) in entries.items():
        lines.append(
            f"| {name} | {seconds:.2f} | {predicted:.2f} | {predicted / seconds - 1:+.1%} | {flops_s:.2f} | "
            f"{bytes_s:.2f} | {seconds / (flops_s + bytes_s):.2f} |"
        )
    rounds = round_seconds(on_the_phone(device, STEPS[-1]))
    return [
        *lines,
        "",
        f"Printed are T5, the VAE and 50 steps of STDiT; 30 steps are 30 times the mean step of the 50. "
        f"Elsewhere 30 steps are said to take about {rows['ci.run_without'].seconds:g} s, a step about "
        f"{rows['ci.step_without'].seconds:g} s, T5 {rows['t5.sequential'].seconds:g} s.",
        "",
        f"The profile was fitted to {', '.join(f'`{row}`' for row in FITTED_ROWS)}. So the VAE agrees because it was "
        f"fitted to this very row, and T5 is what the other printed figure ({rows['t5.sequential'].seconds:g} s) says: "
        "neither is evidence for the simulator, and T5's difference is that between the two printed figures. STDiT was "
        f"fitted to other rows (LPL and CI-DL at 256x256), so its row is predicted. The simulated first step takes "
        f"{rounds[0]:.1f} s, each later one {rounds[1]:.1f} s.",
        "",
        "T5 takes many times what its arithmetic and its bytes at the rate of later loads would: each of its blocks is "
        "loaded once, and first loads are slow. STDiT and the VAE have their arithmetic to blame: the profile has them "
        f"at {device.executor.efficiency:.0%} and {vae_efficiency(device):.0%} of the peak.",
    ]


def vae_efficiency(device: DeviceProfile) -> float:
    """Arithmetic over time of the decoder as a whole, as a part of the peak."""
    whole = device.measured["vae"]
    return (whole.flops or 0) / ((whole.exec_s or 1) * (device.executor.flops_per_s or 1))
