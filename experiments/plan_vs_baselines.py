"""The planner's plan against the reference app, the best prefix and a lookahead of one, run for real.

    .venv/bin/python experiments/plan_vs_baselines.py [--rounds 3] [--quick]

Two pipelines in which one network weighs nearly everything: T5-XXL's encoder with fewer layers, over several prompts,
and STDiT3-XL/2 with fewer pairs, over several denoising steps; layer shapes are the published ones. Each runs once
bound by the loader and once balanced: two probes give seconds against arithmetic, from which the number of tokens (T5)
or the size of the picture (STDiT) is chosen, and `cidl calibrate`'s runs at both sizes give the profile that the plans
are made with. Then every plan runs under a limit that the kernel holds, interleaved over the rounds. Stores (at most
4 GB at a time) go to a temporary folder. Writes experiments/results/plan_vs_baselines.md and .png when everything has
run; --quick runs narrow layers once and writes to a temporary folder. About 15 minutes on 2 cores, --quick 5.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt

from cidl_sim.blocks.cuts import Dtype
from cidl_sim.calibration.this_machine import Calibration, Target
from cidl_sim.core.costs import execute_cost, load_cost
from cidl_sim.core.device import DeviceProfile, Executor, Loader
from cidl_sim.core.files import replacing, write_text
from cidl_sim.core.plan import Plan
from cidl_sim.core.trace import Header, Trace, read_trace
from cidl_sim.core.what_if import with_value
from cidl_sim.core.workload import Stage, Workload
from cidl_sim.executor.job import Job, run_job
from cidl_sim.executor.store import BlockStore
from cidl_sim.models.sizes import STDiT3Sizes, T5Sizes, VAESizes
from cidl_sim.pipelines.catalog import workload_of
from cidl_sim.pipelines.matching import store_sizes
from cidl_sim.pipelines.model_store import build_random_store
from cidl_sim.pipelines.open_sora.settings import OpenSoraSizes, VideoSettings
from cidl_sim.planner.evaluate import evaluated_plan
from cidl_sim.planner.planner import best_plan
from cidl_sim.policies.catalog import make_plan

RESULTS = Path(__file__).parent / "results"
BASELINES = ("on_device_sora", "prefix", "next_block")
PLANNED = "planner"
# Seconds of loading all blocks once over seconds of executing them.
WANTED = {"loader-bound": 2.0, "balanced": 1.0}
PROMPT = "a red ball"
PLANNING_LIMIT_S = 5.0
SMALL_VAE = VAESizes(
    temporal_filters=8, temporal_res_blocks=1, spatial_channels=(8, 8, 16, 16), spatial_layers=1, groups=4
)


@dataclass(frozen=True)
class Network:
    """A pipeline in which the network of `group` weighs nearly everything.

    `lengths`: the tokens, or the edges of the picture, to choose from. `fractions`: of the weights, so much may be in
    memory at a time.
    """

    title: str
    group: str
    sizes: OpenSoraSizes
    settings: VideoSettings
    lengths: tuple[int, ...]
    fractions: dict[str, float]

    def variant(self, length: int) -> tuple[OpenSoraSizes, VideoSettings]:
        """The model and the settings at one of the lengths."""
        if self.group == "text_encoder":
            name = f"{self.sizes.name}-{length}t"
            return self.sizes.model_copy(update={"name": name, "text_encoder_tokens": length}), self.settings
        return self.sizes, self.settings.model_copy(update={"height": length, "width": length})

    def stage(self, workload: Workload) -> Stage:
        """The network's first stage."""
        return next(stage for stage in workload.stages if stage.group == self.group)


def t5(name: str, layers: T5Sizes, lengths: tuple[int, ...], dtype: Dtype) -> Network:
    sizes = OpenSoraSizes(
        name=name,
        t5=layers,
        stdit=STDiT3Sizes(depth=1, hidden=48, heads=4, max_text_tokens=lengths[-1]),
        vae=SMALL_VAE,
        nominal_text_tokens=48,
    )
    settings = VideoSettings(height=16, width=16, frames=1, steps=1, dtype=dtype, prompts=3)
    title = f"T5, {layers.layers} layers of width {layers.d_model}, {dtype}, {settings.prompts} prompts"
    return Network(title, "text_encoder", sizes, settings, lengths, {"loader-bound": 0.5, "balanced": 0.45})


def stdit(name: str, pairs: STDiT3Sizes, lengths: tuple[int, ...]) -> Network:
    sizes = OpenSoraSizes(
        name=name,
        t5=T5Sizes(layers=1, d_model=64, d_ff=128, heads=2, d_kv=32, vocabulary=384),
        stdit=pairs,
        vae=SMALL_VAE,
        text_encoder_tokens=96,
        nominal_text_tokens=48,
    )
    settings = VideoSettings(height=16, width=16, frames=17, steps=5, dtype="fp32")
    title = f"STDiT3, {pairs.depth} pairs of width {pairs.hidden}, fp32, {settings.steps} steps"
    return Network(title, "denoiser", sizes, settings, lengths, {"loader-bound": 0.5, "balanced": 0.4})


FULL_WIDTH = (
    t5("t5-xxl-8", T5Sizes(layers=8, vocabulary=384), (64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512), "bf16"),
    stdit("stdit3-xl2-8", STDiT3Sizes(depth=8), (32, 48, 64, 80, 96, 112, 128)),
)
NARROW = (
    t5("t5-narrow", T5Sizes(layers=4, d_model=256, d_ff=640, heads=4, vocabulary=384), (64, 128, 256), "fp32"),
    stdit("stdit3-narrow", STDiT3Sizes(depth=4, hidden=288, heads=4), (16, 32, 48)),
)


@dataclass
class Comparison:
    """One network in one regime: the plans, what the profile says of them, and the makespans measured by round."""

    network: Network
    regime: str
    length: int
    store: BlockStore
    workload: Workload
    device: DeviceProfile
    loads_per_execution: float
    plans: dict[str, Plan]
    planned: Trace
    measured_s: dict[str, list[float | None]] = field(default_factory=dict)  # None: killed for its memory
    header: Header | None = None  # of the last run

    def simulated_ratio(self, policy: str) -> float:
        """A policy's simulated makespan over the planner's."""
        return (self.plans[policy].makespan_s or 0.0) / self.planned.makespan_s

    def measured_ratios(self, policy: str) -> list[float]:
        """A policy's makespan over the planner's in the same round."""
        pairs = zip(self.measured_s[policy], self.measured_s[PLANNED], strict=True)
        return [theirs / ours for theirs, ours in pairs if theirs is not None and ours is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    networks, rounds = (NARROW, 1) if arguments.quick else (FULL_WIDTH, arguments.rounds)
    done: list[Comparison] = []
    for network in networks:
        with tempfile.TemporaryDirectory(prefix="cidl-plan-vs-baselines-") as folder:
            compared = compare(network, Path(folder), rounds)
        done += compared
    results = Path(tempfile.mkdtemp(prefix="cidl-quick-")) if arguments.quick else RESULTS
    command = "--quick" if arguments.quick else f"--rounds {rounds}"
    draw(done, results / "plan_vs_baselines.png")
    write_text(results / "plan_vs_baselines.md", text(done, command))
    print(f"\n{text(done, command)}\n{results}")


def compare(network: Network, folder: Path, rounds: int) -> list[Comparison]:
    """Build, choose sizes, calibrate, plan, and run every plan in every round."""
    say(network, f"building the store of {network.sizes.name}")
    base = build_random_store(folder / "store", network.sizes, network.settings.dtype, seed=0)
    chosen = choose_lengths(network, base, folder)
    targets = {length: target(network, base, length, folder) for length in chosen.values()}
    device = calibrated(network, list(targets.values()))
    comparisons = [planned(network, regime, length, *targets[length], device) for regime, length in chosen.items()]
    for number in range(rounds):
        for comparison in comparisons:
            one_round(comparison, number, rounds, folder)
    return comparisons


def threads() -> int:
    """One core is left to the loader, as in `experiments/validation.py`."""
    return max(1, (os.cpu_count() or 2) - 1)


def say(network: Network, what: str) -> None:
    print(f"{network.title}: {what}", flush=True)


def target(network: Network, base: BlockStore, length: int, folder: Path) -> Target:
    """A store and settings for one length. T5's weights serve any number of tokens: their files are linked."""
    sizes, settings = network.variant(length)
    root = folder / sizes.name
    if sizes == network.sizes:
        return base, settings
    if not root.exists():
        root.mkdir()
        for name in (*(entry.file for entry in base.index.blocks.values()), ".verified.json"):
            os.link(base.root / name, root / name)
        index = base.index.model_copy(update={"name": sizes.name, "model": sizes.model_dump(mode="json")})
        write_text(root / "store.json", index.model_dump_json(indent=1) + "\n")
    return BlockStore.open(root), settings


def choose_lengths(network: Network, base: BlockStore, folder: Path) -> dict[str, int]:
    """For each regime the length whose loads over executions come nearest to what is wanted.

    Seconds of executions are a line through the shortest and the longest probe, against arithmetic.
    """
    probes = [
        probe(*target(network, base, n, folder), network, folder) for n in (network.lengths[0], network.lengths[-1])
    ]
    load_s = statistics.fmean(loading for loading, _, _ in probes)
    (_, low_s, low_flops), (_, high_s, high_flops) = probes
    slope = (high_s - low_s) / (high_flops - low_flops)

    def ratio(length: int) -> float:
        flops = sum(block.flops for block in network.stage(workload_of(*network.variant(length))).blocks)
        return load_s / (low_s + slope * (flops - low_flops))

    ratios = {length: ratio(length) for length in network.lengths}
    say(network, f"expected loads / executions: { ({n: round(r, 2) for n, r in ratios.items()}) }")
    return {
        regime: min(ratios, key=lambda n: max(ratios[n] / wanted, wanted / ratios[n]))
        for regime, wanted in WANTED.items()
    }


def probe(store: BlockStore, settings: VideoSettings, network: Network, folder: Path) -> tuple[float, float, float]:
    """Seconds of loading and of executing the network's blocks once, one after another, and their arithmetic."""
    short = settings.model_copy(update={"steps": 1, "prompts": 1})
    workload = workload_of(store_sizes(store), short)
    room = workload.weights_bytes + max(visit.block.workspace_bytes for visit in workload.visits)
    roomy = DeviceProfile(
        name="uncalibrated",
        memory_limit_bytes=room,
        loader=Loader(bandwidth_bytes_per_s=1e9),
        executor=Executor(flops_per_s=1e11, threads=threads()),
    )
    trace = run(store, make_plan("sequential", workload, roomy), short, None, folder)
    assert trace is not None
    stage = network.stage(workload)
    first = workload.first_visit_of_stage[workload.stages.index(stage)]
    visits = range(first, first + len(stage.blocks))
    loading, executing = (
        sum(span.end_s - span.start_s for span in trace.of(operation) if span.visit in visits)
        for operation in ("load", "execute")
    )
    return loading, executing, sum(block.flops for block in stage.blocks)


def calibrated(network: Network, targets: Sequence[Target]) -> DeviceProfile:
    """What `cidl calibrate` measures at the lengths that were chosen."""
    calibration = Calibration(targets, compute_threads=threads())
    for number, _ in enumerate(calibration.runs(), start=1):
        say(network, f"calibration run {number} of {calibration.runs_per_round}")
    return calibration.device()


def planned(
    network: Network, regime: str, length: int, store: BlockStore, settings: VideoSettings, device: DeviceProfile
) -> Comparison:
    """The plans of one regime under its limit, with their simulated makespans."""
    workload = workload_of(store_sizes(store), settings)
    workspace = max(visit.block.workspace_bytes for visit in workload.visits)
    limit = device.baseline_bytes + workspace + int(network.fractions[regime] * workload.weights_bytes)
    limited = with_value(device, "memory_limit_bytes", limit)
    best = best_plan(workload, limited, time_limit_s=PLANNING_LIMIT_S)
    plans = {PLANNED: best.plan, **{name: evaluated_plan(name, workload, limited)[0] for name in BASELINES}}
    blocks = network.stage(workload).blocks
    loads_s = sum(load_cost(block, limited, cold=False).seconds for block in blocks)
    executions_s = sum(execute_cost(block, limited).seconds for block in blocks)
    ratio = loads_s / executions_s
    simulated = {name: round(plan.makespan_s or 0.0, 2) for name, plan in plans.items()}
    say(network, f"{regime}: length {length}, loads / executions {ratio:.2f}, limit {limit / 1e6:.0f} MB, {simulated}")
    measured: dict[str, list[float | None]] = {name: [] for name in plans}
    return Comparison(network, regime, length, store, workload, limited, ratio, plans, best.trace, measured)


def one_round(comparison: Comparison, number: int, rounds: int, folder: Path) -> None:
    """Every plan once, in an order that turns with each round."""
    names = list(comparison.plans)
    turn = number % len(names)
    _, settings = comparison.network.variant(comparison.length)
    for name in names[turn:] + names[:turn]:
        limit = comparison.device.memory_limit_bytes
        trace = run(comparison.store, comparison.plans[name], settings, limit, folder)
        comparison.measured_s[name].append(None if trace is None else trace.makespan_s)
        comparison.header = comparison.header if trace is None else trace.header
        outcome = "killed for its memory" if trace is None else f"{trace.makespan_s:.2f} s"
        say(comparison.network, f"{comparison.regime}: round {number + 1} of {rounds}, {name}: {outcome}")


def run(store: BlockStore, plan: Plan, settings: VideoSettings, limit_bytes: int | None, folder: Path) -> Trace | None:
    """One run in a process of its own; None if the kernel killed it for its memory."""
    trace = folder / "trace.json"
    job = Job(
        plan=plan,
        store=str(store.root.absolute()),
        prompts=(PROMPT,) * settings.prompts,
        trace=str(trace),
    )
    result = run_job(job, kernel_limit_bytes=limit_bytes, tolerate_kill=True)
    return None if result.killed else read_trace(trace)


def text(comparisons: Sequence[Comparison], command: str) -> str:
    """The result, with provenance."""
    lines = [
        "# The planner's plan against the baselines, measured and simulated",
        "",
        f"Command: `.venv/bin/python experiments/plan_vs_baselines.py {command}`. {machine(comparisons)} "
        "Random weights.",
        "",
        "Ratios are a policy's makespan over that of the planner's plan: measured within a round, median and range "
        "over the rounds; simulated with the profile that was calibrated before them. Loads / executions: all of the "
        "network's blocks once, by that profile; the same in the planner's plan for the whole run, which retains.",
    ]
    for c in comparisons:
        weights, limit = c.workload.weights_bytes, c.device.memory_limit_bytes
        policy, gap = c.plans[PLANNED].policy, c.plans[PLANNED].gap or 0.0
        size = f"{c.length} tokens" if c.network.group == "text_encoder" else f"{c.length}x{c.length}"
        kept = {c.workload.visits[number].block.weights for number in c.plans[PLANNED].keep}
        retained = len(kept & {block.weights for block in c.network.stage(c.workload).blocks})
        in_plan = c.planned.loader_busy_s / c.planned.executor_busy_s
        lines += [
            "",
            f"## {c.network.title}: {c.regime}",
            "",
            f"{size}; {weights / 1e6:.0f} MB of weights; {limit / 1e6:.0f} MB for the whole process, with room for "
            f"{c.network.fractions[c.regime]:.0%} of the weights. Loads / executions {c.loads_per_execution:.2f}, in "
            f"the planner's plan {in_plan:.2f}. That plan (`{policy}`) retains {retained} of the network's blocks; its "
            f"gap to the lower bound is {gap:.1%}.",
            "",
            "| plan | simulated s | measured s, median | range | simulated / planner | measured / planner | range |",
            "|---|---|---|---|---|---|---|",
            *(row(c, name) for name in c.plans),
        ]
    return "\n".join([*lines, ""])


def row(c: Comparison, name: str) -> str:
    """One line of a table."""
    label = name if name == PLANNED else f"{name} (`{c.plans[name].policy}`)" if ":" in c.plans[name].policy else name
    runs = [seconds for seconds in c.measured_s[name] if seconds is not None]
    killed = len(c.measured_s[name]) - len(runs)
    label += f", killed {killed} times" if killed else ""
    found = c.measured_ratios(name)
    return (
        f"| {label} | {c.plans[name].makespan_s:.2f} | {middle(runs)} | {spread_of(runs)} | "
        f"{c.simulated_ratio(name):.2f} | {middle(found)} | {spread_of(found)} |"
    )


def middle(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f}" if values else "-"


def spread_of(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}" if values else "-"


def machine(comparisons: Sequence[Comparison]) -> str:
    header = next((c.header for c in comparisons if c.header is not None), None)
    if header is None:
        return "No run finished."
    versions = ", ".join(f"{name} {version}" for name, version in header.versions.items())
    return (
        f"Date: {header.date}. Machine: {header.machine['processor']}, {header.machine['cores']} cores "
        f"({header.machine['compute_threads']} computes, one is left to the loader), {header.machine['system']} "
        f"{header.machine['release']}; limits held by {header.enforced_by}; {versions}."
    )


def draw(comparisons: Sequence[Comparison], path: Path) -> None:
    """For each comparison the measured ratios as bars with their ranges, the simulated ones as marks."""
    figure, axes = plt.subplots(
        1, len(comparisons), figsize=(3.2 * len(comparisons), 4), layout="constrained", sharey=True
    )
    for panel, c in zip(axes, comparisons, strict=True):
        for place, name in enumerate(BASELINES):
            found = c.measured_ratios(name)
            if found:
                center = statistics.median(found)
                whiskers = [[center - min(found)], [max(found) - center]]
                panel.bar(place, center, 0.6, yerr=whiskers, capsize=4, color="#56B4E9", label="measured")
            panel.plot(place, c.simulated_ratio(name), "D", color="#D55E00", label="simulated")
        panel.axhline(1.0, color="#444444", linewidth=0.8)
        panel.set_xticks(range(len(BASELINES)), BASELINES, rotation=20)
        panel.set_title(
            f"{c.network.sizes.name}, {c.regime}\nloads / executions {c.loads_per_execution:.2f}", fontsize=10
        )
    axes[0].set_ylabel("makespan / that of the planner's plan")
    handles, labels = axes[0].get_legend_handles_labels()
    by_label = dict(zip(labels, handles, strict=True))
    axes[-1].legend(by_label.values(), by_label.keys())
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)


if __name__ == "__main__":
    main()
