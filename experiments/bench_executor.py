"""The executor against the offloading that people use today: T5-XXL's encoder, several passes, one memory limit.

    .venv/bin/pip install -e ".[bench]"
    .venv/bin/python experiments/bench_executor.py [--dtype bf16] [--rounds 5] [--passes 3] [--folder DIR]

Every system runs in a process of its own under the same limit that the kernel enforces, with the same compute
threads, interleaved round by round. The stores and the competitors' copies of the same weights (10 GB each in
bf16) go to a temporary folder, or to --folder, where they stay. Writes
experiments/results/bench_executor_DTYPE.md and .png. About 30 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from bench_systems import COMPETITORS, prepare_copies
from quick_rates import quick_device, read_rate

from cidl_sim.core.device import DeviceProfile, Measured
from cidl_sim.core.errors import StoreError
from cidl_sim.core.trace import Trace, read_trace
from cidl_sim.core.workload import Stage, Workload
from cidl_sim.diffusion.model_store import distinct_blocks
from cidl_sim.executor.memory_limit import Charged, MemoryGroup
from cidl_sim.executor.store import BlockStore, write_store
from cidl_sim.models.config import OPENSORA_V1_2, VideoSettings
from cidl_sim.models.open_sora import TORCH_DTYPES
from cidl_sim.models.random_weights import random_weights
from cidl_sim.planner.evaluate import baseline_makespans
from cidl_sim.policies.catalog import make_plan
from cidl_sim.workloads.catalog import workload_of

ROOT = Path(__file__).parent.parent
POLICIES = ("sequential", "next_block", "on_device_sora", "spread", "lru", "prefix")
SHOWN = ("sequential", "next_block", "on_device_sora", "spread")
# What Python, PyTorch and one block's scratch memory take beside weights and accounted workspace.
BASELINE_BYTES = 480_000_000


@dataclass
class Result:
    """What one system did in all rounds: seconds of every pass by round, and what the kernel saw."""

    first_s: list[float] = field(default_factory=list)
    later_s: list[list[float]] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    first_limit_s: list[float] = field(default_factory=list)
    later_limit_s: list[float] = field(default_factory=list)
    dispatch_s: list[float] = field(default_factory=list)

    def add(self, said: dict[str, Any]) -> None:
        """Take the answer of one run."""
        self.first_s.append(said["passes_s"][0])
        self.later_s.append(said["passes_s"][1:])
        self.peak_bytes.append(said["peak_bytes"])

    @property
    def later_medians(self) -> list[float]:
        """The median of the later passes, by round."""
        return [statistics.median(passes) for passes in self.later_s]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--limit", type=int, default=3_300_000_000)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cidl-bench-") as temporary:
        folder = arguments.folder or Path(temporary)
        bench = Bench(folder, arguments.dtype, arguments.passes, arguments.limit)
        bench.calibrate()
        for number in range(arguments.rounds):
            bench.round(number)
        report = bench.report(arguments.rounds)
        print("\n" + report)
        results = ROOT / "experiments/results"
        (results / f"bench_executor_{arguments.dtype}.md").write_text(report)
        bench.draw(results / f"bench_executor_{arguments.dtype}.png")


class Bench:
    """One comparison: the stores, the plans, and what came of the runs."""

    def __init__(self, folder: Path, dtype: str, passes: int, limit_bytes: int) -> None:
        self.dtype, self.passes, self.limit_bytes = dtype, passes, limit_bytes
        self.threads = max(1, (os.cpu_count() or 2) - 1)
        self.scratch = folder / "scratch"
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.store = encoder_store(folder / f"store-{dtype}", dtype)
        self.copies = folder / f"copies-{dtype}"
        prepare_copies(self.store, self.copies)
        self.workload = encoder_workload(dtype, passes)
        self.workload.write(self.scratch / "workload.json")
        self.results = {name: Result() for name in ("best", *SHOWN, *COMPETITORS)}
        self.bandwidths: list[float] = []
        self.device: DeviceProfile | None = None
        self.best = ""
        self.compute_s = 0.0

    def calibrate(self) -> None:
        """Costs of each kind from one sequential run, then the policy with the best simulated makespan."""
        device = quick_device(self.store, self.limit_bytes, BASELINE_BYTES)
        trace = self.ours("sequential", device)[1]
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
        self.device = device.model_copy(update={"measured": measured})
        makespans = baseline_makespans(self.workload, self.device, POLICIES)
        self.best = min((s, name) for name, s in makespans.items() if s is not None)[1]
        self.compute_s = sum(measured[v.block.kind].exec_s or 0 for v in self.workload.visits) / self.passes
        print(f"best policy {self.best}; simulated {makespans}; compute {self.compute_s:.2f} s a pass", flush=True)

    def round(self, number: int) -> None:
        """Every system once, in an order that turns with each round."""
        names = list(self.results)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            self.bandwidths.append(read_rate(self.store))
            if name in COMPETITORS:
                said = self.run([name, str(self.copies)])
            else:
                assert self.device is not None
                said, trace = self.ours(self.best if name == "best" else name, self.device)
                self.note_limits(self.results[name], trace)
            self.results[name].add(said)
            print(f"round {number + 1} {name}: {[round(s, 2) for s in said['passes_s']]}", flush=True)

    def note_limits(self, result: Result, trace: Trace) -> None:
        """What disk and processor allow for the bytes that this plan loads, in the first and in a later pass."""
        a_pass = len(self.workload.stages[0].blocks)
        loaded = [sum(s.bytes for s in trace.of("load") if s.visit // a_pass == p) for p in range(self.passes)]
        result.first_limit_s.append(max(loaded[0] / self.bandwidths[-1], self.compute_s))
        result.later_limit_s.append(max(statistics.median(loaded[1:]) / self.bandwidths[-1], self.compute_s))
        result.dispatch_s.append(trace.idle_s.get("executor", {}).get("dispatch", 0.0) / len(trace.of("execute")))

    def ours(self, policy: str, device: DeviceProfile) -> tuple[dict[str, Any], Trace]:
        """Our executor under a policy's plan."""
        plan = make_plan(policy, self.workload, device).model_copy(update={"compute_threads": self.threads})
        plan.write(self.scratch / "plan.json")
        said = self.run(["ours", str(self.store.root), str(self.scratch)])
        return said, read_trace(self.scratch / "trace.json")

    def run(self, arguments: list[str]) -> dict[str, Any]:
        """One process under the limit; what it said, with the kernel's peak."""
        script = str(Path(__file__).parent / "bench_systems.py")
        with MemoryGroup(self.limit_bytes) as group:
            command = [sys.executable, script, *arguments, str(self.passes), str(self.threads)]
            environment = {**os.environ, **group.environment(), "MALLOC_ARENA_MAX": "2"}
            done = subprocess.run(group.command(command), capture_output=True, text=True, env=environment, check=False)
            if done.returncode != 0:
                raise SystemExit(f"{arguments[0]} failed with {done.returncode}: {done.stderr[-2000:]}")
            said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            said["peak_bytes"] = Charged(group.enforced_by, group.folder).peak_bytes() or 0
        return said

    def report(self, rounds: int) -> str:
        """The tables, with provenance."""
        ours = self.results["best"]
        names = ("torch", "transformers", "accelerate", "diffusers")
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
        weights, disk = self.workload.weights_bytes, statistics.median(self.bandwidths)
        lines = [
            f"# The executor against offloading: T5-XXL's encoder in {self.dtype}",
            "",
            f"Command: `.venv/bin/python experiments/bench_executor.py --dtype {self.dtype} --rounds {rounds} --passes "
            f"{self.passes}`. Date: {datetime.now(UTC).date()}. Machine: {processor()}, {os.cpu_count()} cores, "
            f"{self.threads} compute{'s' if self.threads == 1 else ''}; {versions}. Random weights.",
            "",
            f"{weights / 1e9:.2f} GB of weights, 300 tokens, every process under {self.limit_bytes / 1e9:.1f} GB "
            f"held by the kernel, {rounds} interleaved rounds of {self.passes} passes. Settings of the others: "
            "`experiments/bench_systems.py`. `ours, best` is the policy with the best simulated makespan: "
            f"`{self.best}`. Disk past the page cache in between: median {disk / 1e9:.2f} GB/s "
            f"({min(self.bandwidths) / 1e9:.2f} to {max(self.bandwidths) / 1e9:.2f}); compute alone takes "
            f"{self.compute_s:.2f} s a pass, loading all weights {weights / disk:.2f} s.",
            "",
            "| system | first pass s | range | x ours | later passes s | range | x ours | peak MB |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, result in self.results.items():
            first, later = ratios(result.first_s, ours.first_s), ratios(result.later_medians, ours.later_medians)
            every = [s for passes in result.later_s for s in passes]
            lines.append(
                f"| {label(name)} | {statistics.median(result.first_s):.2f} | {span(result.first_s)} | {first} | "
                f"{statistics.median(every):.2f} | {span(every)} | {later} | {max(result.peak_bytes) / 1e6:.0f} |"
            )
        lines += [
            "",
            "Against max(bytes that the plan loads / disk rate measured just before, compute):",
            "",
            "| plan | first pass / limit | later passes / limit | dispatch a block |",
            "|---|---|---|---|",
        ]
        for name in ("best", *SHOWN):
            r = self.results[name]
            lines.append(
                f"| {label(name)} | {ratios(r.first_s, r.first_limit_s)} | "
                f"{ratios(r.later_medians, r.later_limit_s)} | {statistics.median(r.dispatch_s) * 1e3:.2f} ms |"
            )
        return "\n".join(
            [*lines, "", "Ratios are medians over the rounds of the ratio within a round, with their range.", ""]
        )

    def draw(self, path: Path) -> None:
        """Bars of the first and the later passes, each with its range."""
        figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
        names = list(self.results)
        for offset, (title, color) in enumerate((("first pass", "#999999"), ("later passes", "#0072b2"))):
            for i, name in enumerate(names):
                result = self.results[name]
                values = result.first_s if offset == 0 else [s for passes in result.later_s for s in passes]
                middle = statistics.median(values)
                whiskers = [[middle - min(values)], [max(values) - middle]]
                place = len(names) - i - 0.2 + 0.4 * (1 - offset)
                axes.barh(place, middle, 0.38, xerr=whiskers, color=color, label=title if i == 0 else None, capsize=2)
        axes.set_yticks([len(names) - i for i in range(len(names))], [label(name) for name in names])
        axes.set_xlabel("seconds a pass")
        axes.set_title(f"T5-XXL's encoder in {self.dtype} under {self.limit_bytes / 1e9:.1f} GB")
        axes.legend()
        figure.savefig(path, dpi=110)


def encoder_store(root: Path, dtype: str) -> BlockStore:
    """A block store of the text encoder alone, built if it is not there."""
    try:
        return BlockStore.open(root)
    except StoreError:
        blocks = [b for b in distinct_blocks(OPENSORA_V1_2, dtype) if b.checkpoint == "t5"]  # type: ignore[arg-type]
        made = ((b.weights, lambda b=b: random_weights(b, 0, TORCH_DTYPES[dtype])) for b in blocks)
        return write_store(
            root, made, name="t5-xxl", dtype=dtype, source="random, seed 0", model=OPENSORA_V1_2.model_dump(mode="json")
        )


def encoder_workload(dtype: str, passes: int) -> Workload:
    """So many passes of the text encoder."""
    settings = VideoSettings(height=192, width=192, frames=17, dtype=dtype)  # type: ignore[arg-type]
    stage = workload_of(OPENSORA_V1_2, settings).stages[0]
    return Workload(
        name=f"t5-xxl-{dtype}-{passes}-passes",
        stages=(Stage(name="text_encoder", group="text_encoder", rounds=passes, blocks=stage.blocks),),
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


def label(name: str) -> str:
    return "ours, best" if name == "best" else f"ours, {name}" if name in SHOWN else COMPETITORS[name]


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor"
    )


if __name__ == "__main__":
    main()
