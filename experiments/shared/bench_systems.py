"""The systems that bench_executor.py compares, each run as a process of its own.

    python bench_systems.py ours MODEL STORE SCRATCH PASSES THREADS
    python bench_systems.py accelerate|diffusers|mapped MODEL STORE COPIES PASSES THREADS

MODEL is t5 or stdit. Prints one line of JSON: the seconds of every pass, and the mean magnitude of what came out.
Loading libraries and building modules is not timed; accelerate reads the blocks that it keeps while it builds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

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
from cidl_sim.models.stdit3 import STDiT3, STDiT3Part1, final_drift
from cidl_sim.pipelines.catalog import workload_of
from cidl_sim.pipelines.model_store import distinct_blocks
from cidl_sim.pipelines.open_sora.program import TextToVideo
from cidl_sim.pipelines.open_sora.settings import FRAMES_PER_SECOND, OPENSORA_V1_2, VideoSettings
from cidl_sim.pipelines.open_sora.stages import geometry_of, stage_definitions
from cidl_sim.sampling import rectified_flow as flow
from cidl_sim.sampling.latents import guided_batch, initial_noise

Model = Literal["t5", "stdit"]

COMPETITORS = {
    "accelerate": "accelerate, disk offload",
    "diffusers": "diffusers, group offload to disk",
    "mapped": "memory-mapped",
}
TOKENS, TEXT_TOKENS = 300, 50
# accelerate may keep so much in memory: as many blocks as fit beside another's transient copy. With more the kernel
# kills it.
RESIDENT_BYTES: dict[str, int] = {"t5": 1_950_000_000, "stdit": 1_600_000_000}


def settings_of(dtype: str, passes: int) -> VideoSettings:
    """192x192, 17 frames; a denoising step a pass."""
    return VideoSettings(height=192, width=192, frames=17, steps=passes, lpl="off", dtype=dtype)  # type: ignore[arg-type]


def workload_for(model: Model, dtype: str, passes: int) -> Workload:
    """So many passes of the text encoder, or denoising steps."""
    settings = settings_of(dtype, passes)
    group = "text_encoder" if model == "t5" else "denoiser"
    stage = next(s for s in workload_of(OPENSORA_V1_2, settings).stages if s.group == group)
    return Workload(
        name=f"{model}-{dtype}-{passes}-passes",
        stages=(Stage(name=stage.name, group=group, rounds=passes, blocks=stage.blocks),),
    )


def token_ids() -> Tensor:
    """The same tokens for every system."""
    return torch.randint(0, OPENSORA_V1_2.t5.vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(0))


def text() -> Tensor:
    """What the denoiser attends to, (1, 50, 4096): the same for every system."""
    return torch.randn(1, TEXT_TOKENS, OPENSORA_V1_2.t5.d_model, generator=torch.Generator().manual_seed(0))


def noise(settings: VideoSettings) -> Tensor:
    """The latent that denoising begins with."""
    return initial_noise((1, OPENSORA_V1_2.stdit.in_channels, *settings.latent_shape), 0)


# Ours


def ours(model: Model, store_folder: Path, scratch: Path, passes: int) -> tuple[list[float], Tensor]:
    """Seconds of each pass of the plan in `scratch` on the real executor, and the result."""
    store = BlockStore.open(store_folder)
    plan, workload = read_plan(scratch / "plan.json"), read_workload(scratch / "workload.json")
    settings = settings_of(store.index.dtype, passes)
    group = workload.stages[0].group
    stages = [s for s in stage_definitions(OPENSORA_V1_2, settings, TEXT_TOKENS) if s.group == group]
    tokens = token_ids(), torch.ones(1, TOKENS)
    program = TextToVideo(workload, OPENSORA_V1_2, settings, tokens, seed=0)
    if model == "stdit":
        dtype = TORCH_DTYPES[settings.dtype]
        program.restore(({"z": noise(settings), "text": text().to(dtype)}, {"evaluations": 0}))
    ended: list[float] = []

    def note(visit: Visit) -> None:
        if visit.position == len(workload.stages[0].blocks) - 1:
            ended.append(time.perf_counter())

    prepare_memory(charged_to_this_process(), plan.memory_limit_bytes)
    backend = TorchBackend(store, stages, plan.memory_limit_bytes - plan.baseline_bytes, tokens[0])
    runtime = Runtime(workload, plan, Limits(plan.memory_limit_bytes, plan.baseline_bytes), backend)
    began = time.perf_counter()
    runtime.run(program, note)
    backend.close()
    header = header_for(workload, plan, origin="torch-cpu", enforced_by="accounting", clock="perf_counter")
    runtime.recorder.finish(header).write(scratch / "trace.json")
    result = program.state()[0]["text" if model == "t5" else "z"]
    return [b - a for a, b in pairwise([began, *ended])], result


# The others


class Denoiser(STDiT3):
    """STDiT3 as one call, so that hooks on it and its blocks see everything that is used."""

    def forward(self, z: Tensor, timestep: Tensor, fps: Tensor, text: Tensor) -> Tensor:  # type: ignore[override]
        """As `STDiT3.drift`."""
        x, t, t_mlp, y, frequencies = STDiT3Part1.forward(self, z, timestep, fps, text)
        for pair in zip(self.spatial_blocks, self.temporal_blocks, strict=True):
            for block in pair:
                x = block(x, y, t_mlp, frequencies, self.geometry.tokens, merged=False)
        return final_drift(self.final_layer, x, t, self.geometry, self.sizes)


def empty_model(model: Model, dtype: torch.dtype) -> Any:
    """The T5 encoder of transformers, or STDiT3 as one module, without weights."""
    with torch.device("meta"):
        if model == "stdit":
            sizes = OPENSORA_V1_2
            return Denoiser(sizes.stdit, sizes.t5.d_model, geometry_of(settings_of("fp32", 1))).to(dtype).eval()
        from transformers import T5Config, T5EncoderModel

        t5 = OPENSORA_V1_2.t5
        config = T5Config(
            vocab_size=t5.vocabulary, d_model=t5.d_model, d_kv=t5.d_kv, d_ff=t5.d_ff, num_heads=t5.heads,
            num_layers=t5.layers, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
        )  # fmt: skip
        return T5EncoderModel(config).to(dtype).eval()


def blocks_of(model: Model, dtype: str) -> list[BlockDefinition]:
    """The blocks of one network, each with how the published checkpoint names its tensors."""
    return [b for b in distinct_blocks(OPENSORA_V1_2, dtype) if b.checkpoint == model]  # type: ignore[arg-type]


def published(store: BlockStore, block: BlockDefinition) -> dict[str, Tensor]:
    """A block's tensors, views of its mapped file, by the network's own names."""
    tensors = load_file(store.path(block.weights))
    state = {block.published_key(name): tensor for name, tensor in tensors.items()}
    if "shared.weight" in state:
        state["encoder.embed_tokens.weight"] = state["shared.weight"]
    return state


def prepare_copies(model: Model, store: BlockStore, folder: Path) -> None:
    """The same weights as accelerate's offload folder and as diffusers' groups, unless they are there."""
    from accelerate.utils import offload_state_dict

    if not (folder / "offload/index.json").exists():
        on_disk = set(accelerate_places(model, store)) - set(resident_blocks(model, store))
        state: dict[str, Tensor] = {}
        for block in blocks_of(model, store.index.dtype):
            if block.weights in on_disk:
                state |= published(store, block)
        offload_state_dict(str(folder / "offload"), state)
    if not (folder / "groups").exists():
        grouped(model, mapped(model, store), folder / "groups")


def mapped(model: Model, store: BlockStore) -> Any:
    """Every tensor a view of a mapped file; the page cache decides what stays."""
    network = empty_model(model, TORCH_DTYPES[store.index.dtype])
    state: dict[str, Tensor] = {}
    for block in blocks_of(model, store.index.dtype):
        state |= published(store, block)
    network.load_state_dict({name: state[name] for name in network.state_dict()}, assign=True)
    return network


def accelerate_places(model: Model, store: BlockStore) -> dict[str, list[str]]:
    """The modules that each block's weights belong to."""
    places: dict[str, list[str]] = {}
    for block in blocks_of(model, store.index.dtype):
        name = block.weights.partition(".")[2]
        if not name.isdigit():
            places[block.weights] = sorted({key.partition(".")[0] for key in _keys(store, block)} - {"encoder"})
        elif model == "t5":
            places[block.weights] = [f"encoder.block.{int(name)}"]
        else:
            places[block.weights] = [f"spatial_blocks.{int(name)}", f"temporal_blocks.{int(name)}"]
    if model == "t5":
        places["t5.embedding"] = ["shared", "encoder.embed_tokens"]
        places["t5.final_norm"] = ["encoder.final_layer_norm"]
    return places


def _keys(store: BlockStore, block: BlockDefinition) -> list[str]:
    return [block.published_key(tensor.name) for tensor in store.layout(block.weights)]


def resident_blocks(model: Model, store: BlockStore) -> list[str]:
    """What accelerate keeps in memory: everything but the repeated blocks, then as many of those as fit."""
    blocks = [b.weights for b in blocks_of(model, store.index.dtype)]
    repeated = [w for w in blocks if w.partition(".")[2].isdigit()]
    kept = [w for w in blocks if w not in repeated]
    left = RESIDENT_BYTES[model] - sum(store.entry(w).data_bytes for w in kept)
    return kept + repeated[: left // max(store.entry(w).data_bytes for w in repeated)]


def accelerated(model: Model, store: BlockStore, offload: Path) -> Any:
    """Disk offload of accelerate; the embeddings and the first blocks are kept in memory."""
    from accelerate import dispatch_model

    network = empty_model(model, TORCH_DTYPES[store.index.dtype])
    resident = resident_blocks(model, store)
    places = {
        module: "cpu" if weights in resident else "disk"
        for weights, modules in accelerate_places(model, store).items()
        for module in modules
    }
    for block in blocks_of(model, store.index.dtype):
        if block.weights in resident:
            state = {name: tensor.clone() for name, tensor in published(store, block).items()}
            if "shared.weight" in state:
                state["encoder.embed_tokens.weight"] = state["shared.weight"]
            network.load_state_dict(state, strict=False, assign=True)
    return dispatch_model(network, device_map=places, main_device="cpu", offload_dir=str(offload), force_hooks=True)


def grouped(model: Model, network: Any, folder: Path) -> Any:
    """Group offloading of diffusers, to disk, a block a group; streams need an accelerator."""
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(
        network.encoder if model == "t5" else network,
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        offload_to_disk_path=str(folder),
    )
    return network


def results_of(model: Model, network: Any, dtype: torch.dtype, passes: int) -> Iterator[Tensor]:
    """What each pass gives; a denoising step moves the latent that the next one begins with."""
    if model == "t5":
        ids, mask = token_ids(), torch.ones(1, TOKENS, dtype=torch.int64)
        for _ in range(passes):
            yield network(input_ids=ids, attention_mask=mask).last_hidden_state
        return
    settings = settings_of("fp32", passes)
    times = flow.timesteps(passes, flow.time_ratio(settings.height, settings.width, settings.frames))
    fps, latent = torch.tensor([float(FRAMES_PER_SECOND)]), noise(settings)
    for i in range(passes):
        drift = network(latent, torch.tensor([times[i]]), fps, text().to(dtype))
        latent = flow.moved(latent, guided_batch(drift, OPENSORA_V1_2.guidance), flow.step_length(times, i))
        yield latent


def timed(model: Model, network: Any, dtype: torch.dtype, passes: int) -> tuple[list[float], Tensor]:
    """Seconds of each pass, and the result."""
    ended, result = [time.perf_counter()], torch.empty(0)
    with torch.no_grad():
        for result in results_of(model, network, dtype, passes):  # noqa: B007
            ended.append(time.perf_counter())
    return [b - a for a, b in pairwise(ended)], result


def main() -> None:
    system, model, store_folder, folder, passes, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    if system == "ours":
        found, result = ours(model, Path(store_folder), Path(folder), int(passes))  # type: ignore[arg-type]
    else:
        store, copies = BlockStore.open(Path(store_folder)), Path(folder)
        found, result = others(system, model, store, copies, int(passes))  # type: ignore[arg-type]
    print(json.dumps({"passes_s": found, "magnitude": result.float().abs().mean().item()}))


def others(system: str, model: Model, store: BlockStore, copies: Path, passes: int) -> tuple[list[float], Tensor]:
    """As `timed`, of a competitor that finds nothing of its files in memory."""
    dtype = TORCH_DTYPES[store.index.dtype]
    make: dict[str, Callable[[], Any]] = {
        "accelerate": lambda: accelerated(model, store, copies / "offload"),
        "mapped": lambda: mapped(model, store),
        "diffusers": lambda: grouped(model, empty_model(model, dtype).to_empty(device="cpu"), copies / "groups"),
    }
    for folder in (copies, store.root):
        drop_page_cache(folder)
    return timed(model, make[system](), dtype, passes)


def drop_page_cache(folder: Path) -> None:
    """Every system starts with nothing of its files in memory."""
    for file in (path for path in folder.rglob("*") if path.is_file()):
        fd = os.open(file, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


if __name__ == "__main__":
    main()
