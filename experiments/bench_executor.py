"""The executor against the offloading that people use today: several passes of one network, one memory limit.

    .venv/bin/pip install -e ".[bench]"
    .venv/bin/python experiments/bench_executor.py [--model t5] [--dtype bf16] [--rounds 5] [--passes 3]
        [--policies sequential,next_block,on_device_sora,spread] [--folder DIR] [--store DIR]

The network is T5-XXL's encoder (t5) or STDiT3 at 192x192 and 17 frames, where a pass is a denoising step (stdit).
Every system runs in a process of its own under the same limit that the kernel enforces, interleaved round by round,
each with the number of compute threads that it was fastest with before the rounds: all cores or all but one. The store
and the competitors' copies of the same weights (for T5 10 GB each in bf16, 19 in fp32) go to a temporary folder, or to
--folder, where they stay; --store names a store to use instead. Writes experiments/results/bench_MODEL_DTYPE.md and
.png. On 2 cores T5 takes about 40 minutes in bf16 and an hour in fp32, STDiT3 in fp32 over 4 steps more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from shared.bench_systems import COMPETITORS, Model, blocks_of, prepare_copies, workload_for
from shared.quick_rates import quick_device, read_rate

from cidl_sim.blocks.definition import TORCH_DTYPES
from cidl_sim.core.device import DeviceProfile, Measured
from cidl_sim.core.errors import InfeasibleError, StoreError
from cidl_sim.core.plan import Plan
from cidl_sim.core.trace import Trace, read_trace
from cidl_sim.core.workload import Workload
from cidl_sim.executor.memory_limit import Charged, MemoryGroup
from cidl_sim.executor.store import BlockStore, write_store
from cidl_sim.pipelines.open_sora.family import OPEN_SORA
from cidl_sim.pipelines.open_sora.settings import OPENSORA_V1_2
from cidl_sim.pipelines.random_weights import random_weights
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import simulate

ROOT = Path(__file__).parent.parent
POLICIES = ("sequential", "next_block", "on_device_sora", "spread", "lru", "prefix")
SHOWN = ("sequential", "next_block", "on_device_sora", "spread")
# What Python, PyTorch and one block's scratch memory take beside weights and accounted workspace.
BASELINE_BYTES = 480_000_000
# STDiT3's tensors are small enough for glibc's heap, and the holes that these two leave there get them killed.
_NO_HOLES = {"MALLOC_MMAP_THRESHOLD_": "4194304", "MALLOC_TRIM_THRESHOLD_": "16777216"}
ALLOCATOR = {"accelerate": _NO_HOLES, "diffusers": _NO_HOLES}
NETWORKS: dict[Model, str] = {"t5": "T5-XXL's encoder, 300 tokens", "stdit": "STDiT3, 192x192 and 17 frames"}


@dataclass
class Result:
    """What one system did in all rounds: seconds of every pass by round, and what the kernel saw."""

    passes_s: list[list[float]] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    # Of ours only, by round: of the first pass and of a later one.
    limits_s: list[tuple[float, float]] = field(default_factory=list)
    parts: list[tuple[PassParts, PassParts]] = field(default_factory=list)

    @property
    def first(self) -> list[float]:
        """The first pass, by round."""
        return [passes[0] for passes in self.passes_s]

    @property
    def later(self) -> list[float]:
        """The median of the later passes, by round."""
        return [statistics.median(passes[1:]) for passes in self.passes_s]


@dataclass(frozen=True)
class PassParts:
    """Where the time of a pass went, in seconds, and the rate within its loads in bytes/s."""

    execution_s: float
    waiting_s: float
    dispatch_s: float
    loaded_bytes: int
    loading_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(NETWORKS), default="t5")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--policies", type=lambda text: tuple(text.split(",")), default=SHOWN)
    parser.add_argument("--limit", type=int, default=3_300_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--store", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cidl-bench-") as temporary:
        folder = arguments.folder or Path(temporary)
        model, dtype, passes = arguments.model, arguments.dtype, arguments.passes
        store = network_store(arguments.store or folder / "store", model, dtype)
        copies = folder / f"copies-{model}-{dtype}"
        prepare_copies(model, store, copies)
        network = Network(
            NETWORKS[model], model, "bench_systems.py", workload_for(model, dtype, passes), COMPETITORS, BASELINE_BYTES
        )
        command = (
            f"experiments/bench_executor.py --model {model} --dtype {dtype} --passes {passes} "
            f"--policies {','.join(arguments.policies)}"
        )
        bench = Bench(network, store, folder / "scratch", copies, passes, arguments.limit, arguments.policies, command)
        bench.all_rounds(arguments.rounds, ROOT / f"experiments/results/bench_{model}_{dtype}.md")


@dataclass(frozen=True)
class Network:
    """What is compared, and how each system runs it.

    `script` is started as `SCRIPT SYSTEM KEY STORE FOLDER PASSES THREADS`. `may_be_killed`: systems that may not fit.
    `baseline_bytes`: what Python, PyTorch and one block's scratch take beside weights and accounted workspace.
    """

    title: str
    key: str
    script: str
    workload: Workload
    competitors: Mapping[str, str]
    baseline_bytes: int
    may_be_killed: tuple[str, ...] = ()


class KilledError(Exception):
    """The kernel killed a system for its memory."""


class Bench:
    """One comparison: the stores, the plans, and what came of the runs.

    `copies`: the competitors' own copies of the weights. `command`: what it was started with, the rounds left out.
    """

    def __init__(
        self,
        network: Network,
        store: BlockStore,
        scratch: Path,
        copies: Path,
        passes: int,
        limit_bytes: int,
        policies: tuple[str, ...],
        command: str,
    ) -> None:
        self.network, self.policies, self.command = network, policies, command
        self.store, self.passes, self.limit_bytes = store, passes, limit_bytes
        self.dtype = store.index.dtype
        self.scratch, self.copies = scratch, copies
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.workload = network.workload
        self.workload.write(self.scratch / "workload.json")
        self.killed: list[str] = []
        self.results: dict[str, Result] = {}
        self.bandwidths: list[float] = []
        self.magnitudes: dict[str, float] = {}
        # By number of compute threads: what ours measured, and which policy the simulation then finds fastest.
        self.devices: dict[int, DeviceProfile] = {}
        self.best_with: dict[int, str] = {}
        self.compute_s = 0.0
        # By system: what it was tried with, and seconds of a later pass then.
        self.tried: dict[str, dict[int, float]] = {}
        self.best = ""

    def all_rounds(self, rounds: int, to: Path) -> None:
        """Everything, written to `to` and a picture beside it after each round, so that what was measured stays."""
        self.calibrate()
        self.choose_threads()
        report = ""
        for number in range(rounds):
            self.round(number)
            report = self.report(number + 1)
            to.write_text(report)
            self.draw(to.with_suffix(".png"))
        print("\n" + report)

    def calibrate(self) -> None:
        """Costs of each kind from one sequential run with each number of threads, and the best simulated policy then.

        Policies that tie (nothing waits) are told apart by what is left when loads take half as long again.
        """
        cores = os.cpu_count() or 1
        compute_s = []
        for threads in sorted({max(1, cores - 1), cores}):
            device = quick_device(self.store, self.limit_bytes, self.network.baseline_bytes)
            trace = self.ours("sequential", device, threads)[1]
            kinds = {visit.block.kind: visit.block for visit in self.workload.visits}
            measured = {}
            for kind, block in kinds.items():
                loads, executions = spans_of(trace, kind, "load"), spans_of(trace, kind, "execute")
                measured[kind] = Measured(
                    load_s=statistics.median(loads),
                    exec_s=statistics.median(executions),
                    weight_bytes=block.weight_bytes,
                    flops=block.flops,
                    samples=len(loads),
                )
            device = self.devices[threads] = device.model_copy(update={"measured": measured})
            slower = {k: m.model_copy(update={"load_s": 1.5 * (m.load_s or 0)}) for k, m in measured.items()}
            slow_disk = device.model_copy(update={"measured": slower})
            makespans = {
                name: tuple(round(simulate(self.workload, on, plan).makespan_s, 2) for on in (device, slow_disk))
                for name, plan in self.plans(device).items()
            }
            self.best_with[threads] = min(makespans, key=makespans.__getitem__)
            compute_s.append(sum(measured[v.block.kind].exec_s or 0 for v in self.workload.visits) / self.passes)
            print(f"{threads} threads, simulated, and with slower loads: {makespans}", flush=True)
        self.compute_s = min(compute_s)

    def plans(self, device: DeviceProfile) -> dict[str, Plan]:
        """The plans of the policies that fit."""
        plans = {}
        for name in POLICIES:
            with contextlib.suppress(InfeasibleError):
                plans[name] = make_plan(name, self.workload, device)
        return plans

    def choose_threads(self) -> None:
        """Every system once with each number of threads: it keeps the one with the fastest later pass."""
        names = dict.fromkeys((*self.best_with.values(), *self.policies, *self.network.competitors))
        for name in names:
            try:
                self.tried[name] = {n: statistics.median(self.one(name, n)[0]["passes_s"][1:]) for n in self.devices}
            except KilledError:
                if name not in self.network.may_be_killed:
                    raise
                self.killed.append(name)
                print(f"{name}: killed by the kernel", flush=True)
                continue
            print(f"{name}: seconds of a later pass by threads {self.tried[name]}", flush=True)
        self.best = min(self.best_with.values(), key=lambda name: min(self.tried[name].values()))
        chosen = dict.fromkeys((self.best, *self.policies, *self.network.competitors))
        self.results = {name: Result() for name in chosen if name not in self.killed}

    def threads_of(self, name: str) -> int:
        """The number of threads that a system was fastest with."""
        return min(self.tried[name], key=self.tried[name].__getitem__)

    def one(self, name: str, threads: int) -> tuple[dict[str, Any], Trace | None]:
        """One run of a system: what it said, and the trace of ours."""
        if name in self.network.competitors:
            return self.run(name, self.copies, threads), None
        return self.ours(name, self.devices[threads], threads)

    def round(self, number: int) -> None:
        """Every system once, in an order that turns with each round."""
        names = list(self.results)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            self.bandwidths.append(read_rate(self.store))
            result = self.results[name]
            said, trace = self.one(name, self.threads_of(name))
            if trace is not None:
                self.note_parts(result, trace)
            result.passes_s.append(said["passes_s"])
            result.peak_bytes.append(said["peak_bytes"])
            self.magnitudes[name] = said["magnitude"]
            print(f"round {number + 1} {name}: {[round(s, 2) for s in said['passes_s']]}", flush=True)
        low, high = min(self.magnitudes.values()), max(self.magnitudes.values())
        if not high - low <= 0.02 * high:
            raise SystemExit(f"the systems computed different things: mean magnitudes {self.magnitudes}")

    def note_parts(self, result: Result, trace: Trace) -> None:
        """What disk and processor allow for the bytes that this plan loads, and where the time went."""
        parts = [parts_of(trace, p, len(self.workload.stages[0].blocks)) for p in range(self.passes)]
        later = sorted(parts[1:], key=lambda part: part.execution_s + part.waiting_s)[(len(parts) - 1) // 2]
        result.parts.append((parts[0], later))
        loaded = parts[0].loaded_bytes, statistics.median(part.loaded_bytes for part in parts[1:])
        first, median = (max(count / self.bandwidths[-1], self.compute_s) for count in loaded)
        result.limits_s.append((first, median))

    def ours(self, policy: str, device: DeviceProfile, threads: int) -> tuple[dict[str, Any], Trace]:
        """Our executor under a policy's plan."""
        plan = make_plan(policy, self.workload, device).model_copy(update={"compute_threads": threads})
        plan.write(self.scratch / "plan.json")
        said = self.run("ours", self.scratch, threads)
        return said, read_trace(self.scratch / "trace.json")

    def run(self, system: str, folder: Path, threads: int) -> dict[str, Any]:
        """One process under the limit; what it said, with the kernel's peak."""
        script = str(Path(__file__).parent / "shared" / self.network.script)
        with MemoryGroup(self.limit_bytes) as group:
            arguments = [system, self.network.key, self.store.root, folder, self.passes, threads]
            command = [sys.executable, script, *map(str, arguments)]
            environment = {**os.environ, **group.environment(), "MALLOC_ARENA_MAX": "2", **ALLOCATOR.get(system, {})}
            done = subprocess.run(group.command(command), capture_output=True, text=True, env=environment, check=False)
            if done.returncode in (-9, 137):
                raise KilledError(system)
            if done.returncode != 0:
                raise SystemExit(f"{system} failed with {done.returncode}: {done.stderr[-2000:]}")
            said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            said["peak_bytes"] = Charged(group.enforced_by, group.folder).peak_bytes() or 0
        return said

    def report(self, rounds: int) -> str:
        """The tables, with provenance."""
        ours = self.results[self.best]
        names = ("torch", "transformers", "accelerate", "diffusers")
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
        weights, disk = self.workload.weights_bytes, statistics.median(self.bandwidths)
        lines = [
            f"# The executor against offloading: {self.network.title}, {self.dtype}",
            "",
            f"Command: `.venv/bin/python {self.command} --rounds {rounds}`. "
            f"Date: {datetime.now(UTC).date()}. Machine: {processor()}, "
            f"{os.cpu_count()} cores; {versions}. "
            "Random weights.",
            "",
            f"{weights / 1e9:.2f} GB of weights, every process under {self.limit_bytes / 1e9:.1f} GB held by the "
            f"kernel, {rounds} interleaved rounds of {self.passes} passes. Settings of the others: "
            f"`experiments/shared/{self.network.script}`; all compute the same (mean magnitude of the result within 2 "
            "%). accelerate reads what it keeps in memory before the clock starts. `best` is the policy with the best "
            f"simulated makespan (of equal ones, the one that bears slower loads best): `{self.best}`. "
            f"Disk past the page cache in between: median {disk / 1e9:.2f} GB/s "
            f"({min(self.bandwidths) / 1e9:.2f} to {max(self.bandwidths) / 1e9:.2f}); compute alone takes "
            f"{self.compute_s:.2f} s a pass, loading all weights {weights / disk:.2f} s.",
            "",
            "| system | threads | first pass s | range | / best | later passes s | range | / best | peak MB |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for name, result in self.results.items():
            first, later = ratios(result.first, ours.first), ratios(result.later, ours.later)
            every = [s for passes in result.passes_s for s in passes[1:]]
            lines.append(
                f"| {self.label(name)} | {self.threads_of(name)} | {statistics.median(result.first):.2f} | "
                f"{span(result.first)} | {first} | "
                f"{statistics.median(every):.2f} | {span(every)} | {later} | {max(result.peak_bytes) / 1e6:.0f} |"
            )
        lines += [
            "",
            "Seconds of a later pass in the one run with each number of threads that chose it: "
            + "; ".join(
                f"{self.label(name)} {', '.join(f'{n}: {seconds:.2f}' for n, seconds in tried.items())}"
                for name, tried in self.tried.items()
            )
            + "."
            + "".join(f" {self.label(name)}: killed by the kernel." for name in self.killed),
            "",
            "Against max(bytes that the plan loads / disk rate measured just before, compute), and against the "
            "same with all weights:",
            "",
            "| plan | first / limit | later / limit | first / limit of all | later / limit of all |",
            "|---|---|---|---|---|",
        ]
        mine = {name: result for name, result in self.results.items() if result.parts}
        for name, r in mine.items():
            everything = [max(weights / rate, self.compute_s) for rate in self.rates_before(name)]
            lines.append(
                f"| {self.label(name)} | {ratios(r.first, [a for a, _ in r.limits_s])} | "
                f"{ratios(r.later, [b for _, b in r.limits_s])} | "
                f"{ratios(r.first, everything)} | {ratios(r.later, everything)} |"
            )
        lines += [
            "",
            "Where the time goes, from the traces: medians over the rounds, of the first pass and a later one.",
            "",
            "| plan | pass | execution s | waits for loads s | dispatch ms a block | loaded GB | GB/s while loading |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, r in mine.items():
            for which, title in enumerate(("first", "later")):
                lines.append(f"| {self.label(name)} | {title} | {self.parts_row([pair[which] for pair in r.parts])} |")
        return "\n".join(
            [*lines, "", "Ratios are medians over the rounds of the ratio within a round, with their range.", ""]
        )

    def rates_before(self, name: str) -> list[float]:
        """The disk's rate just before each run of a system."""
        names, found = list(self.results), []
        for number in range(len(self.bandwidths) // len(names)):
            turned = names[number % len(names) :] + names[: number % len(names)]
            found.append(self.bandwidths[number * len(names) + turned.index(name)])
        return found

    def parts_row(self, parts: list[PassParts]) -> str:
        """Cells of the table of where the time goes."""
        blocks = len(self.workload.stages[0].blocks)
        rates = [p.loaded_bytes / p.loading_s / 1e9 for p in parts if p.loading_s]
        return " | ".join(
            (
                f"{statistics.median(p.execution_s for p in parts):.2f}",
                f"{statistics.median(p.waiting_s for p in parts):.2f}",
                f"{statistics.median(p.dispatch_s for p in parts) / blocks * 1e3:.2f}",
                f"{statistics.median(p.loaded_bytes for p in parts) / 1e9:.2f}",
                f"{statistics.median(rates):.2f}" if rates else "-",
            )
        )

    def label(self, name: str) -> str:
        """What a system is called in tables and pictures."""
        return self.network.competitors.get(name) or f"ours, {name}" + (" (best)" if name == self.best else "")

    def draw(self, path: Path) -> None:
        """Bars of the first and the later passes, each with its range."""
        figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
        names = list(self.results)
        for offset, (title, color) in enumerate((("first pass", "#999999"), ("later passes", "#0072b2"))):
            for i, name in enumerate(names):
                result = self.results[name]
                values = result.first if offset == 0 else [s for passes in result.passes_s for s in passes[1:]]
                middle = statistics.median(values)
                whiskers = [[middle - min(values)], [max(values) - middle]]
                place = len(names) - i - 0.2 + 0.4 * (1 - offset)
                axes.barh(place, middle, 0.38, xerr=whiskers, color=color, label=title if i == 0 else None, capsize=2)
        axes.set_yticks([len(names) - i for i in range(len(names))], [self.label(name) for name in names])
        axes.set_xlabel("seconds a pass")
        axes.set_title(f"{self.network.title}, {self.dtype}, under {self.limit_bytes / 1e9:.1f} GB")
        axes.legend()
        figure.savefig(path, dpi=110)
        plt.close(figure)


def network_store(root: Path, model: Model, dtype: str) -> BlockStore:
    """The block store in `root`; one of this network alone is built if there is none."""
    try:
        return BlockStore.open(root)
    except StoreError:
        made = (
            (b.weights, lambda b=b: random_weights(OPEN_SORA, b, 0, TORCH_DTYPES[dtype]))
            for b in blocks_of(model, dtype)
        )
        return write_store(
            root,
            made,
            name=model,
            dtype=dtype,
            source="random, seed 0",
            pipeline=OPEN_SORA.name,
            model=OPENSORA_V1_2.model_dump(mode="json"),
        )


def parts_of(trace: Trace, number: int, blocks: int) -> PassParts:
    """Where the time of pass `number` went; a load counts to the pass of the visit that it is for."""
    spans = [s for s in trace.spans if s.visit // blocks == number]

    def seconds(operation: str, cause: str | None = None) -> float:
        found = (s for s in spans if s.operation == operation and (s.cause == cause or cause is None))
        return sum(s.end_s - s.start_s for s in found if operation == "load" or s.worker == "executor")

    return PassParts(
        execution_s=seconds("execute"),
        waiting_s=seconds("wait", "load"),
        dispatch_s=seconds("wait", "dispatch"),
        loaded_bytes=sum(s.bytes for s in spans if s.operation == "load"),
        loading_s=seconds("load"),
    )


def spans_of(trace: Trace, kind: str, operation: str) -> list[float]:
    (outline,) = trace.header.stages
    spans = [s for s in trace.spans if s.operation == operation and outline.kinds[s.visit % len(outline.kinds)] == kind]
    return [s.end_s - s.start_s for s in spans]


def ratios(theirs: Iterable[float], ours: Iterable[float]) -> str:
    found = [a / b for a, b in zip(theirs, ours, strict=True)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def span(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor"
    )


if __name__ == "__main__":
    main()
