"""Named workloads: `opensora-v1.2-256x256-68f-30s-fp32-fine-lpl15-tdtm10`, every part after the model optional.

The headline variants are shipped as files (made by experiments/write_named_workloads.py, compared in a
test), so that most commands never import torch. Any other variant is measured on the meta device.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from cidl_sim.core.errors import WorkloadError, did_you_mean
from cidl_sim.core.files import first_problem
from cidl_sim.core.workload import Block, Stage, Workload, read_workload
from cidl_sim.models.config import SIZES, Dtype, OpenSoraSizes, VideoSettings

if TYPE_CHECKING:
    from cidl_sim.models.open_sora import BlockDefinition

DEFAULTS = {
    "opensora-v1.2": VideoSettings(),
    "opensora-small": VideoSettings(height=64, width=64, frames=17),
    "opensora-shapes": VideoSettings(height=48, width=48, frames=17),
    "opensora-tiny": VideoSettings(height=32, width=32, frames=17, steps=6),
}

SHIPPED = (
    "opensora-v1.2-256x256-68f",
    "opensora-v1.2-256x256-68f-lpl15",
    "opensora-v1.2-256x256-68f-lpl15-tdtm10",
    "opensora-v1.2-256x256-68f-50s",
    "opensora-v1.2-256x256-68f-bf16",
    "opensora-v1.2-192x192-68f",
    "opensora-v1.2-192x192-68f-lpl15",
    "opensora-v1.2-192x192-17f",
    "opensora-small",
    "opensora-small-48x48-lpl15-tdtm8",
)

_PART = {
    "size": re.compile(r"(?P<height>\d+)x(?P<width>\d+)"),
    "frames": re.compile(r"(?P<frames>\d+)f"),
    "steps": re.compile(r"(?P<steps>\d+)s"),
    "dtype": re.compile(r"(?P<dtype>fp32|bf16|fp16)"),
    "lpl": re.compile(r"lpl(?P<lpl>off|dynamic|\d+)"),
    "partition": re.compile(r"(?P<partition>fine|reference|[tdv](?:fine|\d+)(?:\.[dv](?:fine|\d+))*)"),
    "tdtm": re.compile(r"tdtm(?P<tdtm>\d+)"),
    "prompts": re.compile(r"(?P<prompts>\d+)p"),
}


def canonical_name(model: str, settings: VideoSettings) -> str:
    """The full name of a variant; LPL and TDTM appear when they are on."""
    name = f"{model}-{settings.height}x{settings.width}-{settings.frames}f-{settings.steps}s-{settings.dtype}"
    name += f"-{settings.partition}" if settings.partition != "reference" else ""
    name += f"-lpl{settings.lpl}" if settings.lpl != "off" else ""
    name += f"-tdtm{settings.tdtm}" if settings.tdtm else ""
    return name + (f"-{settings.prompts}p" if settings.prompts > 1 else "")


def parse_name(name: str) -> tuple[OpenSoraSizes, VideoSettings]:
    """Model sizes and settings of a workload's name. WorkloadError names the part that is wrong."""
    model = next((m for m in SIZES if name == m or name.startswith(m + "-")), None)
    if model is None:
        near = did_you_mean(name, [*SIZES, *SHIPPED])
        raise WorkloadError(
            f"unknown workload {name!r}: neither a file nor one of {', '.join(SIZES)} (see 'cidl workloads'){near}"
        )
    values: dict[str, str] = {}
    for part in name[len(model) :].split("-")[1:]:
        match = next((m for pattern in _PART.values() if (m := pattern.fullmatch(part))), None)
        if match is None or match.groupdict().keys() & values.keys():
            raise WorkloadError(
                f"workload {name!r}: cannot read {part!r}; write {model}-256x256-68f-30s-fp32-lpl15-tdtm10"
            )
        values.update(match.groupdict())
    return SIZES[model], merged_settings(DEFAULTS[model], values, f"workload {name!r}")


def merged_settings(defaults: VideoSettings, values: dict[str, str], source: str = "settings") -> VideoSettings:
    """`defaults` with some values replaced. WorkloadError names `source` and says what is impossible."""
    try:
        return VideoSettings.model_validate({**defaults.model_dump(), **values})
    except ValidationError as problem:
        raise WorkloadError(f"{source}: {first_problem(problem)}") from None


def find_workload(name_or_file: str) -> Workload:
    """The workload in a file, or the named one."""
    path = Path(name_or_file)
    if path.suffix == ".json" or path.is_file():
        return read_workload(path)
    sizes, settings = parse_name(name_or_file)
    return workload_of(sizes, settings)


@cache
def workload_of(sizes: OpenSoraSizes, settings: VideoSettings) -> Workload:
    """The workload of a pipeline under some settings: shipped if it is a headline variant, else measured."""
    name = canonical_name(sizes.name, settings)
    shipped = resources.files("cidl_sim.workloads") / "data" / f"{name}.json"
    if sizes == SIZES.get(sizes.name) and shipped.is_file():
        return Workload.model_validate_json(shipped.read_text(encoding="utf-8"))
    return measure_workload(sizes, settings)


def measure_workload(sizes: OpenSoraSizes, settings: VideoSettings) -> Workload:
    """Build every kind of block on the meta device and measure it (torch is imported here, not before).

    Arithmetic is counted at the model's nominal number of text tokens, workspace at the largest. Of the token
    embedding only the rows of one prompt count, since no more is ever loaded.
    """
    from cidl_sim.models.open_sora import stage_definitions, state_bytes

    nominal = stage_definitions(sizes, settings, sizes.nominal_text_tokens)
    longest = stage_definitions(sizes, settings, sizes.stdit.max_text_tokens)
    # What a block costs does not depend on how often it is run, nor on the cut.
    by_kind = _kinds_of(
        sizes, settings.model_copy(update={"partition": "reference", "steps": 1, "lpl": "off", "tdtm": 0})
    )
    stages = []
    for stage, stage_at_longest in zip(nominal, longest, strict=True):
        blocks = []
        for definition, at_longest in zip(stage.blocks, stage_at_longest.blocks, strict=True):
            state = state_bytes(sizes, settings, stage.group)
            blocks.append(_measured(definition, at_longest, settings.dtype, state, by_kind))
        stages.append(Stage(name=stage.name, group=stage.group, rounds=stage.rounds, blocks=tuple(blocks)))
    return Workload(
        name=canonical_name(sizes.name, settings),
        settings={"model": sizes.name, **settings.model_dump()},
        stages=tuple(stages),
    )


@cache
def _kinds_of(sizes: OpenSoraSizes, settings: VideoSettings) -> dict[str, Block]:
    """The kinds measured so far: partitions and numbers of steps of one pipeline have most of them in common."""
    return {}


def _measured(
    definition: BlockDefinition, at_longest: BlockDefinition, dtype: Dtype, state_bytes: int, by_kind: dict[str, Block]
) -> Block:
    """A block with its figures; `by_kind` holds what was measured already, and gains what was not."""
    import torch

    from cidl_sim.models.open_sora import TORCH_DTYPES
    from cidl_sim.workloads.layer_graph import measure_module

    if definition.kind not in by_kind:
        with torch.device("meta"):
            module = definition.build().to(TORCH_DTYPES[dtype])
        m, peak = measure_module(module, definition.example()), measure_module(module, at_longest.example())
        by_kind[definition.kind] = Block(
            name=definition.name,
            kind=definition.kind,
            weight_bytes=definition.loaded_bytes(m.weight_bytes),
            workspace_bytes=peak.workspace_bytes + state_bytes,
            flops=m.flops,
            bytes_moved=m.bytes_moved,
        )
    like = tuple(
        _measured(other, other_at_longest, dtype, state_bytes, by_kind)
        for other, other_at_longest in zip(definition.like, at_longest.like, strict=True)
    )
    own = {"name": definition.name, "weights": definition.weights, "like": like}
    return by_kind[definition.kind].model_copy(update=own)
