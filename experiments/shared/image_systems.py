"""The systems that bench_text_to_image.py compares, each run as a process of its own.

    python image_systems.py ours SIDE STORE SCRATCH STEPS THREADS
    python image_systems.py accelerate|diffusers|mapped|whole SIDE STORE COPIES STEPS THREADS

The UNet of Stable Diffusion v1.5 at SIDE x SIDE pixels, both halves of the guidance in one batch, DDIM. Prints one line
of JSON: the seconds of every step, and the mean magnitude of what came out. Loading libraries and building modules is
not timed; accelerate reads what it keeps while it builds, `whole` all weights.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from cidl_sim.blocks.definition import TORCH_DTYPES, BlockDefinition
from cidl_sim.core.plan import read_plan
from cidl_sim.core.trace import header_for
from cidl_sim.core.workload import Stage, Visit, Workload, read_workload
from cidl_sim.executor.memory_limit import charged_to_this_process, prepare_memory
from cidl_sim.executor.runtime import Limits, Runtime
from cidl_sim.executor.store import BlockStore
from cidl_sim.executor.torch_backend import TorchBackend
from cidl_sim.pipelines.catalog import workload_of
from cidl_sim.pipelines.model_store import distinct_blocks
from cidl_sim.pipelines.stable_diffusion.architectures import SD_V1_5
from cidl_sim.pipelines.stable_diffusion.program import TextToImage
from cidl_sim.pipelines.stable_diffusion.prompt import encode_texts
from cidl_sim.pipelines.stable_diffusion.settings import ImageSettings
from cidl_sim.pipelines.stable_diffusion.stages import stage_definitions
from cidl_sim.sampling.latents import guided_batch, initial_noise
from cidl_sim.sampling.samplers import make_sampler

COMPETITORS = {
    "accelerate": "accelerate, disk offload",
    "diffusers": "diffusers, group offload to disk",
    "mapped": "memory-mapped",
    "whole": "whole model",
}
PART = "unet"
# accelerate may keep so much in memory beside the module that runs. With more the kernel kills it.
RESIDENT_BYTES = 200_000_000
TOKENS = 77


def settings_of(side: int, dtype: str, steps: int) -> ImageSettings:
    """A denoising step a pass."""
    return ImageSettings.model_validate(
        {"height": side, "width": side, "steps": steps, "sampler": "ddim", "dtype": dtype}
    )


def workload_for(side: int, dtype: str, steps: int) -> Workload:
    """So many denoising steps, and nothing before or after them."""
    stage = next(s for s in workload_of(SD_V1_5, settings_of(side, dtype, steps)).stages if s.group == "denoiser")
    return Workload(
        name=f"unet-{side}-{dtype}-{steps}-steps",
        settings={"pipeline": "stable_diffusion"},
        stages=(Stage(name=stage.name, group=stage.group, rounds=steps, blocks=stage.blocks),),
    )


def text() -> Tensor:
    """States of the prompt and of what the image is to be unlike, (2, 77, 768): the same for every system."""
    return torch.randn(2, TOKENS, SD_V1_5.unet.context, generator=torch.Generator().manual_seed(0))


def noise(side: int) -> Tensor:
    """The latent that denoising begins with."""
    return initial_noise((1, SD_V1_5.unet.latent_channels, side // 8, side // 8), 0)


def blocks_of(dtype: str) -> list[BlockDefinition]:
    """The blocks of the UNet."""
    return [block for block in distinct_blocks(SD_V1_5, dtype) if block.checkpoint == PART]  # type: ignore[arg-type]


# Ours


def ours(side: int, store_folder: Path, scratch: Path, steps: int) -> tuple[list[float], Tensor]:
    """Seconds of each step of the plan in `scratch` on the real executor, and the latent."""
    store = BlockStore.open(store_folder)
    plan, workload = read_plan(scratch / "plan.json"), read_workload(scratch / "workload.json")
    settings = settings_of(side, store.index.dtype, steps)
    stages = [stage for stage in stage_definitions(SD_V1_5, settings) if stage.group == "denoiser"]
    program = TextToImage(workload, SD_V1_5, settings, encode_texts(["", ""], SD_V1_5, None), 0, guidance=7.5)
    states = text().to(TORCH_DTYPES[settings.dtype])
    given = {"z": noise(side), "text.0.0": states[:1], "text.0.1": states[1:]}
    program.restore((given, {"evaluations": 0}))
    ended: list[float] = []

    def note(visit: Visit) -> None:
        if visit.position == len(workload.stages[0].blocks) - 1:
            ended.append(time.perf_counter())

    prepare_memory(charged_to_this_process(), plan.memory_limit_bytes)
    backend = TorchBackend(store, stages, plan.memory_limit_bytes - plan.baseline_bytes, program.token_ids)
    runtime = Runtime(workload, plan, Limits(plan.memory_limit_bytes, plan.baseline_bytes), backend)
    began = time.perf_counter()
    runtime.run(program, note)
    backend.close()
    header = header_for(workload, plan, origin="torch-cpu", enforced_by="accounting", clock="perf_counter")
    runtime.recorder.finish(header).write(scratch / "trace.json")
    return [b - a for a, b in pairwise([began, *ended])], program.state()[0]["z"]


# The others


def empty_unet(dtype: torch.dtype) -> Any:
    """The diffusers library's UNet without weights; its defaults are Stable Diffusion v1's."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768).to(dtype).eval()


def published(store: BlockStore) -> dict[str, Tensor]:
    """All tensors, views of mapped files, by the network's own names."""
    return {
        block.published_key(name): tensor
        for block in blocks_of(store.index.dtype)
        for name, tensor in load_file(store.path(block.weights)).items()
    }


def mapped(store: BlockStore) -> Any:
    """Every tensor a view of a mapped file; the page cache decides what stays."""
    unet = empty_unet(TORCH_DTYPES[store.index.dtype])
    unet.load_state_dict(published(store), assign=True)
    return unet


def whole(store: BlockStore) -> Any:
    """The network in memory, as swapping whole models has it."""
    unet = empty_unet(TORCH_DTYPES[store.index.dtype])
    unet.load_state_dict({key: tensor.clone() for key, tensor in published(store).items()}, assign=True)
    return unet


def modules_of(unet: Any) -> dict[str, int]:
    """The modules that are offloaded one by one, with their bytes: residual blocks, transformers, samplers, ends."""
    found = {}
    for name, module in unet.named_modules():
        is_layer = len(name.split(".")) == (3 if name.startswith("mid_block") else 4)
        if is_layer or name in ("conv_in", "time_embedding", "conv_norm_out", "conv_out"):
            found[name] = sum(t.numel() * t.element_size() for t in module.parameters())
    return found


def accelerate_places(unet: Any) -> dict[str, str]:
    """Where each module's weights are: the small ones in memory, then as many of the others as fit."""
    left, places = RESIDENT_BYTES, {}
    for name, size in sorted(modules_of(unet).items(), key=lambda item: item[1]):
        places[name] = "cpu" if size <= left else "disk"
        left -= size if size <= left else 0
    return places


def accelerated(store: BlockStore, offload: Path) -> Any:
    """Disk offload of accelerate."""
    from accelerate import dispatch_model

    unet = empty_unet(TORCH_DTYPES[store.index.dtype])
    places, tensors = accelerate_places(unet), published(store)
    resident = tuple(f"{name}." for name, place in places.items() if place == "cpu")
    state = {key: tensor.clone() for key, tensor in tensors.items() if key.startswith(resident)}
    del tensors
    unet.load_state_dict(state, strict=False, assign=True)
    return dispatch_model(unet, device_map=places, main_device="cpu", offload_dir=str(offload), force_hooks=True)


def grouped(unet: Any, folder: Path) -> Any:
    """Group offloading of diffusers, to disk, a layer a group: levels of a UNet do not fit; streams need a GPU."""
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(
        unet,
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="leaf_level",
        offload_to_disk_path=str(folder),
    )
    return unet


def prepare_copies(store: BlockStore, folder: Path) -> None:
    """The same weights as accelerate's offload folder and as diffusers' groups, unless they are there."""
    from accelerate.utils import offload_state_dict

    unet = empty_unet(TORCH_DTYPES[store.index.dtype])
    if not (folder / "offload/index.json").exists():
        on_disk = tuple(f"{name}." for name, place in accelerate_places(unet).items() if place == "disk")
        state = {key: tensor for key, tensor in published(store).items() if key.startswith(on_disk)}
        offload_state_dict(str(folder / "offload"), state)
    if not (folder / "groups").exists():
        grouped(mapped(store), folder / "groups")


def timed(unet: Any, side: int, dtype: torch.dtype, steps: int) -> tuple[list[float], Tensor]:
    """Seconds of each step, and the latent."""
    sampler = make_sampler("ddim", steps, SD_V1_5.prediction)
    z, states, ended = noise(side), text().to(dtype), [time.perf_counter()]
    with torch.no_grad():
        for i, t in enumerate(sampler.times):
            output = unet(sampler.asked(i, z).repeat(2, 1, 1, 1).to(dtype), t, states).sample.float()
            z = sampler.step(i, z, guided_batch(output, 7.5), noise_free)
            ended.append(time.perf_counter())
    return [b - a for a, b in pairwise(ended)], z


def noise_free() -> Tensor:
    """DDIM asks for no noise."""
    raise NotImplementedError


def others(system: str, side: int, store: BlockStore, copies: Path, steps: int) -> tuple[list[float], Tensor]:
    """As `timed`, of a competitor."""
    dtype = TORCH_DTYPES[store.index.dtype]
    make: dict[str, Callable[[], Any]] = {
        "accelerate": lambda: accelerated(store, copies / "offload"),
        "mapped": lambda: mapped(store),
        "whole": lambda: whole(store),
        "diffusers": lambda: grouped(empty_unet(dtype).to_empty(device="cpu"), copies / "groups"),
    }
    return timed(make[system](), side, dtype, steps)


def main() -> None:
    system, side, store_folder, folder, steps, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    if system == "ours":
        found, result = ours(int(side), Path(store_folder), Path(folder), int(steps))
    else:
        found, result = others(system, int(side), BlockStore.open(Path(store_folder)), Path(folder), int(steps))
    print(json.dumps({"passes_s": found, "magnitude": result.float().abs().mean().item()}))


if __name__ == "__main__":
    main()
