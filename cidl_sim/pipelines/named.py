"""The named workloads of one family: names to settings and back, and the workloads themselves."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import ValidationError

from cidl_sim.core.errors import WorkloadError
from cidl_sim.core.files import first_problem, validated
from cidl_sim.core.workload import Workload
from cidl_sim.pipelines.measured_before import kept_or_made
from cidl_sim.pipelines.pipeline import ModelSizes, Pipeline, RunSettings


def name_in(pipeline: Pipeline, sizes: ModelSizes, settings: RunSettings) -> str:
    """The full name of a model of a family under some settings."""
    parts = (part.write(settings) for part in pipeline.name_parts)
    return "-".join([sizes.name, *(part for part in parts if part)])


def parsed_in(pipeline: Pipeline, name: str) -> tuple[Any, Any] | None:
    """Sizes and settings of a workload's name; None if it is of no model of the family.

    WorkloadError names the part of the name that is wrong.
    """
    known = sorted(pipeline.models, key=len, reverse=True)
    model = next((m for m in known if name == m or name.startswith(m + "-")), None)
    if model is None:
        return None
    values: dict[str, str] = {}
    for text in name[len(model) :].split("-")[1:]:
        match = next((m for part in pipeline.name_parts if (m := part.pattern.fullmatch(text))), None)
        if match is None or match.groupdict().keys() & values.keys():
            raise WorkloadError(f"workload {name!r}: cannot read {text!r}; write {model}-{pipeline.example}")
        values.update(match.groupdict())
    default = pipeline.defaults.get(model, pipeline.settings_type())
    return pipeline.models[model], merged_settings(default, values, f"workload {name!r}")


def merged_settings(defaults: RunSettings, values: Mapping[str, Any], source: str = "settings") -> Any:
    """`defaults` with some values replaced. WorkloadError names `source` and says what is impossible."""
    try:
        return type(defaults).model_validate({**defaults.model_dump(), **values})
    except ValidationError as problem:
        raise WorkloadError(f"{source}: {first_problem(problem)}") from None


def named_in(pipeline: Pipeline, name: str) -> Workload:
    """The named workload of a family. WorkloadError if it has no such name."""
    found = parsed_in(pipeline, name)
    if found is None:
        raise WorkloadError(f"unknown workload {name!r}: of no model of {pipeline.name}")
    return workload_in(pipeline, *found)


@cache
def workload_in(pipeline: Pipeline, sizes: ModelSizes, settings: RunSettings) -> Workload:
    """The workload of a model under some settings: shipped if it is a headline variant, else measured once."""
    file = pipeline.data / f"{name_in(pipeline, sizes, settings)}.json" if pipeline.data else None
    if file is not None and sizes == pipeline.models.get(sizes.name) and file.is_file():
        return Workload.model_validate_json(file.read_text(encoding="utf-8"))
    if not type(pipeline).__module__.startswith("cidl_sim."):
        # What a family of the user's own is made of is not known here.
        return measured_in(pipeline, sizes, settings)
    follows_from = {
        "pipeline": pipeline.name,
        "sizes": sizes.model_dump(mode="json"),
        "settings": settings.model_dump(mode="json"),
    }
    return kept_or_made(follows_from, lambda: measured_in(pipeline, sizes, settings))


def measured_in(pipeline: Pipeline, sizes: ModelSizes, settings: RunSettings) -> Workload:
    """Build every kind of block on the meta device and measure it (torch is imported here, not before).

    Arithmetic is counted at the model's nominal length, workspace at the largest.
    """
    from cidl_sim.blocks.measure import measured_stages

    name = name_in(pipeline, sizes, settings)
    stages = measured_stages(
        pipeline.stages(sizes, settings, "nominal"),
        pipeline.stages(sizes, settings, "longest"),
        settings.dtype,
        lambda group: pipeline.state_bytes(sizes, settings, group),
    )
    described = {"pipeline": pipeline.name, "model": sizes.name, **settings.model_dump()}
    return validated(Workload, {"name": name, "settings": described, "stages": stages}, name, WorkloadError)
