"""The picture of a validation: predicted against measured, and where the error of each policy comes from."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from cidl_sim.core.files import replacing
from cidl_sim.core.reports import ValidationReport

# Okabe and Ito's palette: told apart by colour-blind readers.
BOUND_COLORS = {"loader": "#D55E00", "balanced": "#0072B2", "executor": "#009E73"}
CAUSE_COLORS = {
    "execution_costs": "#009E73",
    "load_costs": "#D55E00",
    "variation_within_kinds": "#E69F00",
    "model": "#0072B2",
}


def draw_validation(figures: ValidationReport, path: Path) -> None:
    """Draw the figures of `cidl validate`. MachineError if `path` cannot be written."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(13, 2.2 + 0.36 * max(9, len(figures.policies))), layout="constrained", width_ratios=(1, 1.2)
    )
    _draw_points(left, figures)
    _draw_causes(right, figures)
    prediction, replay = figures.prediction_error, figures.replay_error
    origins = ", ".join(f"{count} {origin}" for origin, count in figures.origins.items())
    figure.suptitle(
        f"prediction error: mean {prediction.mean:.1%}, max {prediction.max:.1%};  structure error: mean "
        f"{replay.mean:.1%}, max {replay.max:.1%};  runs by origin: {origins}"
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format=path.suffix.lstrip(".") or "png")
    plt.close(figure)


def _draw_points(axes: Axes, figures: ValidationReport) -> None:
    rows = figures.policies
    for bound, color in BOUND_COLORS.items():
        chosen = [row for row in rows if row.bound_by == bound]
        if not chosen:
            continue
        measured = np.array([row.measured_makespan_s for row in chosen])
        runs = [row.runs_s for row in chosen]
        below = measured - [min(r) for r in runs]
        above = [max(r) for r in runs] - measured
        predicted = np.array([row.simulated_makespan_s for row in chosen])
        axes.errorbar(measured, predicted, xerr=[below, above], fmt="o", color=color, capsize=3, label=bound)
        for row in chosen:
            quantiles = row.quantiles_s
            if quantiles is not None:
                axes.vlines(row.measured_makespan_s, quantiles.p5, quantiles.p95, color=color, alpha=0.35, lw=4)
    lowest = min(min(row.runs_s) for row in rows)
    highest = max(max(*row.runs_s, row.simulated_makespan_s) for row in rows)
    ends = np.array([0.9 * lowest, 1.05 * highest])
    axes.plot(ends, ends, color="black", lw=0.8)
    axes.fill_between(ends, 0.97 * ends, 1.03 * ends, color="black", alpha=0.08, lw=0)
    axes.set_xlabel("measured makespan (s): median, all runs")
    axes.set_ylabel("predicted makespan (s), p5 to p95")
    axes.set_title("predicted against measured (band: ±3 %)", fontsize=10)
    axes.legend(title="bound by", loc="upper left")


def _draw_causes(axes: Axes, figures: ValidationReport) -> None:
    rows = figures.policies
    places = np.arange(len(rows))[::-1]
    reached = {sign: np.zeros(len(rows)) for sign in (-1, 1)}
    for cause, color in CAUSE_COLORS.items():
        shares = np.array([100 * row.shares[cause] for row in rows])
        starts = np.where(shares < 0, reached[-1], reached[1])
        axes.barh(places, shares, left=starts, color=color, label=cause.replace("_", " "))
        reached[-1] += np.minimum(shares, 0)
        reached[1] += np.maximum(shares, 0)
    totals = [100 * row.difference for row in rows]
    axes.plot(totals, places, "k|", ms=14, mew=2, label="prediction error")
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(places, [f"{row.policy} ({', '.join(row.origins)})\n{row.workload}" for row in rows], fontsize=7)
    axes.set_xlabel("% of the measured makespan")
    axes.set_title("the prediction's error by cause", fontsize=10)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=5, frameon=False)
