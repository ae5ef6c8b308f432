"""The tiny model run in this process: a small setting, a tight device, the all-resident control."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from cidl_sim.blocks.definition import StageDefinition
from cidl_sim.core.device import DeviceProfile, Executor, Loader
from cidl_sim.core.feasibility import largest_need
from cidl_sim.core.plan import Plan
from cidl_sim.core.trace import Trace, header_for
from cidl_sim.core.workload import Visit, Workload
from cidl_sim.executor.backend import Call, Outcome
from cidl_sim.executor.runtime import Limits, Runtime, run_all_resident
from cidl_sim.executor.store import BlockStore
from cidl_sim.executor.torch_backend import TorchBackend
from cidl_sim.pipelines.catalog import workload_of
from cidl_sim.pipelines.open_sora.program import TextToVideo
from cidl_sim.pipelines.open_sora.prompt import encode_prompt
from cidl_sim.pipelines.open_sora.settings import OPENSORA_TINY, VideoSettings
from cidl_sim.pipelines.open_sora.stages import stage_definitions
from cidl_sim.policies.catalog import make_plan
from cidl_sim.sampling.linear_proportional_leap import StoppingRule

SETTINGS = VideoSettings(height=32, width=32, frames=17, steps=3, tdtm=1)
PROMPT = "a fox in the snow"
# A tolerance that nothing satisfies: a dynamic leap comes at the first step that may be judged.
EAGER = StoppingRule(minimum_steps=2, tolerance=10.0, patience=1)


class RecordingProgram(TextToVideo):
    """Keeps a copy of what every visit gave, in order: (block name, first tensor of the result)."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.results: list[tuple[str, Tensor]] = []

    def run(self, visit: Visit, block: Call) -> Outcome:
        def recorded(*inputs: Tensor) -> Any:
            result = block(*inputs)
            first = result[0] if isinstance(result, tuple) else result
            self.results.append((visit.block.name, first.clone()))
            return result

        return super().run(visit, recorded)


def tiny_workload(settings: VideoSettings = SETTINGS) -> Workload:
    return workload_of(OPENSORA_TINY, settings)


@cache
def tiny_stages(settings: VideoSettings = SETTINGS) -> tuple[StageDefinition, ...]:
    """Of the tiny model; once for each setting, as working out the shapes takes longer than many a run."""
    return tuple(stage_definitions(OPENSORA_TINY, settings, OPENSORA_TINY.nominal_text_tokens))


def tiny_program(settings: VideoSettings = SETTINGS, seed: int = 1) -> RecordingProgram:
    tokens = encode_prompt(PROMPT, OPENSORA_TINY.text_encoder_tokens)
    return RecordingProgram(tiny_workload(settings), OPENSORA_TINY, settings, tokens, seed, rule=EAGER)


def tiny_backend(
    root: Path,
    settings: VideoSettings = SETTINGS,
    capacity_bytes: int | None = None,
    make: Callable[..., TorchBackend] = TorchBackend,
) -> TorchBackend:
    capacity = tiny_workload(settings).weights_bytes if capacity_bytes is None else capacity_bytes
    return make(
        BlockStore.open(root),
        tiny_stages(settings),
        capacity,
        encode_prompt(PROMPT, OPENSORA_TINY.text_encoder_tokens)[0],
    )


def tight_device(workload: Workload, weights_share: float = 0.4, **fields: Any) -> DeviceProfile:
    """A device with room for the largest workspace and a share of the weights, but never less than one block needs."""
    largest_workspace = max(visit.block.workspace_bytes for visit in workload.visits)
    least, _ = largest_need(workload)
    return DeviceProfile(
        name="tight",
        memory_limit_bytes=max(least, largest_workspace + int(weights_share * workload.weights_bytes)),
        loader=Loader(bandwidth_bytes_per_s=1e9, **fields),
        executor=Executor(flops_per_s=1e10),
    )


def run_control(root: Path, settings: VideoSettings = SETTINGS) -> RecordingProgram:
    """Everything resident from the start."""
    backend, program = tiny_backend(root, settings), tiny_program(settings)
    try:
        run_all_resident(tiny_workload(settings), backend, program)
    finally:
        backend.close()
    return program


def run_plan(
    root: Path,
    plan: Plan,
    settings: VideoSettings = SETTINGS,
    make: Callable[..., TorchBackend] = TorchBackend,
) -> tuple[RecordingProgram, Trace]:
    """The plan streamed from disk; what the blocks gave, and the trace."""
    workload, program = tiny_workload(settings), tiny_program(settings)
    backend = tiny_backend(root, settings, plan.memory_limit_bytes - plan.baseline_bytes, make)
    runtime = Runtime(workload, plan, Limits(plan.memory_limit_bytes, plan.baseline_bytes), backend)
    try:
        runtime.run(program)
    finally:
        backend.close()
    header = header_for(workload, plan, origin="torch-cpu", enforced_by="accounting", clock="perf_counter")
    return program, runtime.recorder.finish(header)


def run_policy(
    root: Path,
    policy: str,
    settings: VideoSettings = SETTINGS,
    make: Callable[..., TorchBackend] = TorchBackend,
) -> tuple[RecordingProgram, Trace]:
    """A policy's plan for the tight device, streamed from disk."""
    workload = tiny_workload(settings)
    return run_plan(root, make_plan(policy, workload, tight_device(workload)), settings, make)
