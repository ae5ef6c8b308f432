"""The worked example of docs/tutorial/worked_example.md: its workload, device and plan as files, and its picture.

    .venv/bin/python experiments/worked_example.py

Writes docs/tutorial/worked_example/ and docs/images/worked_example.png. tests/simulator/test_worked_example.py compares
the engine's trace with the schedule that was computed by hand.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from cidl_sim.core.device import DeviceProfile, Executor, Loader
from cidl_sim.core.feasibility import check_plan
from cidl_sim.core.files import replacing
from cidl_sim.core.plan import Gate, Load
from cidl_sim.core.trace import Span, Trace
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.policies.build import build_plan
from cidl_sim.report.timeline import GROUP_COLORS, LIMIT_COLOR, MEMORY_COLOR, WAIT_COLOR
from cidl_sim.simulator.engine import simulate

DOCS = Path(__file__).parent.parent / "docs"
# name: weight bytes = seconds to load, seconds to execute, workspace bytes
BLOCKS = {"A": (2, 3, 0), "B": (3, 2, 1), "C": (1, 4, 2), "D": (4, 2, 0), "E": (2, 3, 0)}


def main() -> None:
    blocks = [
        Block(name=name, kind=name, weight_bytes=weights, workspace_bytes=workspace, flops=seconds)
        for name, (weights, seconds, workspace) in BLOCKS.items()
    ]
    workload = Workload(name="worked-example", stages=(Stage(name="sweep", rounds=2, blocks=tuple(blocks)),))
    device = DeviceProfile(
        name="worked-example",
        memory_limit_bytes=9,
        baseline_bytes=1,
        loader=Loader(bandwidth_bytes_per_s=1.0),
        executor=Executor(flops_per_s=1.0),
    )
    gates = {3: Gate(visit=2, edge="start")}
    # A stays after its first visit, so its second one (5) needs no load.
    loads = [Load(visit=v.number, gate=gates.get(v.number)) for v in workload.visits if v.number != 5]
    plan = build_plan("by_hand", workload, device, loads, keep=[0])
    check_plan(workload, device, plan)
    folder = DOCS / "tutorial/worked_example"
    workload.write(folder / "workload.json")
    device.write(folder / "device.toml")
    plan.write(folder / "plan.json")
    draw(simulate(workload, device, plan), workload, DOCS / "images/worked_example.png")


def draw(trace: Trace, workload: Workload, path: Path) -> None:
    """Loader and executor lane with every span named, and the accounted memory under them."""
    figure, (lanes, memory) = plt.subplots(2, 1, figsize=(12, 4.6), sharex=True, layout="constrained")
    names = [visit.block.name for visit in workload.visits]
    for span in trace.spans:
        if span.operation != "unload":
            draw_span(lanes, span, names[span.visit])
    lanes.set_yticks([0, 1], ["executor", "loader"])
    lanes.set_ylim(-0.55, 1.55)
    held = [count for _, count in trace.memory_curve]
    memory.fill_between(
        [at_s for at_s, _ in trace.memory_curve], held, 1, step="post", color=MEMORY_COLOR, alpha=0.55, linewidth=0
    )
    memory.axhline(trace.header.baseline_bytes, color="#7F7F7F", linewidth=1, linestyle=":")
    memory.axhline(trace.header.memory_limit_bytes, color=LIMIT_COLOR, linewidth=1.4, linestyle="--")
    memory.text(34.15, trace.header.memory_limit_bytes, "limit", color=LIMIT_COLOR, va="bottom", fontsize=9)
    memory.text(34.15, trace.header.baseline_bytes, "baseline", color="#7F7F7F", va="bottom", fontsize=9)
    memory.set_ylim(0, 10)
    memory.set_yticks(range(0, 10, 3))
    memory.set_ylabel("bytes")
    memory.set_xlabel("time (s)")
    memory.set_xticks(sorted({round(s.end_s) for s in trace.spans} | {0}))
    memory.tick_params(axis="x", labelsize=8)
    for axes in (lanes, memory):
        axes.set_xlim(0, 36)
        axes.spines[["top", "right"]].set_visible(False)
    for at_s in {s.start_s for s in trace.spans} | {s.end_s for s in trace.spans}:
        lanes.axvline(at_s, color="#E8E8E8", linewidth=0.6, zorder=0)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)


def draw_span(axes: Axes, span: Span, name: str) -> None:
    lane = 0 if span.worker == "executor" else 1
    waits = span.operation == "wait"
    color = WAIT_COLOR if waits else GROUP_COLORS["ABCDE".index(name)]
    height = 0.3 if waits else 0.8
    axes.broken_barh(
        [(span.start_s, span.end_s - span.start_s)],
        (lane - height / 2, height),
        facecolors=color,
        edgecolors="white",
        linewidth=1,
    )
    label = f"{span.cause}" if waits else f"{name} ({span.visit})"
    axes.text(
        (span.start_s + span.end_s) / 2,
        lane,
        label,
        ha="center",
        va="center",
        fontsize=8 if span.end_s - span.start_s > 1 else 6.5,
        color="black" if waits or name in "BE" else "white",
    )


if __name__ == "__main__":
    main()
