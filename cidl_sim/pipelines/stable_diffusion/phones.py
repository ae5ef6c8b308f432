"""What text-to-image networks cost on phones, fitted from a few published rows; every other row is predicted.

Latency does not follow multiply-adds: Stable Diffusion's UNet takes five times as long for each as SnapFusion's. What
they differ in is the transformers at 64x64, whose scores are matrices of 268 MB. So a phone has two rates: that of a
UNet without them, and one for these five blocks; and a rate for the decoder and one for the text encoder. Four rows
determine them. A phone of which one row is known is another one slowed down as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable

from cidl_sim.core.costs import execute_cost
from cidl_sim.core.device import DeviceProfile, Executor, Loader, Measured
from cidl_sim.core.workload import Block, Workload
from cidl_sim.devices.published import Rows, row_of
from cidl_sim.pipelines.named import named_in
from cidl_sim.pipelines.stable_diffusion.family import STABLE_DIFFUSION

# By phone the rows of text encoder, a UNet without transformers at 64x64, its decoder, and Stable Diffusion's UNet,
# each with the model that it is of.
FITTED = {
    "iPhone 14 Pro": {
        "clip": ("snapfusion.14_pro.text", "snapfusion"),
        "unet": ("snapfusion.14_pro.unet", "snapfusion"),
        "image_decoder": ("snapfusion.14_pro.decoder", "snapfusion"),
        "attention": ("sd.14_pro.unet", "sd-v1.5"),
    },
    "iPhone 15 Pro": {
        "clip": ("mobile.15_pro.text", "sd-v1.5"),
        "unet": ("mobile.15_pro.md.unet", "mobile-diffusion"),
        "image_decoder": ("mobile.15_pro.sd.decoder", "sd-v1.5"),
        "attention": ("mobile.15_pro.sd.unet", "sd-v1.5"),
    },
}
# Phones that are the iPhone 14 Pro slowed down, by the one row that says how much.
SLOWED = {"iPhone 13 Pro Max": "snapfusion.13_pro_max.unet", "iPhone 12 Pro Max": "snapfusion.12_pro_max.unet"}
# What the text encoder's rate is not about: no arithmetic, so an ancestor's measurement would count whole.
FREE = ("clip.embedding", "clip.positions", "clip.norm")
# A step is priced for one latent, whatever the publication's holds: only ratios count.
SETTINGS = "512x512-1s-ddim-fp16-cfgoff"


def workload_of(model: str, settings: str = SETTINGS) -> Workload:
    """A model's workload, for one image in one step by default."""
    return named_in(STABLE_DIFFUSION, f"{model}-{settings}")


def fitted_device(phone: str, rows: Rows) -> DeviceProfile:
    """A profile of a phone that knows text-to-image networks alone, without loads. PublishedError: a row is missing."""
    if phone in SLOWED:
        known = fitted_device("iPhone 14 Pro", rows)
        factor = row_of(rows, SLOWED[phone]).seconds / row_of(rows, "snapfusion.14_pro.unet").seconds
        slowed = {
            kind: costs.model_copy(update={"exec_s": (costs.exec_s or 0) * factor})
            for kind, costs in known.measured.items()
        }
        return known.model_copy(update={"name": _named(phone), "measured": slowed})
    chosen = FITTED[phone]
    measured = {
        kind: _rate(_blocks(workload_of(model), kind), row_of(rows, row).seconds)
        for kind, (row, model) in chosen.items()
        if kind != "attention"
    }
    measured |= dict.fromkeys(FREE, Measured(exec_s=0.0))
    row, model = chosen["attention"]
    unet = _blocks(workload_of(model), "unet")
    special = [block for block in unet if is_large_attention(block)]
    device = _device(phone, measured)
    others_s = sum(execute_cost(block, device).seconds for block in unet if block not in special)
    # What is left of a step belongs to these blocks.
    measured[attention_kind(special[0])] = _rate(special, row_of(rows, row).seconds - others_s)
    return _device(phone, measured)


def seconds_of(workload: Workload, device: DeviceProfile) -> dict[str, float]:
    """Of each group of a workload the seconds that one round of its stages executes, loads and waits left out."""
    found: dict[str, float] = {}
    for stage in workload.stages:
        seconds = sum(execute_cost(block, device).seconds for block in stage.blocks)
        found[stage.group] = found.get(stage.group, 0.0) + seconds
    return found


def is_large_attention(block: Block) -> bool:
    """Whether a block is a transformer with self-attention at 64x64 or more."""
    return block.kind.startswith("unet.transformer.1f.") and int(block.kind.rpartition("x")[2]) >= 64


def attention_kind(block: Block) -> str:
    """The kind of a transformer, whatever its dtype, its shape, and what changes the resolution after it."""
    head, _, _ = block.kind.partition(".fp16")
    return head.removesuffix(".down").removesuffix(".up")


def _blocks(workload: Workload, group: str) -> list[Block]:
    return [block for stage in workload.stages for block in stage.blocks if block.kind.startswith(f"{group}.")]


def _rate(blocks: Iterable[Block], seconds: float) -> Measured:
    return Measured(exec_s=seconds, flops=sum(block.flops for block in blocks))


def _device(phone: str, measured: dict[str, Measured]) -> DeviceProfile:
    # Nothing here loads; the profile needs a rate all the same.
    return DeviceProfile(
        name=_named(phone),
        memory_limit_bytes=3_300_000_000,
        baseline_bytes=150_000_000,
        loader=Loader(bandwidth_bytes_per_s=1e9),
        executor=Executor(flops_per_s=1e12),
        measured=measured,
    )


def _named(phone: str) -> str:
    return phone.lower().replace(" ", "-") + "-images"
