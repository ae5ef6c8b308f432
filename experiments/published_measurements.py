"""Published measurements beside what the simulator predicts, with the disagreements among them.

    .venv/bin/python experiments/published_measurements.py

Writes experiments/results/published_measurements.md and .png. Pure simulation, a few seconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from cidl_sim.core.device import DeviceProfile
from cidl_sim.devices.catalog import find_device
from cidl_sim.devices.published import read_published
from cidl_sim.pipelines.open_sora.iphone_fit import FITTED_ROWS, FITTED_WORKLOAD
from cidl_sim.pipelines.open_sora.predictions import PublishedComparison, compare_published
from cidl_sim.validation.disagreements import Disagreement, LoadRate, disagreements, load_rates

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments/results"
COLOURS = {"fitted": "#1f5fa8", "predicted": "#d1761c", "assumed": "#f0c48a", "claim": "#8a8a8a"}
LEGEND = {
    "fitted": "the profile is fitted to it",
    "predicted": "predicted",
    "assumed": "predicted, something assumed",
    "claim": "headline, settings not printed",
}


def main() -> None:
    rows = read_published(*(ROOT / f"traces/published/{name}.toml" for name in ("on_device_sora", "core_ml")))
    device = find_device("iphone-15-pro")
    comparisons = compare_published(rows, device)
    differences = disagreements(rows)
    report = text(comparisons, differences, load_rates(rows), device)
    print(report)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "published_measurements.md").write_text(report)
    draw([c for c in comparisons if c.error is not None], differences, RESULTS / "published_measurements.png")


def text(
    comparisons: Sequence[PublishedComparison],
    differences: Sequence[Disagreement],
    rates: Sequence[LoadRate],
    device: DeviceProfile,
) -> str:
    return "\n".join(
        [
            "# Published measurements",
            "",
            "Command: `.venv/bin/python experiments/published_measurements.py`. "
            f"Date: {datetime.now(UTC).date()}; cidl-sim {version('cidl-sim')}; profile `{device.name}`, sha256 "
            f"{device.sha256[:16]}. Simulated, and what others published; nothing here was run on a phone or "
            "with Core ML by this project.",
            "",
            f"Fitted: {len(FITTED_ROWS)} rows ({', '.join(f'`{row}`' for row in FITTED_ROWS)}) on `{FITTED_WORKLOAD}`. "
            "Everything else is predicted.",
            "",
            *summary(comparisons),
            "",
            "![Predicted against published, and the error of each row](published_measurements.png)",
            "",
            *comparison_table(comparisons),
            "## Published figures that disagree",
            "",
            *disagreement_table(differences),
            "## Rates of loads with Core ML",
            "",
            *rate_table(rates, device),
            "## Published rows that nothing here predicts",
            "",
            *unpredicted_table(comparisons),
        ]
    )


def summary(comparisons: Sequence[PublishedComparison]) -> list[str]:
    held_out = [c for c in comparisons if c.error is not None and c.role == "predicted"]
    sets = {
        "STDiT at 192x192, resolution printed": [c for c in held_out if c.row.id.endswith("192.stdit")],
        "whole pipeline, resolution printed": [c for c in held_out if c.row.id.endswith(".total")],
        "a row with something assumed, On-device Sora, times": [
            c for c in held_out if c.assumed and c.row.is_time and "Sora" in c.row.source
        ],
        "speed-ups": [c for c in held_out if not c.row.is_time],
        "loads of other apps": [c for c in held_out if "Sora" not in c.row.source],
    }
    lines = ["| predicted rows | predictions | median error | smallest to largest |", "|---|---|---|---|"]
    for name, members in sets.items():
        errors = [c.error for c in members if c.error is not None]
        middle = statistics.median(abs(error) for error in errors)
        lines.append(f"| {name} | {len(errors)} | {middle:.1%} | {min(errors):+.1%} to {max(errors):+.1%} |")
    return lines


def comparison_table(comparisons: Sequence[PublishedComparison]) -> list[str]:
    lines = [
        "| row | published | predicted | error | role | what predicts it | published conditions |",
        "|---|---|---|---|---|---|---|",
    ]
    for c in comparisons:
        if c.error is None or c.predicted is None:
            continue
        settings = c.settings + (f" ({c.assumed})" if c.assumed else "")
        lines.append(
            f"| `{c.row.id}`: {c.row.what} | {figure(c.published, c)} | {figure(c.predicted, c)} | {c.error:+.1%} | "
            f"{c.role} | {settings} | {c.row.conditions.text()} |"
        )
    return [*lines, ""]


def disagreement_table(differences: Sequence[Disagreement]) -> list[str]:
    lines = ["| quantity | figures | apart by | note |", "|---|---|---|---|"]
    for d in differences:
        figures = "; ".join(f"{label}: {value:.4g} {d.unit}" for label, value in d.figures)
        lines.append(f"| {d.what} | {figures} | {d.spread:.0%} | {d.note} |")
    return [*lines, ""]


def rate_table(rates: Sequence[LoadRate], device: DeviceProfile) -> list[str]:
    t5, pair = device.measured["t5.block"], device.measured["stdit.pair"]
    lines = ["| load | device | MB | s | GB/s | source |", "|---|---|---|---|---|---|"]
    for what, size, load_s in (
        ("first (each T5 block is loaded once)", t5.weight_bytes, t5.cold_load_s),
        ("later (STDiT's pairs)", pair.weight_bytes, pair.load_s),
    ):
        if size and load_s:
            rate = size / load_s / 1e9
            lines.append(
                f"| {what} | iPhone 15 Pro | {size / 1e6:.0f} | {load_s:.3f} | {rate:.3f} | fitted, this profile |"
            )
    for r in rates:
        lines.append(
            f"| {r.row.conditions.load or 'not printed'} | {r.row.device} | {r.weight_bytes / 1e6:.0f} | "
            f"{r.row.seconds:.3f} | {r.bytes_per_s / 1e9:.3f} | {r.row.source} |"
        )
    return [*lines, ""]


def unpredicted_table(comparisons: Sequence[PublishedComparison]) -> list[str]:
    lines = ["| row | published | device | conditions | source |", "|---|---|---|---|---|"]
    for c in comparisons:
        if c.error is None:
            lines.append(
                f"| `{c.row.id}`: {c.row.what}{' (headline)' if c.row.claim else ''} | {c.row.value:g} {c.row.unit} | "
                f"{c.row.device} | {c.row.conditions.text()} | {c.row.source} |"
            )
    return [*lines, ""]


def figure(value: float, comparison: PublishedComparison) -> str:
    return f"{value:.4g} s" if comparison.row.is_time else f"{value:.3g}{comparison.row.unit}"


def shade(comparison: PublishedComparison) -> str:
    return "assumed" if comparison.role == "predicted" and comparison.assumed else comparison.role


def draw(comparisons: Sequence[PublishedComparison], differences: Sequence[Disagreement], path: Path) -> None:
    figure_, (left, right) = plt.subplots(1, 2, figsize=(16, 10.5), width_ratios=[1, 1], layout="constrained")
    scatter(left, [c for c in comparisons if c.row.is_time], differences)
    errors(right, comparisons)
    figure_.suptitle("Published measurements of others against the simulator on the profile iphone-15-pro", fontsize=14)
    figure_.savefig(path, dpi=110)
    plt.close(figure_)


def scatter(axes: Axes, comparisons: Sequence[PublishedComparison], differences: Sequence[Disagreement]) -> None:
    low, high = 0.1, 4000.0
    axes.plot([low, high], [low, high], color="#444444", linewidth=1)
    axes.fill_between(
        [low, high], [low / 1.1, high / 1.1], [low * 1.1, high * 1.1], color="#cccccc", alpha=0.5, label="within 10 %"
    )
    for kind, label in LEGEND.items():
        points = [c for c in comparisons if shade(c) == kind]
        marker = "s" if kind == "fitted" else "o"
        x, y = [c.published for c in points], [c.predicted or 0 for c in points]
        axes.scatter(x, y, color=COLOURS[kind], marker=marker, s=46, edgecolor="black", linewidth=0.5, label=label)
    for d in differences:
        pair = [next(c for c in comparisons if c.row.id == row_id) for row_id in d.row_ids]
        if pair:
            x, y = [c.published for c in pair], [c.predicted or 0 for c in pair]
            axes.plot(x, y, color="#b03030", linewidth=2, zorder=0)
            axes.annotate(
                d.what, (min(x), y[0]), (-8, 4), textcoords="offset points", ha="right", fontsize=9, color="#b03030"
            )
    for c in comparisons:
        if c.error is not None and abs(c.error) > 0.5:
            place = (c.published, c.predicted or 0)
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1}
            axes.annotate(c.row.id, place, (8, -3), textcoords="offset points", fontsize=8, color="#555555", bbox=box)
    axes.plot([], [], color="#b03030", linewidth=2, label="published twice, differently")
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    axes.set(xlabel="published (s)", ylabel="predicted (s)", title="times")
    axes.legend(loc="upper left", fontsize=9)
    axes.grid(alpha=0.3)


def errors(axes: Axes, comparisons: Sequence[PublishedComparison]) -> None:
    """Predicted over published, a line for each row; the predictions of one row share its line."""
    names = list(dict.fromkeys(c.row.id for c in comparisons))
    axes.axvspan(1 / 1.1, 1.1, color="#cccccc", alpha=0.5)
    axes.axvline(1, color="#444444", linewidth=1)
    for c in comparisons:
        ratio, place = (c.predicted or 0) / c.published, names.index(c.row.id)
        marker = "s" if c.role == "fitted" else "o"
        axes.plot([1, ratio], [place, place], color="#bbbbbb", linewidth=1, zorder=1)
        axes.scatter(
            [ratio], [place], color=COLOURS[shade(c)], marker=marker, s=40, edgecolor="black", linewidth=0.5, zorder=2
        )
        label = next((r for r in ("192x192", "256x256") if c.assumed.endswith(f"{r} taken")), "")
        if label and sum(other.row.id == c.row.id for other in comparisons) > 1:
            axes.annotate(label[:3], (ratio, place), (0, 5), textcoords="offset points", ha="center", fontsize=7)
    axes.set(xscale="log", xlim=(0.15, 8), title="predicted / published", ylim=(len(names) - 0.3, -0.7))
    axes.set_xticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.grid(axis="x", alpha=0.3)


if __name__ == "__main__":
    main()
