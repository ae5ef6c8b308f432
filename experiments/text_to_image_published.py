"""Published times of text-to-image models on phones beside what a fit to a few of them predicts.

    .venv/bin/python experiments/text_to_image_published.py

Four rows determine a phone's rates (`cidl_sim.pipelines.stable_diffusion.phones`), one row how much slower another one
is; the rest is predicted and every error printed. Execution alone: these systems hold their networks in memory. Writes
experiments/results/text_to_image_published.md and .png. Pure simulation, a few seconds.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt

from cidl_sim.blocks.definition import StageDefinition
from cidl_sim.blocks.measure import measured_stages
from cidl_sim.core.costs import execute_cost
from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.workload import Block
from cidl_sim.devices.published import PublishedRow, Rows, read_published
from cidl_sim.pipelines.stable_diffusion import networks
from cidl_sim.pipelines.stable_diffusion.architectures import SD_V1_5
from cidl_sim.pipelines.stable_diffusion.changes import bk_sdm
from cidl_sim.pipelines.stable_diffusion.phones import (
    FITTED,
    SLOWED,
    fitted_device,
    is_large_attention,
    seconds_of,
    workload_of,
)

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments/results"
# Of what Apple's packages weigh: 6 bits everywhere; SDXL's UNet in 4.04 bits, the rest in 16.
WEIGHT_BYTES = {
    "sd-v2.1-base": (865_910_724 + 340_387_840 + 49_490_199) * 6 / 8,
    "sdxl": 2_567_463_684 * 4.04 / 8 + (123_060_480 + 694_659_840 + 49_490_199) * 2,
}
# What adds up to fitted rows, or is a multiple of them.
SUMS = {"snapfusion.14_pro.total", "mobile.14_pro.snapfusion", "mobile.15_pro.ufogen"}
PARTS = {"text": "text_encoder", "unet": "denoiser", "decoder": "decoder"}


@dataclass(frozen=True)
class Compared:
    """A published row beside a prediction, in the row's own unit. `how` says what it comes from.

    `loads_s`: of a system that loads between its networks, which nothing here predicts, the seconds that are left.
    """

    row: PublishedRow
    predicted: float
    how: str
    fitted: bool = False
    loads_s: float | None = None

    @property
    def error(self) -> float:
        """By how much the prediction is above the published figure."""
        return self.predicted / self.row.value - 1


def main() -> None:
    rows = read_published(ROOT / "traces/published/text_to_image.toml")
    compared = [*phones(rows), *ratios(rows), *apple(rows)]
    guesses = others(rows)
    report = text(rows, compared, guesses)
    print(report)
    (RESULTS / "text_to_image_published.md").write_text(report)
    draw([one for one in compared if one.loads_s is None], RESULTS / "text_to_image_published.png")


def of_model(row: PublishedRow, device: DeviceProfile, how: str, part: str, *, fitted: bool = False) -> Compared:
    """One network once, or all of them with as many steps as the row says."""
    groups = seconds_of(workload_of(str(row.conditions.model)), device)
    if part != "total":
        seconds = groups[PARTS[part]]
    else:
        seconds = groups["text_encoder"] + groups["decoder"] + (row.conditions.steps or 1) * groups["denoiser"]
    return Compared(row, seconds * (1000 if row.unit == "ms" else 1), how, fitted)


def phones(rows: Rows) -> list[Compared]:
    """The phones that have rates of their own, and those that are another one slowed down."""
    own = {name: fitted_device(name, rows) for name in (*FITTED, *SLOWED)}
    fitted = {row for chosen in FITTED.values() for row, _ in chosen.values()} | set(SLOWED.values()) | SUMS
    found = []
    for row in rows.values():
        device = own.get(row.device)
        if device is None or row.claim or not row.is_time or row.id.startswith("apple"):
            continue
        part = row.id.rpartition(".")[2]
        how = f"{row.device}'s own rates" if row.device in FITTED else "the iPhone 14 Pro's rates, slowed down"
        how = "a sum of fitted rows" if row.id in SUMS else how
        found.append(of_model(row, device, how, part if part in PARTS else "total", fitted=row.id in fitted))
    claim = rows["sd.15_pro.50_steps"]
    return [*found, of_model(claim, own["iPhone 15 Pro"], "iPhone 15 Pro's own rates", "total")]


def ratios(rows: Rows) -> list[Compared]:
    """What the talk calls 7.4, 46 and 1.6 times."""
    fourteen, fifteen = (fitted_device(name, rows) for name in FITTED)
    large, small = (seconds_of(workload_of(name), fourteen) for name in ("sd-v1.5", "snapfusion"))
    mobile = seconds_of(workload_of("mobile-diffusion"), fifteen)

    def image(parts: dict[str, float], steps: int) -> float:
        return parts["text_encoder"] + steps * parts["denoiser"] + parts["decoder"]

    step = large["denoiser"] / small["denoiser"]
    return [
        Compared(rows["ratio.step"], step, "both rows are fitted", fitted=True),
        Compared(rows["ratio.denoising"], step * 50 / 8, "a multiple of it", fitted=True),
        Compared(rows["ratio.mobile"], image(small, 8) / image(mobile, 8), "each on its own phone"),
    ]


def others(rows: Rows) -> list[Compared]:
    """Devices of which one row gives the scale: are the transformers at 64x64 as slow there as on the iPhone 14 Pro?"""
    fourteen = fitted_device("iPhone 14 Pro", rows)
    base = seconds_of(workload_of("sd-v1.5"), fourteen)
    plain = seconds_of(workload_of("sd-v1.5"), without_special_rate(fourteen))
    found = []
    for name, rates in (("attention at 64x64 as on the iPhone 14 Pro", fourteen), ("by arithmetic alone", None)):
        device = rates or without_special_rate(fourteen)
        scale = rows["a100.sd.unet"].value / (base if rates else plain)["denoiser"]
        predicted = scale * seconds_of(workload_of("snapfusion"), device)["denoiser"]
        found.append(Compared(rows["a100.snapfusion.unet"], predicted, f"from the A100's row above, {name}"))
    for device_id in ("aihub.8gen2", "aihub.s24", "aihub.s25", "exynos2400.sd"):
        unet = rows[f"{device_id}.unet"].value
        for name, groups in (("as on the iPhone 14 Pro", base), ("by arithmetic alone", plain)):
            predicted = unet * groups["decoder"] / groups["denoiser"]
            found.append(Compared(rows[f"{device_id}.decoder"], predicted, f"from its UNet's row, {name}"))
    edge = edge_fusion()
    for name, device, groups in (
        ("as on the iPhone 14 Pro", fourteen, base),
        ("by arithmetic alone", without_special_rate(fourteen), plain),
    ):
        seconds = sum(execute_cost(block, device).seconds for block in edge)
        predicted = rows["exynos2400.sd.unet"].value * seconds / groups["denoiser"]
        how = f"from Stable Diffusion's UNet there, as BK-SDM-Tiny's, {name}"
        found.append(Compared(rows["exynos2400.edgefusion.unet"], predicted, how))
        if "alone" in name:
            found.append(Compared(rows["exynos2400.edgefusion.unet.tiled"], predicted, how))
    row = rows["qualcomm.8gen2.2023"]
    newer = 20 * 2 * rows["aihub.8gen2.unet"].value + 2 * rows["aihub.8gen2.text"].value
    predicted = (newer + rows["aihub.8gen2.decoder"].value) / 1000
    return [*found, Compared(row, predicted, "from later rows of the same chip: 20 steps, two calls each")]


def edge_fusion() -> list[Block]:
    """The blocks of EdgeFusion's UNet, which is a BK-SDM; of the published sizes the smallest is taken."""
    network = networks.denoiser(bk_sdm(SD_V1_5.unet, "tiny"), 1, 64, 64, 77, "fp16")
    stages = [StageDefinition("unet", "denoiser", 1, network.blocks(1, "fp16"))]
    return list(measured_stages(stages, stages, "fp16", lambda group: 0)[0].blocks)


def without_special_rate(device: DeviceProfile) -> DeviceProfile:
    """A phone that has one rate for all of a UNet."""
    plain = {kind: costs for kind, costs in device.measured.items() if not kind.startswith("unet.transformer")}
    return device.model_copy(update={"measured": plain})


def apple(rows: Rows) -> list[Compared]:
    """Apple's images from Apple's steps: the rest should be text encoder and decoder, at the UNet's scale."""
    fourteen = without_special_rate(fitted_device("iPhone 14 Pro", rows))
    found = []
    for family, model in (("sd", "sd-v2.1-base"), ("sdxl", "sdxl")):
        settings = "512x512" if family == "sd" else "768x768"
        groups = seconds_of(workload_of(model, f"{settings}-1s-ddim-fp16-cfgoff"), fourteen)
        for row in rows.values():
            if not (row.id.startswith(f"apple.{family}.") and row.id.endswith(".total")):
                continue
            step_s = 1 / rows[row.id.replace(".total", ".rate")].value
            # A step holds both halves of the guidance, and so does the text encoder.
            rest = step_s / (2 * groups["denoiser"]) * (2 * groups["text_encoder"] + groups["decoder"])
            reduced = row.conditions.technique == "reduceMemory"
            left = row.value - 20 * step_s - rest if reduced else None
            how = "20 of its steps, text encoder and decoder at their scale"
            found.append(Compared(row, 20 * step_s + rest, how, loads_s=left))
    return found


def text(rows: Rows, compared: list[Compared], guesses: list[Compared]) -> str:
    held = [one for one in compared if not one.fitted and not one.row.claim and one.loads_s is None]
    own = [one for one in held if not one.row.id.startswith("apple")]
    fourteen, fifteen = (fitted_device(name, rows) for name in FITTED)
    attention = sum(b.flops for s in workload_of("sd-v1.5").stages for b in s.blocks if is_large_attention(b))
    each = [
        next(m.exec_s or 0.0 for kind, m in device.measured.items() if kind.startswith("unet.transformer")) / 5 * 1e3
        for device in (fourteen, fifteen)
    ]
    known = {one.row.id for one in (*compared, *guesses)}
    left = [row for row in rows.values() if row.id not in known and not row.id.endswith((".rate", ".unet", ".text"))]
    return "\n".join(
        [
            "# Text to image: published times and predictions",
            "",
            f"Command: `.venv/bin/python experiments/text_to_image_published.py`. Date: {datetime.now(UTC).date()}; "
            f"cidl-sim {version('cidl-sim')}. Simulated, and what others published; nothing here was run on a phone or "
            "with Core ML by this project.",
            "",
            "Fitted: "
            + "; ".join(f"{phone}: {', '.join(f'`{row}`' for row, _ in own.values())}" for phone, own in FITTED.items())
            + "; "
            + "; ".join(f"{phone}: `{row}`" for phone, row in SLOWED.items())
            + ". All others are predicted.",
            "",
            f"The five transformers at 64x64, {attention / 2e9:.0f} GMAC, take {each[0]:.0f} ms each on the iPhone 14 "
            f"Pro and {each[1]:.0f} ms on the 15 Pro; at the rate of the rest of the UNet they would take "
            f"{arithmetic_ms(fourteen, attention):.0f} and {arithmetic_ms(fifteen, attention):.0f} ms.",
            "",
            f"Of {len(own)} predictions of the phones that were fitted the median error is {middle(own)}, the largest "
            f"{largest(own)}; of {len(held) - len(own)} of Apple's images without reduceMemory "
            f"{middle([one for one in held if one not in own])} and {largest([o for o in held if o not in own])}.",
            "",
            "![Predicted against published](text_to_image_published.png)",
            "",
            "| row | what | device | published | predicted | error | from |",
            "|---|---|---|---|---|---|---|",
            *(table_row(one) for one in compared if one.loads_s is None),
            "",
            "What is off, and why: MobileDiffusion's decoder, of half the channels, is slower than its arithmetic says "
            "beside the full one that the 15 Pro's rate comes from, and with it the images in one step; the iPhone 12 "
            "Pro Max is slower at UNets than at the rest, compared with the 14 Pro. Apple's images take longer than "
            "steps, text encoder and decoder: what else they hold is not printed.",
            "",
            "With reduceMemory Apple's images hold loads, which nothing here determines. What is left for them, and "
            "the bytes that a load of everything reads:",
            "",
            "| row | device | published s | steps, text encoder and decoder s | left s | weights MB | GB/s |",
            "|---|---|---|---|---|---|---|",
            *(reduced_row(one) for one in compared if one.loads_s is not None),
            "",
            "SDXL's are as slow as first loads with Core ML that others publish (0.04 to 0.13 GB/s).",
            "",
            "Are the transformers at 64x64 as slow elsewhere? From another row of the same device, once with the "
            "iPhone 14 Pro's rates and once by arithmetic alone:",
            "",
            "| row | what | device | published | predicted | error | from |",
            "|---|---|---|---|---|---|---|",
            *(table_row(one) for one in guesses),
            "",
            "What the rows say of each other:",
            "",
            *disagreements(rows),
            "",
            "Nothing here determines: "
            + "; ".join(f"`{row.id}` ({row.what}, {row.device}: {row.value:g} {row.unit})" for row in left)
            + ".",
            "",
        ]
    )


def table_row(one: Compared) -> str:
    error = "fitted" if one.fitted else f"{one.error:+.0%}"
    return (
        f"| `{one.row.id}` | {one.row.what} | {one.row.device} | {one.row.value:g} {one.row.unit} | "
        f"{one.predicted:.4g} {one.row.unit} | {error} | {one.how} |"
    )


def reduced_row(one: Compared) -> str:
    weights = WEIGHT_BYTES[str(one.row.conditions.model)]
    return (
        f"| `{one.row.id}` | {one.row.device} | {one.row.value:g} | {one.predicted:.1f} | {one.loads_s:.1f} | "
        f"{weights / 1e6:.0f} | {weights / (one.loads_s or 1.0) / 1e9:.2f} |"
    )


def middle(found: list[Compared]) -> str:
    return f"{statistics.median(abs(one.error) for one in found):.1%}"


def largest(found: list[Compared]) -> str:
    return f"{max(abs(one.error) for one in found):.0%}"


def arithmetic_ms(device: DeviceProfile, flops: float) -> float:
    """What one of the five would take at the UNet's own rate."""
    unet = device.measured["unet"]
    return (unet.exec_s or 0.0) * flops / (unet.flops or 1.0) / 5 * 1e3


def disagreements(rows: Rows) -> list[str]:
    apple_ms = 1e3 / rows["apple.sd.14_pro_max.rate"].value
    ours = rows["sd.14_pro.unet"].value * 1e3
    return [
        f"- Apple prints {apple_ms:.0f} ms a step, both halves of the guidance, for a nearly equal UNet on the chip "
        f"where the talk's baseline takes {ours:.0f} ms: {ours / apple_ms:.1f} times as long. 7.4 is against that.",
        "- SDXL: the iPhone 13 Pro Max with reduceMemory makes steps as fast as the iPad Pro (M1) without, and needs "
        f"{rows['apple.sdxl.13_pro_max.total'].value - rows['apple.sdxl.ipad_m1.total'].value:g} s longer.",
        "- Qualcomm's 15 s of 2023 and what its later rows of that chip add up to are different software.",
    ]


def draw(compared: list[Compared], path: Path) -> None:
    shown = compared
    figure, axes = plt.subplots(figsize=(10, 0.27 * len(shown) + 1.5), layout="constrained")
    for i, one in enumerate(shown):
        colour = "#1f5fa8" if one.fitted else "#8a8a8a" if one.row.claim else "#d1761c"
        axes.barh(len(shown) - i, one.error * 100, color=colour)
        if one.fitted:
            axes.plot(0, len(shown) - i, "o", color=colour, markersize=4)
    axes.set_yticks([len(shown) - i for i in range(len(shown))], [one.row.id for one in shown], fontsize=7)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("predicted above or below published, %")
    axes.set_title("Text to image on phones: predicted (bars), fitted (points), a headline without its settings (grey)")
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
