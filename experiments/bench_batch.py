"""How many policies a second the compiled evaluator times, beside the engine and a minimal SimPy model.

    .venv/bin/python experiments/bench_batch.py [--repeats 7]

Random policies, all distinct: in each round as many blocks are retained as in every other, between none and what fits,
which ones is drawn anew for each of the rounds of a period. Every contestant gets its policies ready made: the
evaluator patterns, the engine plans, the minimal model lists. The contestants run in turns, `repeats` times; of a
sample of the policies the makespans are compared with the engine's in the same run. Writes
experiments/results/bench_batch.md and .png; about a minute.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import simpy
from bench_executor import processor
from numpy.typing import NDArray

from cidl_sim.core.device import DeviceProfile, Executor, Loader, Measured, Noise, ThermalStep
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.plan import Plan
from cidl_sim.core.timed import timed
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.policies.build import deep_prefetch
from cidl_sim.simulator.arrays import arrays_of
from cidl_sim.simulator.batch import keep_matrix, makespan_s, pattern_makespans
from cidl_sim.simulator.engine import makespan_s as engine_makespan_s

RESULTS = Path(__file__).parent / "results"
SAMPLE = 8
# About as long as a contestant runs at a time.
TURN_S = 0.3
NOISE = {"noise": Noise(load=0.1)}
EVERYTHING = {
    "loader": {"channels": 2, "latency_s": 0.5, "slowdown_while_executing": 1.2, "first_touch_bytes_per_s": 40.0},
    "executor": {"slowdown_while_loading": 1.1},
    "thermal": (ThermalStep(after_s=1000.0, factor=0.9), ThermalStep(after_s=3000.0, factor=0.8)),
    "noise": Noise(load=0.1, execute=0.05, load_drift=0.02, execute_drift=0.02),
}


@dataclass(frozen=True)
class Setting:
    """What is timed; `period` 0 is another retained set in every round, `features` go beyond the plain case."""

    name: str
    blocks: int
    rounds: int
    period: int
    mixed: bool = False
    features: dict[str, object] = field(default_factory=dict)
    seed: int | None = None


SETTINGS = (
    Setting("plain, the same set in each round", 8, 10, 1),
    Setting("plain, the same set in each round", 28, 30, 1),
    Setting("plain, two sets in turns", 28, 30, 2),
    Setting("plain, three sets in turns", 28, 30, 3),
    Setting("plain, four sets in turns", 28, 30, 4),
    Setting("plain, another set in each round", 28, 30, 0),
    Setting("plain, the same set in each round", 28, 300, 1),
    Setting("plain, mixed sizes, the same set", 28, 30, 1, mixed=True),
    Setting("plain, mixed sizes, three sets", 28, 30, 3, mixed=True),
    Setting("plain, mixed sizes, noise, three sets", 28, 30, 3, mixed=True, features=NOISE, seed=1),
    Setting("contention both ways, three sets", 28, 30, 3, features={
        "loader": {"slowdown_while_executing": 1.2}, "executor": {"slowdown_while_loading": 1.1},
    }),
    Setting("every feature, three sets", 8, 10, 3, features=EVERYTHING, seed=1),
    Setting("every feature, three sets", 28, 30, 3, features=EVERYTHING, seed=1),
    Setting("every feature, mixed sizes, three sets", 28, 30, 3, mixed=True, features=EVERYTHING, seed=1),
)  # fmt: skip


@dataclass
class Row:
    """Policies a second of each contestant, one figure per turn, and the comparison with the engine."""

    setting: Setting
    infeasible: float
    worst: float
    one_by_one: list[float] = field(default_factory=list)
    batch: list[float] = field(default_factory=list)
    engine: list[float] = field(default_factory=list)
    minimal: list[float] = field(default_factory=list)


class Contest:
    """One setting with the policies of every contestant."""

    def __init__(self, setting: Setting, number: int) -> None:
        self.setting = setting
        self.workload, self.device = made(setting)
        self.case = arrays_of(timed(self.workload, self.device))
        self.chance = np.random.default_rng(number)
        self.policies = self._timed_for_long_enough()
        self.patterns = self._patterns(self.policies)
        found = pattern_makespans(self.case, self.patterns, seeds=seeds(setting))
        sample = np.linspace(0, self.policies - 1, SAMPLE, dtype=int)
        self.plans = [self._plan(keep) for keep in keep_matrix(self.case, self.patterns[sample])]
        expected = [engine_s(self.workload, self.device, plan, setting.seed) for plan in self.plans]
        worst = max(difference(a, b) for a, b in zip(found.reshape(-1)[sample], expected, strict=True))
        self.row = Row(setting, float(np.isinf(found).mean()), worst)
        self.has_minimal = not setting.features and not setting.mixed
        if self.has_minimal:
            theirs = [minimal_s(self.workload, self.device, plan) for plan in self.plans]
            worst = max(difference(a, b) for a, b in zip(theirs, expected, strict=True))
            self.row.worst = max(self.row.worst, worst)

    def turn(self, turn: int) -> None:
        """Time every contestant once, in an order that changes from turn to turn."""
        row, setting = self.row, self.setting
        feasible = [plan for plan in self.plans if engine_s(self.workload, self.device, plan, setting.seed) < math.inf]
        runs: list[Callable[[], None]] = [
            lambda: row.batch.append(self.policies / seconds(self._run_batch)),
            lambda: row.one_by_one.append(len(self.plans) / seconds(self._run_one_by_one)),
            lambda: row.engine.append(len(feasible) / seconds(lambda: self._run_engine(feasible))),
        ]
        if self.has_minimal:
            runs.append(lambda: row.minimal.append(len(feasible) / seconds(lambda: self._run_minimal(feasible))))
        for k in range(len(runs)):
            runs[(k + turn) % len(runs)]()

    def _run_batch(self) -> None:
        pattern_makespans(self.case, self.patterns, seeds=seeds(self.setting))

    def _run_one_by_one(self) -> None:
        for plan in self.plans:
            makespan_s(self.case, plan, seed=self.setting.seed)

    def _run_engine(self, plans: Sequence[Plan]) -> None:
        for plan in plans:
            engine_makespan_s(self.workload, self.device, plan, seed=self.setting.seed)

    def _run_minimal(self, plans: Sequence[Plan]) -> None:
        for plan in plans:
            minimal_s(self.workload, self.device, plan)

    def _timed_for_long_enough(self) -> int:
        """As many policies as take about TURN_S, found by growing numbers of them."""
        policies = 512
        pattern_makespans(self.case, self._patterns(1), seeds=seeds(self.setting))  # compiles
        while True:
            patterns = self._patterns(policies)
            took_s = seconds(lambda: pattern_makespans(self.case, patterns, seeds=seeds(self.setting)))  # noqa: B023
            if took_s > TURN_S / 4:
                return min(400_000, int(policies * TURN_S / took_s))
            policies *= 4

    def _patterns(self, policies: int) -> NDArray[np.bool_]:
        period, blocks = self.setting.period or self.setting.rounds, self.setting.blocks
        retained = self.chance.integers(1, room(self.setting), (policies, 1, 1))
        return self.chance.random((policies, period, blocks)).argsort(axis=-1) < retained

    def _plan(self, keep: NDArray[np.bool_]) -> Plan:
        return deep_prefetch("random", self.workload, self.device, set(np.flatnonzero(keep).tolist()))


def room(setting: Setting) -> int:
    """Blocks of the mean size that fit, less one to load and one to run."""
    return max(2, setting.blocks * 3 // 7 - 2)


def made(setting: Setting) -> tuple[Workload, DeviceProfile]:
    """Blocks of 4 units that load in 8 s and execute in 12 s, or sizes and times about that; three sevenths fit."""
    chance = np.random.default_rng(0)
    blocks, measured = [], {}
    for i in range(setting.blocks):
        weight_bytes, workspace_bytes, exec_s = 4, 0, 12.0
        if setting.mixed:
            weight_bytes, workspace_bytes = int(chance.integers(2, 7)), int(chance.integers(0, 4))
            exec_s = float(chance.uniform(8.0, 16.0))
        kind = f"k{i}"
        blocks.append(Block(name=f"b{i}", kind=kind, weight_bytes=weight_bytes, workspace_bytes=workspace_bytes))
        measured[kind] = Measured(load_s=2.0 * weight_bytes, exec_s=exec_s)
    workload = Workload(name="bench", stages=[Stage(name="denoiser", rounds=setting.rounds, blocks=blocks)])
    features = dict(setting.features)
    loader = Loader.model_validate(features.pop("loader", {}))
    executor = Executor.model_validate(features.pop("executor", {}))
    device = DeviceProfile(
        name="bench",
        memory_limit_bytes=workload.weights_bytes * 3 // 7,
        loader=loader,
        executor=executor,
        measured=measured,
    )
    return workload, device.model_copy(update=features)


def minimal_s(workload: Workload, device: DeviceProfile, plan: Plan) -> float:
    """The plain case as one would write it in SimPy: a loader and an executor that share a container of bytes."""
    environment = simpy.Environment()
    memory = simpy.Container(environment, init=device.memory_limit_bytes)
    arrived = {load.visit: environment.event() for load in plan.loads}
    keep = set(plan.keep)

    def loader():
        for load in plan.loads:
            block = workload.visits[load.visit].block
            if block.weight_bytes:
                yield memory.get(block.weight_bytes)
            yield environment.timeout(device.measured[block.kind].load_s)
            arrived[load.visit].succeed()

    def executor():
        for visit in workload.visits:
            if visit.number in arrived:
                yield arrived[visit.number]
            yield environment.timeout(device.measured[visit.block.kind].exec_s)
            if visit.number not in keep:
                yield memory.put(visit.block.weight_bytes)

    environment.process(loader())
    done = environment.process(executor())
    try:
        environment.run(done)
    except RuntimeError:
        return math.inf
    return float(environment.now)


def engine_s(workload: Workload, device: DeviceProfile, plan: Plan, seed: int | None) -> float:
    try:
        return engine_makespan_s(workload, device, plan, seed=seed)
    except InfeasibleError:
        return math.inf


def seeds(setting: Setting) -> list[int] | None:
    return None if setting.seed is None else [setting.seed]


def seconds(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def difference(ours: float, theirs: float) -> float:
    return 0.0 if ours == theirs else abs(ours - theirs) / theirs


def first_call_s(cache: Path) -> float:
    """Seconds of a first evaluation in a new process, import of numba and compilation or its cache included."""
    code = (
        "import time, numpy as np\n"
        "from bench_batch import SETTINGS, made\n"
        "from cidl_sim.core.timed import timed\n"
        "from cidl_sim.simulator.arrays import arrays_of\n"
        "from cidl_sim.simulator.batch import makespans, evaluate\n"
        "cases = [arrays_of(timed(*made(s))) for s in (SETTINGS[0], SETTINGS[-1])]\n"
        "began = time.perf_counter()\n"
        "for case in cases: makespans(case, np.zeros((1, len(case.stays)), bool))\n"
        "print(time.perf_counter() - began)"
    )
    folder = Path(__file__).parent
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": f"{folder}:{folder.parent}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as cache:
        first_calls = [first_call_s(Path(cache)) for _ in range(4)]
    contests = [Contest(setting, number) for number, setting in enumerate(SETTINGS)]
    for turn in range(repeats):
        for contest in contests:
            contest.turn(turn)
    rows = [contest.row for contest in contests]
    report = text(rows, repeats, first_calls)
    (RESULTS / "bench_batch.md").write_text(report)
    draw(rows, RESULTS / "bench_batch.png")
    print(report)


def text(rows: list[Row], repeats: int, first_calls: list[float]) -> str:
    lines = [
        "# Policies a second",
        "",
        f"Command: `.venv/bin/python experiments/bench_batch.py --repeats {repeats}`. Date: "
        f"{datetime.now(UTC).date()}. Machine: {processor()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f} at the end; numba {metadata.version('numba')}, simpy {metadata.version('simpy')}.",
        "",
        "Medians of the turns, in brackets the slowest and the fastest. Batch: `pattern_makespans` on all cores. One "
        "by one: `batch.makespan_s` of a ready plan, on one core, the making of its arrays included. Engine and "
        f"minimal SimPy: a ready plan, on one core. Difference: the largest relative one to the engine, of {SAMPLE} "
        "policies.",
        "",
        "| case | blocks x rounds | batch | one by one | engine | minimal SimPy | batch / engine | infeasible | "
        "difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        setting = row.setting
        ratio = statistics.median(row.batch) / statistics.median(row.engine)
        lines.append(
            f"| {setting.name} | {setting.blocks} x {setting.rounds} | {shown(row.batch)} | {shown(row.one_by_one)} | "
            f"{shown(row.engine)} | {shown(row.minimal)} | {ratio:,.0f} | {row.infeasible:.1%} | {row.worst:.0e} |"
        )
    lines += [
        "",
        f"A first call in a new process takes {first_calls[0]:.1f} s to compile everything, then "
        f"{min(first_calls[1:]):.2f} to {max(first_calls[1:]):.2f} s from the cache on disk, import of numba included.",
        "",
        "![Policies a second by case](bench_batch.png)",
    ]
    return "\n".join([*lines, ""])


def shown(rates: list[float]) -> str:
    if not rates:
        return "-"
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"


def draw(rows: list[Row], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(10, 7), layout="constrained")
    contestants = (
        ("batch, all cores", "batch", "#0072b2"),
        ("one plan at a time", "one_by_one", "#56b4e9"),
        ("engine", "engine", "#d55e00"),
        ("minimal SimPy", "minimal", "#e69f00"),
    )
    for label, name, color in contestants:
        for y, row in enumerate(rows):
            rates = getattr(row, name)
            if rates:
                middle = statistics.median(rates)
                spread = [[middle - min(rates)], [max(rates) - middle]]
                axes.errorbar(middle, y, xerr=spread, fmt="o", color=color, label=label if y == 1 else None)
    axes.set_yticks(range(len(rows)), [f"{r.setting.name}\n{r.setting.blocks} x {r.setting.rounds}" for r in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("policies a second")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, 1.07), ncols=4, frameon=False)
    axes.tick_params(axis="y", labelsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
