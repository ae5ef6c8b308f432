"""Tables for people: rich renderables made from plain figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.reports import (
    ComparedPolicy,
    CoreMLCost,
    InfeasiblePlan,
    MakespanQuantiles,
    PlanReport,
    ValidationReport,
    WhatIfReport,
)
from cidl_sim.core.trace import Trace
from cidl_sim.core.workload import Workload
from cidl_sim.policies.on_device_sora import REFERENCE


def workload_table(workload: Workload) -> Table:
    """A workload kind by kind, with totals per round."""
    table = Table(title=f"{workload.name}: {workload.weights_bytes / 1e9:.2f} GB of weights", title_justify="left")
    headings = ("stage", "rounds", "kind", "blocks", "weights (MB)", "workspace (MB)", "GFLOP")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i in (0, 2) else "right")
    for stage in workload.stages:
        kinds: dict[str, list[Any]] = {}
        for block in stage.blocks:
            kinds.setdefault(block.kind, []).append(block)
        for i, (kind, blocks) in enumerate(kinds.items()):
            first = blocks[0]
            table.add_row(
                stage.name if i == 0 else "",
                str(stage.rounds) if i == 0 else "",
                kind,
                str(len(blocks)),
                f"{first.weight_bytes / 1e6:,.2f}",
                f"{first.workspace_bytes / 1e6:,.1f}",
                f"{first.flops / 1e9:,.2f}",
            )
        flops = sum(block.flops for block in stage.blocks)
        weights = sum(block.weight_bytes for block in stage.blocks)
        total = (
            "",
            "",
            "[dim]a round[/dim]",
            f"{len(stage.blocks)}",
            f"{weights / 1e6:,.1f}",
            "",
            f"{flops / 1e9:,.1f}",
        )
        table.add_row(*total, end_section=True)
    return table


def summary_table(title: str, trace: Trace) -> Table:
    """The figures of a trace."""
    summary = trace.summary()
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("policy", summary["policy"])
    table.add_row("origin", summary["origin"])
    table.add_row("makespan", f"{summary['makespan_s']:.3f} s")
    for name in ("executor_busy_s", "loader_busy_s", "overlap_s"):
        table.add_row(name.removesuffix("_s").replace("_", " "), f"{summary[name]:.3f} s")
    for worker, causes in summary["idle_s"].items():
        for cause, seconds in sorted(causes.items()):
            table.add_row(f"{worker} waits: {cause.replace('_', ' ')}", f"{seconds:.3f} s")
    for group, figures in summary["groups"].items():
        table.add_row(f"{group.replace('_', ' ')} takes", f"{figures['elapsed_s']:.3f} s")
    for name, unit in (("ane_busy_s", "Neural Engine"), ("gpu_busy_s", "GPU")):
        busy_s = trace.header.machine.get(name)
        if isinstance(busy_s, int | float):
            table.add_row(f"{unit} busy", f"{busy_s:.3f} s")
    table.add_row("peak memory, accounted", f"{summary['peak_resident_bytes'] / 1e6:,.1f} MB")
    if summary["peak_kernel_bytes"]:
        table.add_row("peak memory, kernel", f"{summary['peak_kernel_bytes'] / 1e6:,.1f} MB")
    table.add_row("memory limit", f"{summary['memory_limit_bytes'] / 1e6:,.1f} MB")
    table.add_row("limit enforced by", summary["enforced_by"])
    if summary["fall_backs"]:
        table.add_row("fall-backs (all with --json)", _first_and_more(summary["fall_backs"]))
    return table


def quantiles_line(quantiles: MakespanQuantiles, runs: int) -> str:
    """The quantiles of a makespan over seeded runs in one line."""
    return f"makespan over {runs} seeded runs: " + ", ".join(f"{name} {s:.3f} s" for name, s in quantiles)


def _first_and_more(notes: Sequence[str]) -> str:
    return notes[0] + (f", and {len(notes) - 1} more" if notes[1:] else "")


def plan_table(figures: PlanReport) -> Table:
    """Every baseline beside the bound, for one plan (the figures of `cidl plan`)."""
    title = f"{figures.workload} on {figures.device}: {figures.policy}, {figures.makespan_s:.2f} s"
    table = Table(title=title, title_justify="left", min_width=80)
    table.add_column("policy")
    table.add_column("makespan (s)", justify="right")
    table.add_column("above the bound", justify="right")
    bound = figures.lower_bound_s
    for policy, seconds in figures.baselines.items():
        above = "-" if seconds is None or not bound else f"{seconds / bound - 1:+z.1%}"
        table.add_row(policy, "does not fit" if seconds is None else f"{seconds:.2f}", above)
    if figures.policy.partition(":")[0] not in figures.baselines:
        table.add_row(f"[bold]{figures.policy}[/bold]", f"{figures.makespan_s:.2f}", f"{figures.gap:+z.1%}")
    proven = f"{figures.policy} is optimal" if figures.proven_optimal else ""
    table.add_row("[dim]lower bound[/dim]", f"{bound:.2f}", proven)
    peak, limit = figures.peak_resident_bytes / 1e6, figures.memory_limit_bytes / 1e6
    table.caption = f"peak {peak:,.0f} MB of {limit:,.0f} MB" + (f"; plan in {figures.file}" if figures.file else "")
    if figures.fall_backs:
        table.caption += f"\nfall-backs (all with --json): {_first_and_more(figures.fall_backs)}"
    return table


def partition_tables(figures: PlanReport) -> list[Any]:
    """The cuts that were looked at, and how to build a store for the chosen one; nothing if the cut was given."""
    if figures.partition is None:
        return []
    table = Table(title=f"cuts into blocks: {figures.partition} is chosen", title_justify="left")
    headings = ("partition", "blocks", "largest (MB)", "makespan (s)", "lower bound (s)", "kinds derived", "")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("partition", "") else "right")
    for row in figures.partitions:
        name = f"[bold]{row.partition}[/bold]" if row.chosen else row.partition
        seconds, bound = _figure(row.makespan_s, ".2f"), _figure(row.lower_bound_s, ".2f")
        largest, derived = f"{row.largest_block_bytes / 1e6:,.1f}", str(len(row.derived_kinds))
        table.add_row(name, str(row.blocks), largest, seconds, bound, derived, row.remark)
    command = figures.store_command
    return [table, *([f"a store for it: {command}"] if command else [])]


def plan_tables(figures: PlanReport) -> list[Any]:
    """The table of a plan, and what was asked beside it (the figures of `cidl plan`)."""
    parts: list[Any] = [*partition_tables(figures), plan_table(figures)]
    parts += [f"- {sentence}" for sentence in figures.explanation]
    parts += [f"- {row.sentence}" for row in figures.least]
    if figures.memory_curve:
        table = Table(title=f"memory curve, {figures.curve_policy}", title_justify="left")
        for heading in ("memory limit (MB)", "makespan (s)", "lower bound (s)", "retained blocks", ""):
            table.add_column(heading, justify="left" if not heading else "right")
        marks = {point.value: point.name.replace("_", " ") for point in figures.memory_points}
        for point in figures.memory_curve:
            limit = point.memory_limit_bytes
            own = "profile" if limit == figures.memory_limit_bytes else ""
            table.add_row(
                f"{limit / 1e6:,.0f}",
                f"{point.makespan_s:.2f}",
                f"{point.lower_bound_s:.2f}",
                str(point.retained_blocks),
                ", ".join(mark for mark in (own, marks.get(limit, "")) if mark),
            )
        parts += [table, *(f"- {point.sentence}" for point in figures.memory_points)]
    return parts


def devices_table(labels: Sequence[str], results: Sequence[PlanReport | InfeasiblePlan]) -> Table:
    """The results of `cidl plan` on several devices, each under its label; where nothing fits, why."""
    table = Table(title=f"{results[0].workload} on {len(results)} devices", title_justify="left")
    numbers = ("makespan (s)", "bound (s)", "gap", "best policy (s)", "gain", "peak (MB)")
    for heading in ("device", *numbers, "plan file, or why nothing fits"):
        table.add_column(heading, justify="right" if heading in numbers else "left", overflow="fold")
    for label, figures in zip(labels, results, strict=True):
        if isinstance(figures, InfeasiblePlan):
            table.add_row(label, *["-"] * len(numbers), figures.infeasible)
            continue
        seconds, baselines = figures.makespan_s, figures.baselines
        best_s, best = min((s, policy) for policy, s in baselines.items() if s is not None)
        reference_s = baselines[REFERENCE]
        gain = reference_s / seconds - 1 if seconds and reference_s is not None else None
        table.add_row(
            label,
            f"{seconds:.2f}",
            f"{figures.lower_bound_s:.2f}",
            f"{figures.gap:.1%}",
            f"{best} {best_s:.2f}",
            _figure(gain, "+.1%"),
            f"{figures.peak_resident_bytes / 1e6:,.0f}",
            figures.file or "-",
        )
    table.caption = f"gain: how much faster than {REFERENCE} (-: that does not fit)"
    return table


def what_if_tables(figures: WhatIfReport) -> list[Any]:
    """Sensitivities as a table and break points as sentences (the figures of `cidl whatif`)."""
    title = f"{figures.workload} on {figures.device}: {figures.policy}, {figures.makespan_s:.2f} s"
    table = Table(title=title, title_justify="left")
    for heading in ("figure", "value", "elasticity", "plan held", "/ 1.1 (s)", "x 1.1 (s)", "remark"):
        table.add_column(
            heading, justify="left" if heading in ("figure", "remark") else "right", no_wrap=heading != "remark"
        )
    for row in figures.sensitivities:
        table.add_row(
            row.parameter,
            _figure(row.value, ".4g"),
            *(_figure(slope, "+.3f") for slope in (row.elasticity, row.elasticity_plan_held)),
            *(_figure(seconds, ".2f") for seconds in (row.makespan_below_s, row.makespan_above_s)),
            row.remark,
        )
    table.caption = (
        "elasticity: % of makespan for each % of the figure, planned anew; plan held: with the plan as it is"
    )
    if figures.fall_backs:
        table.caption += f"\nfall-backs (all with --json): {_first_and_more(figures.fall_backs)}"
    sentences = [f"- {point.sentence}" for point in figures.break_points]
    return [table, *sentences, *([f"picture in {figures.file}"] if figures.file else [])]


def comparison_table(rows: Sequence[ComparedPolicy]) -> Table:
    """Simulated beside measured, a row for each policy; who measured and what held the limit, if that is the same."""
    columns: dict[str, list[str]] = {
        "policy": [row.plan if row.plan.startswith(row.policy) else row.policy for row in rows],
        "origin": [", ".join(row.origins) for row in rows],
        "bound by": [row.bound_by for row in rows],
        "simulated (s)": [f"{row.simulated_makespan_s:.2f}" for row in rows],
        "measured (s)": [f"{row.measured_makespan_s:.2f}" for row in rows],
        "spread": ["-" if row.spread is None else f"{row.spread:.1%}" for row in rows],
        "prediction": [f"{row.difference:+.1%}" for row in rows],
        "replay": [f"{row.replay_error:+.1%}" for row in rows],
        "peak, accounted": [f"{row.peak_resident_bytes / 1e6:.0f} MB" for row in rows],
        "peak, kernel": [f"{row.peak_kernel_bytes / 1e6:.0f} MB" if row.peak_kernel_bytes else "-" for row in rows],
        "limit": [row.enforced_by for row in rows],
    }
    said_once = {name: columns.pop(name)[0] for name in ("origin", "limit") if len(set(columns[name])) == 1}
    title = "simulated against measured"
    title += "".join(f", {name}: {value}" for name, value in said_once.items())
    table = Table(title=title, title_justify="left")
    for heading in columns:
        table.add_column(heading, justify="left" if heading in ("policy", "origin", "bound by", "limit") else "right")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table


def error_line(figures: ValidationReport) -> str:
    """Both errors and the spread in one line."""
    prediction, replay = figures.prediction_error, figures.replay_error
    spread = figures.run_to_run_spread
    return (
        f"prediction error: mean {prediction.mean:.1%}, max {prediction.max:.1%}; "
        f"structure (replay) error: mean {replay.mean:.1%}, max {replay.max:.1%}; run-to-run spread: "
        + (f"{spread:.1%}" if spread is not None else "not measured (one run each)")
    )


def validation_lines(figures: ValidationReport) -> list[str]:
    """What the figures of `cidl validate` say beside the table."""
    shares = ", ".join(f"{cause.replace('_', ' ')} {share:.1%}" for cause, share in figures.shares.items())
    origins = ", ".join(f"{count} {origin}" for origin, count in figures.origins.items())
    return [
        f"runs by origin: {origins}" + ("; simulated ones measure nothing" if "simulated" in figures.origins else ""),
        error_line(figures),
        f"of the prediction error, by cause (means of magnitudes): {shares}",
        f"Kendall's tau {_figure(figures.kendall_tau, '.2f')}; makespans span a factor of {figures.makespan_span:.2f}; "
        f"runs within the simulated p5 to p95: {_figure(figures.coverage, '.0%')}",
        f"largest memory errors: kernel's peak {_figure(figures.peak_memory_error, '.1%')}, slots accounted "
        f"{_figure(figures.accounting_error, '.2%')}, slots predicted {_figure(figures.touched_error, '.1%')}",
        *(f"[yellow]flag:[/yellow] {mismatch}" for mismatch in figures.mismatches),
    ]


def calibration_table(device: DeviceProfile) -> Table:
    """A measured profile, kind by kind."""
    loader, executor, noise = device.loader, device.executor, device.noise
    table = Table(title=f"{device.name}: {device.provenance.device}", title_justify="left")
    for heading in (
        "kind",
        "weights (MB)",
        "load (ms)",
        "±",
        "cold (ms)",
        "execute (ms)",
        "±",
        "workspace (MB)",
        "runs",
    ):
        table.add_column(heading, justify="left" if heading == "kind" else "right")
    for kind, m in device.measured.items():
        table.add_row(
            kind,
            _figure(None if m.weight_bytes is None else m.weight_bytes / 1e6, ".2f"),
            _figure(None if m.load_s is None else m.load_s * 1e3, ".2f"),
            _figure(m.load_spread, ".0%"),
            _figure(None if m.cold_load_s is None else m.cold_load_s * 1e3, ".2f"),
            _figure(None if m.exec_s is None else m.exec_s * 1e3, ".2f"),
            _figure(m.exec_spread, ".0%"),
            _figure(None if m.workspace_bytes is None else m.workspace_bytes / 1e6, ".1f"),
            _figure(m.samples, "d"),
        )
    bandwidth = (loader.bandwidth_bytes_per_s or 0.0) / 1e9
    numbers = " or ".join(map(str, sorted(n for n in device.thread_numbers if n)))
    threads = f"{executor.threads} threads{f' ({numbers}, as a plan chooses)' if device.other_threads else ''}, "
    threads = threads if executor.threads else ""
    table.caption = (
        f"loads: {loader.latency_s * 1e3:.2f} ms + bytes at {bandwidth:.2f} GB/s, "
        f"x{loader.slowdown_while_executing:.2f} while executing; executions: {threads}"
        f"x{executor.slowdown_while_loading:.2f} while loading; "
        f"noise {noise.load:.1%} and {noise.execute:.1%}, from run to run {noise.load_drift:.1%} and "
        f"{noise.execute_drift:.1%}; baseline {device.baseline_bytes / 1e6:.0f} MB"
    )
    return table


def coreml_cost_table(figures: CoreMLCost) -> Table:
    """Disk, first and later runs of a workload on a device with Core ML (the figures of `cidl coreml cost`)."""
    title = f"{figures.workload} on {figures.device}: {figures.policy}"
    table = Table(title=title, title_justify="left", caption=figures.sentence)
    for heading in ("", "value", "mark", "from"):
        table.add_column(heading, justify="right" if heading == "value" else "left")
    marks, sources = figures.marks, figures.sources
    table.add_row("packages", _megabytes(figures.packages_bytes), marks.packages_bytes, sources.packages_bytes)
    table.add_row("compiled models", _megabytes(figures.compiled_bytes), marks.compiled_bytes, sources.compiled_bytes)
    table.add_row("what Core ML prepares and keeps", "unknown", "-", "no figure exists")
    compile_s = figures.compile_s
    compiling = (
        ("unknown", "-", "no figure in the profile")
        if compile_s is None
        else (f"{compile_s:,.1f} s", "measured", "a model of each kind")
    )
    table.add_row("compiling all packages, once", *compiling)
    first, costs = figures.first_run_s, f"costs: {marks.costs or 'no mark'}"
    at_least = f"unknown, at least {figures.first_run_at_least_s:,.1f} s"
    missing = f"; {len(figures.kinds_without_cold_load)} kinds without a cold load" if first is None else ""
    table.add_row("first run", at_least if first is None else f"{first:,.1f} s", "simulated", costs + missing)
    table.add_row("later runs", f"{figures.later_run_s:,.1f} s", "simulated", costs)
    return table


def trace_difference_tables(figures: dict[str, Any]) -> list[Any]:
    """What `cidl trace diff` found, as tables, or one line where the traces are the same."""
    a, b = figures["a"], figures["b"]
    headers = ", ".join(name.replace("_", " ") for name in figures["header_differences"])
    if figures["identical"]:
        return ["the traces are identical" + (f", except in their headers ({headers})" if headers else "")]
    lines = [
        f"{name}: {side['policy']} on {side['device_name']} ({side['origin']}), limit "
        f"{side['memory_limit_bytes'] / 1e6:,.1f} MB, {side['makespan_s']:.3f} s"
        for name, side in (("A", a), ("B", b))
    ]
    total = {"part": "makespan", "a_s": a["makespan_s"], "b_s": b["makespan_s"]}
    total["difference_s"] = figures["makespan_difference_s"]
    part_columns = {
        "part": ("", ""),
        "a_s": ("A (s)", ".3f"),
        "b_s": ("B (s)", ".3f"),
        "difference_s": ("B - A (s)", "+.3f"),
    }
    stage_columns = {
        "stage": ("stage", ""),
        "elapsed_a_s": ("A takes (s)", ".3f"),
        "elapsed_b_s": ("B takes (s)", ".3f"),
        "elapsed_difference_s": ("B - A (s)", "+.3f"),
        "executing_difference_s": ("execute (s)", "+.3f"),
        "loading_difference_s": ("load (s)", "+.3f"),
        "spans_moved": ("moved", "d"),
        "spans_in_both": ("of spans", "d"),
        "largest_start_difference_s": ("by up to (s)", "+.3f"),
        "loads_only_in_a": ("loads in A only", "d"),
        "loads_only_in_b": ("in B only", "d"),
    }
    span_columns = {
        "operation": ("", ""),
        "stage": ("stage", ""),
        "round": ("round", "d"),
        "block": ("block", ""),
        "start_a_s": ("A starts (s)", ".3f"),
        "start_difference_s": ("later in B (s)", "+.3f"),
        "duration_a_s": ("A takes (s)", ".3f"),
        "duration_difference_s": ("longer in B (s)", "+.3f"),
    }
    parts: list[Any] = [*lines, f"compared: {figures['compared']}"]
    parts.append(
        _columns_table("executor: what the makespans are made of", part_columns, [*figures["makespan"], total])
    )
    parts.append(_columns_table("loader, all channels together", part_columns, figures["loader"]))
    parts.append(_columns_table("stages", stage_columns, figures["stages"]))
    for title, key in (("largest changes of duration", "duration"), ("largest changes of start", "start")):
        if rows := figures[f"largest_by_{key}"]:
            parts.append(_columns_table(title, span_columns, rows))
    return parts


def _columns_table(title: str, columns: dict[str, tuple[str, str]], rows: list[dict[str, Any]]) -> Table:
    """A table of `rows`; `columns` gives each key its heading and its format, "" for words."""
    table = Table(title=title, title_justify="left")
    for heading, spec in columns.values():
        table.add_column(heading, justify="right" if spec else "left", no_wrap=not spec)
    for row in rows:
        table.add_row(*(format(row[key], spec) for key, (_, spec) in columns.items()))
    return table


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _figure(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
