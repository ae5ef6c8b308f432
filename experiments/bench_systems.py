"""The systems that bench_executor.py compares, each run as a process of its own.

    python bench_systems.py ours STORE SCRATCH PASSES THREADS
    python bench_systems.py accelerate|diffusers|mapped COPIES PASSES THREADS

Prints one line of JSON: the seconds of every pass. Loading libraries and building modules is not timed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from cidl_sim.core.plan import read_plan
from cidl_sim.core.trace import header_for
from cidl_sim.core.workload import Visit, read_workload
from cidl_sim.diffusion.model_store import distinct_blocks
from cidl_sim.executor.backend import Call, Outcome
from cidl_sim.executor.memory_limit import charged_to_this_process, push_out_page_cache
from cidl_sim.executor.runtime import Limits, Runtime
from cidl_sim.executor.store import BlockStore
from cidl_sim.executor.torch_backend import TorchBackend
from cidl_sim.models.config import OPENSORA_V1_2, VideoSettings
from cidl_sim.models.open_sora import TORCH_DTYPES, stage_definitions
from cidl_sim.models.t5 import additive_mask

COMPETITORS = {
    "accelerate": "accelerate, disk offload",
    "diffusers": "diffusers, group offload to disk",
    "mapped": "transformers, memory-mapped",
}
TOKENS = 300
# accelerate may keep the token embedding and blocks in memory: as many as fit beside one block's transient copy.
RESIDENT_BYTES = 1_950_000_000


def token_ids() -> torch.Tensor:
    """The same tokens for every system."""
    return torch.randint(0, OPENSORA_V1_2.t5.vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(0))


# Ours


class EncoderPasses:
    """Feeds the text encoder's blocks and notes when each pass ended."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.ids = token_ids()
        self.mask = additive_mask(torch.ones(1, TOKENS), dtype)
        self.hidden = torch.empty(0)
        self.bias = torch.empty(0)
        self.ended: list[float] = []

    def run(self, visit: Visit, block: Call) -> Outcome:
        """One block."""
        with torch.no_grad():
            name = visit.block.name
            if name == "t5.embedding":
                self.hidden = block(self.ids)
            elif name == "t5.00":
                self.hidden, self.bias = block(self.hidden, self.mask)
            elif name == "t5.final_norm":
                self.hidden = block(self.hidden)
                self.ended.append(time.perf_counter())
            else:
                self.hidden = block(self.hidden, self.mask, self.bias)
        return Outcome()


def ours(store_folder: Path, scratch: Path) -> list[float]:
    """The plan in `scratch` on the real executor."""
    store = BlockStore.open(store_folder)
    plan, workload = read_plan(scratch / "plan.json"), read_workload(scratch / "workload.json")
    settings = VideoSettings(height=192, width=192, frames=17, dtype=store.index.dtype)
    stages = stage_definitions(OPENSORA_V1_2, settings, 50)[:1]
    program = EncoderPasses(TORCH_DTYPES[store.index.dtype])
    push_out_page_cache(charged_to_this_process(), plan.memory_limit_bytes)
    backend = TorchBackend(store, stages, plan.memory_limit_bytes - plan.baseline_bytes, program.ids)
    runtime = Runtime(workload, plan, Limits(plan.memory_limit_bytes, plan.baseline_bytes), backend, program)
    began = time.perf_counter()
    runtime.run()
    backend.close()
    header = header_for(workload, plan, origin="torch-cpu", enforced_by="accounting", clock="perf_counter")
    runtime.recorder.finish(header).write(scratch / "trace.json")
    times = [began, *program.ended]
    return [b - a for a, b in pairwise(times)]


# The others


def library_model(dtype: torch.dtype) -> Any:
    """The T5 encoder of transformers without weights."""
    from transformers import T5Config, T5EncoderModel

    sizes = OPENSORA_V1_2.t5
    config = T5Config(
        vocab_size=sizes.vocabulary, d_model=sizes.d_model, d_kv=sizes.d_kv, d_ff=sizes.d_ff, num_heads=sizes.heads,
        num_layers=sizes.layers, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        return T5EncoderModel(config).to(dtype).eval()


def prepare_copies(store: BlockStore, folder: Path) -> None:
    """The same weights as a Hugging Face checkpoint and as diffusers' groups, unless they are there."""
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(parents=True, exist_ok=True)
    index: dict[str, str] = {}
    for block in distinct_blocks(OPENSORA_V1_2, store.index.dtype):
        if block.checkpoint != "t5":
            continue
        shard = f"{block.weights}.safetensors"
        tensors = load_file(store.path(block.weights))
        renamed = {block.published_key(name): tensor for name, tensor in tensors.items()}
        index |= dict.fromkeys(renamed, shard)
        if not (checkpoint / shard).exists():
            save_file(renamed, checkpoint / shard, {"format": "pt"})
    total = sum((checkpoint / shard).stat().st_size for shard in set(index.values()))
    (checkpoint / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    if not (folder / "groups").exists():
        grouped(mapped(checkpoint, TORCH_DTYPES[store.index.dtype]), folder / "groups")
    if not (folder / "offload").exists():
        accelerated(checkpoint, TORCH_DTYPES[store.index.dtype])


def mapped(checkpoint: Path, dtype: torch.dtype) -> Any:
    """Every tensor a view of a mapped file; the page cache decides what stays."""
    model = library_model(dtype)
    state: dict[str, torch.Tensor] = {}
    for shard in sorted(checkpoint.glob("*.safetensors")):
        state |= load_file(shard)
    if "encoder.embed_tokens.weight" in model.state_dict():
        state["encoder.embed_tokens.weight"] = state["shared.weight"]
    model.load_state_dict(state, assign=True)
    return model


def accelerated(checkpoint: Path, dtype: torch.dtype) -> Any:
    """Disk offload of accelerate; the token embedding and the first blocks are kept in memory.

    Its own copy of the rest is written by the first call, and used as it is by later ones.
    """
    from accelerate import dispatch_model, load_checkpoint_and_dispatch

    model = library_model(dtype)
    model.tie_weights()
    block_bytes, table_bytes = (
        sum(p.numel() * p.element_size() for p in m.parameters()) for m in (model.encoder.block[1], model.shared)
    )
    kept = min(len(model.encoder.block), (RESIDENT_BYTES - table_bytes) // block_bytes)
    places = {f"encoder.block.{i}": "cpu" if i < kept else "disk" for i in range(len(model.encoder.block))}
    places |= dict.fromkeys(("shared", "encoder.embed_tokens", "encoder.final_layer_norm"), "cpu")
    offload = checkpoint.parent / "offload"
    if not (offload / "index.json").exists():
        return load_checkpoint_and_dispatch(
            model, checkpoint, device_map=places, offload_folder=str(offload), dtype=dtype
        )
    resident = ["t5.embedding", "t5.final_norm", *(f"t5.{i:02}" for i in range(kept))]
    for shard in resident:
        state = {name: tensor.clone() for name, tensor in load_file(checkpoint / f"{shard}.safetensors").items()}
        model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    return dispatch_model(model, device_map=places, main_device="cpu", offload_dir=str(offload), force_hooks=True)


def grouped(model: Any, folder: Path) -> Any:
    """Group offloading of diffusers, to disk, a block a group; streams need an accelerator."""
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(
        model.encoder,
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        offload_to_disk_path=str(folder),
    )
    return model


def timed(model: Any, passes: int) -> list[float]:
    """Seconds of each pass."""
    ids, mask = token_ids(), torch.ones(1, TOKENS, dtype=torch.int64)
    found = []
    for _ in range(passes):
        began = time.perf_counter()
        with torch.no_grad():
            model(input_ids=ids, attention_mask=mask)
        found.append(time.perf_counter() - began)
    return found


def main() -> None:
    system, folder, *rest = sys.argv[1:]
    passes, threads = int(rest[-2]), int(rest[-1])
    torch.set_num_threads(threads)
    if system == "ours":
        found = ours(Path(folder), Path(rest[0]))
    else:
        copies = Path(folder)
        dtype = torch.bfloat16 if copies.name.endswith("bf16") else torch.float32
        make: dict[str, Callable[[], Any]] = {
            "accelerate": lambda: accelerated(copies / "checkpoint", dtype),
            "mapped": lambda: mapped(copies / "checkpoint", dtype),
            "diffusers": lambda: grouped(library_model(dtype).to_empty(device="cpu"), copies / "groups"),
        }
        drop_page_cache(copies)
        found = timed(make[system](), passes)
    print(json.dumps({"passes_s": found}))


def drop_page_cache(folder: Path) -> None:
    """Every system starts with nothing of its files in memory."""
    for file in (path for path in folder.rglob("*") if path.is_file()):
        fd = os.open(file, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


if __name__ == "__main__":
    main()
