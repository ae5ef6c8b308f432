"""Would a term beside arithmetic predict the phone's published rows better: a fixed time a visit, or bytes moved?

    .venv/bin/python experiments/phone_terms.py

Without such a term a pair's execution at another size is as long as its arithmetic. Here a share of the fitted
execution at 256x256 is instead the same at every size, or goes with the bytes of activations and weights. The fitted
rows stay fitted; what each share does to rows that nothing was fitted to is printed. A share that makes these rows best
would be fitted to them; the one in the profile `iphone-15-pro` follows from the memory's bandwidth instead. Writes
experiments/results/phone_terms.md and .png. Pure simulation, half a minute.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import matplotlib.pyplot as plt

from cidl_sim.core.costs import execute_cost, measured_traffic_s
from cidl_sim.core.device import DeviceProfile, Measured
from cidl_sim.core.files import replacing, write_text
from cidl_sim.core.workload import Block
from cidl_sim.devices.catalog import find_device
from cidl_sim.devices.published import Rows, read_published
from cidl_sim.pipelines.catalog import find_workload
from cidl_sim.pipelines.open_sora.predictions import compare_published

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments/results"
FITTED_AT = "opensora-v1.2-256x256-68f"
OTHERS = ("opensora-v1.2-192x192-68f", "opensora-v1.2-256x256-68f-lpl15-tdtm10")
KIND = "stdit.pair"
SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
TERMS = {"fixed": "the same at every size", "bytes": "with the bytes moved"}
GROUPS = {
    "STDiT at 192x192": lambda row: row.endswith("192.stdit"),
    "speed-ups of TDTM": lambda row: row.startswith("tdtm.speed_up"),
    "speed-ups of LPL": lambda row: row.startswith("lpl.speed_up"),
}
Errors = dict[str, list[float]]


def main() -> None:
    rows = read_published(*(ROOT / f"traces/published/{name}.toml" for name in ("on_device_sora", "core_ml")))
    shipped = find_device("iphone-15-pro")
    device = without_traffic(shipped)
    found = {(term, share): errors(rows, with_term(device, term, share)) for term in TERMS for share in SHARES}
    (pair,) = {block.kind: block for block in pairs(FITTED_AT)}.values()
    share = measured_traffic_s(shipped.measured[KIND], shipped) / execute_cost(pair, shipped).seconds
    text = report(found, share, errors(rows, shipped))
    print(text)
    write_text(RESULTS / "phone_terms.md", text)
    draw(found, RESULTS / "phone_terms.png")


def without_traffic(device: DeviceProfile) -> DeviceProfile:
    """The device with no bandwidth of its memory, so that measured executions scale with arithmetic alone."""
    executor = device.executor.model_copy(update={"memory_bandwidth_bytes_per_s": None})
    return device.model_copy(update={"executor": executor})


def with_term(device: DeviceProfile, term: str, share: float) -> DeviceProfile:
    """The device with a measurement for each size of a pair, of whose fitted time a share goes with the term."""
    (at,) = {block.kind: block for block in pairs(FITTED_AT)}.values()
    measured = {}
    for block in [block for name in OTHERS for block in pairs(name)]:
        more = 1.0 if term == "fixed" else block.bytes_moved / at.bytes_moved
        exec_s = (device.measured[KIND].exec_s or 0.0) * ((1 - share) * block.flops / at.flops + share * more)
        known = device.measured[KIND].model_dump()
        measured[block.kind] = Measured.model_validate(known | {"exec_s": exec_s, "flops": block.flops})
    return device.model_copy(update={"measured": {**device.measured, **measured}})


def pairs(workload: str) -> list[Block]:
    """The pairs of a workload, one of each kind."""
    blocks = (block for stage in find_workload(workload).stages for block in stage.blocks)
    return list({block.kind: block for block in blocks if block.kind.startswith(KIND)}.values())


def errors(rows: Rows, device: DeviceProfile) -> Errors:
    """The signed errors of each group's rows."""
    found: Errors = {name: [] for name in GROUPS}
    for comparison in compare_published(rows, device):
        for name, belongs in GROUPS.items():
            if comparison.role == "predicted" and comparison.error is not None and belongs(comparison.row.id):
                found[name].append(comparison.error)
    return found


def report(found: dict[tuple[str, float], Errors], share: float, shipped: Errors) -> str:
    """The table, its last row of the profile as it is shipped."""
    lines = [
        "# A term beside arithmetic for the phone",
        "",
        f"Command: `.venv/bin/python experiments/phone_terms.py`. Date: {datetime.now(UTC).date()}. Simulated, beside "
        "what others published; nothing here was run on a phone.",
        "",
        "Mean signed error, and mean magnitude, of rows that the profile is not fitted to. A share of a pair's fitted "
        "execution at 256x256 goes with the term, the rest with arithmetic. The share of the last row is what a pair's "
        "bytes take at the memory's bandwidth; there the decoder's parts have one too.",
        "",
        f"| term | share | {' | '.join(GROUPS)} | all three |",
        "|---|---|---|---|---|---|",
    ]
    for (term, part), groups in found.items():
        lines.append(row(TERMS[term], part, groups))
    lines.append(row("with the bytes moved, as the profile has it", share, shipped))
    return "\n".join(lines) + "\n"


def row(words: str, share: float, groups: Errors) -> str:
    cells = [cell(values) for values in (*groups.values(), [e for values in groups.values() for e in values])]
    return f"| {words} | {share:.1%} | {' | '.join(cells)} |"


def cell(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):+.1%}, {statistics.fmean(map(abs, values)):.1%}"


def draw(found: dict[tuple[str, float], Errors], path: Path) -> None:
    """The mean signed error of each group against the share, for each term."""
    figure, axes = plt.subplots(1, len(TERMS), figsize=(11, 4.5), sharey=True, constrained_layout=True)
    for axis, (term, words) in zip(axes, TERMS.items(), strict=True):
        for group in GROUPS:
            axis.plot(
                [100 * share for share in SHARES],
                [100 * statistics.fmean(found[term, share][group]) for share in SHARES],
                "o-",
                label=group,
            )
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_title(f"a share of the execution goes {words}" if term == "bytes" else f"a share is {words}")
        axis.set_xlabel("share of a pair's execution at 256x256 (%)")
        axis.legend()
    axes[0].set_ylabel("mean error of the prediction (%)")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


if __name__ == "__main__":
    main()
