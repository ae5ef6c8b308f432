"""Named workloads and the families that they are of.

A name is a model's and parts behind it: `opensora-v1.2-256x256-68f-30s-fp32-fine-lpl15-tdtm10`. Headline variants lie
as files in their family's folder, so that most commands never import torch. Any other is measured on the meta device.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from cidl_sim.blocks.cuts import CutChoices, Cuts, choices_of_blocks
from cidl_sim.core.errors import InputError, PlanError, WorkloadError, did_you_mean
from cidl_sim.core.extras import missing_extra
from cidl_sim.core.plan import Plan
from cidl_sim.core.workload import Workload, read_workload
from cidl_sim.pipelines.named import measured_in, name_in, parsed_in, workload_in
from cidl_sim.pipelines.open_sora.family import OPEN_SORA
from cidl_sim.pipelines.pipeline import ColumnType, ModelSizes, Pipeline, RunSettings
from cidl_sim.pipelines.stable_diffusion.family import STABLE_DIFFUSION

# A family is one line here.
FAMILIES: tuple[Pipeline, ...] = (OPEN_SORA, STABLE_DIFFUSION)
# What files without a family's name were made for; the one that the demo shows.
FIRST = OPEN_SORA
# Families of the user's own, as "package.module:object", several with commas between; worker processes see it too.
VARIABLE = "CIDL_PIPELINES"

# What the demo runs: random weights that do not fit, and the trained model in full and accelerated, six prompts each.
DEMO = "opensora-small-48x48-lpl15-tdtm8"
SHOWCASE = ("opensora-shapes-64x64-17f-30s-6p", "opensora-shapes-64x64-17f-30s-lpldynamic-tdtm5-6p")

Named = tuple[Any, Any]  # a model's sizes, and settings of its family


@cache
def _families(own: str) -> dict[str, Pipeline]:
    given = [_imported(reference) for reference in own.split(",") if reference.strip()]
    return {pipeline.name: pipeline for pipeline in (*FAMILIES, *given)}


def _imported(reference: str) -> Pipeline:
    module, _, name = reference.strip().partition(":")
    try:
        pipeline = getattr(import_module(module), name)
    except Exception as problem:
        if isinstance(problem, ModuleNotFoundError) and (missing := missing_extra(problem)) is not None:
            raise missing from problem
        raise InputError(f"{VARIABLE}: {reference!r} cannot be imported ({problem})") from problem
    if not isinstance(pipeline, Pipeline):
        raise InputError(f"{VARIABLE}: {reference!r} is no Pipeline")
    return pipeline


def pipelines() -> dict[str, Pipeline]:
    """Every family by its name, those of the environment's `CIDL_PIPELINES` included."""
    return _families(os.environ.get(VARIABLE, ""))


def pipeline_named(name: str) -> Pipeline:
    """The family of this name. InputError if there is none."""
    known = pipelines()
    if name not in known:
        raise InputError(f"no model family {name!r}: there are {', '.join(known)}{did_you_mean(name, known)}")
    return known[name]


def pipeline_of(sizes: ModelSizes) -> Pipeline:
    """The family that a model of these sizes is of. InputError if it is of none."""
    for pipeline in pipelines().values():
        if type(sizes) is pipeline.sizes_type:
            return pipeline
    raise InputError(f"{type(sizes).__name__}: sizes of no known model family")


def models() -> dict[str, ModelSizes]:
    """Every model by its name."""
    return {name: sizes for pipeline in pipelines().values() for name, sizes in pipeline.models.items()}


def find_model(name: str) -> ModelSizes:
    """The sizes of the model of this name, or of the word that stands for it. InputError if there is none."""
    known = models()
    for pipeline in pipelines().values():
        name = pipeline.words.get(name, name)
    if name not in known:
        words = [word for pipeline in pipelines().values() for word in pipeline.words]
        near = did_you_mean(name, [*known, *words])
        raise InputError(f"unknown model {name!r}: choose one of {', '.join([*known, *words])}{near}")
    return known[name]


def shipped() -> list[str]:
    """The names of the workloads that lie as files."""
    return [name for pipeline in pipelines().values() for name in pipeline.shipped]


# Names


def canonical_name(sizes: ModelSizes, settings: RunSettings) -> str:
    """The full name of a model under some settings."""
    return name_in(pipeline_of(sizes), sizes, settings)


def parse_name(name: str) -> Named:
    """Model sizes and settings of a workload's name. WorkloadError names the part that is wrong."""
    for pipeline in pipelines().values():
        if (found := parsed_in(pipeline, name)) is not None:
            return found
    near = did_you_mean(name, [*models(), *shipped()])
    raise WorkloadError(
        f"unknown workload {name!r}: neither a file nor one of {', '.join(models())} (see 'cidl workloads'){near}"
    )


def axis_values(pipeline: Pipeline, axis: str, value: str) -> dict[str, str]:
    """The settings that a value of a sweep's axis sets. WorkloadError if it has not as many figures as it sets."""
    names = pipeline.axes[axis]
    values = value.split("x") if len(names) > 1 else [value]
    if len(values) != len(names):
        written = "x".join(name.upper() for name in names)
        raise WorkloadError(f"axis {axis!r}: write {written}, such as {'x'.join(['256'] * len(names))}")
    return dict(zip(names, values, strict=True))


def setting_axes() -> list[str]:
    """The axes of a sweep that are settings of a family, of all families, in order."""
    return [*dict.fromkeys(axis for pipeline in pipelines().values() for axis in pipeline.axes)]


def setting_columns() -> dict[str, ColumnType]:
    """The columns of a sweep's results that are settings of a family, of all families, in order."""
    return {name: kind for pipeline in pipelines().values() for name, kind in pipeline.columns.items()}


def job_of(name: str) -> str:
    """What the named workload makes, in words, whatever techniques make it faster."""
    sizes, settings = parse_name(name)
    return pipeline_of(sizes).job(sizes, settings)


# Workloads


def find_workload(name_or_file: str) -> Workload:
    """The workload in a file, or the named one."""
    path = Path(name_or_file)
    if path.suffix == ".json" or path.is_file():
        return read_workload(path)
    sizes, settings = parse_name(name_or_file)
    return workload_of(sizes, settings)


def workload_of(sizes: ModelSizes, settings: RunSettings) -> Workload:
    """The workload of a model under some settings: shipped if it is a headline variant, else measured."""
    return workload_in(pipeline_of(sizes), sizes, settings)


def measure_workload(sizes: ModelSizes, settings: RunSettings) -> Workload:
    """The workload of a model under some settings, measured on the meta device whether it is shipped or not."""
    return measured_in(pipeline_of(sizes), sizes, settings)


def pipeline_of_workload(workload: Workload) -> Pipeline:
    """The family that a workload says it is of; the first one where it says nothing. InputError for an unknown one."""
    return pipeline_named(str(workload.settings.get("pipeline", FIRST.name)))


def pipeline_of_plan(plan: Plan) -> Pipeline:
    """The family whose workload a plan was made for. PlanError for an unknown one."""
    if plan.pipeline not in pipelines():
        raise PlanError(f"the plan was made for a model of family {plan.pipeline!r}, which is not known here")
    return pipelines()[plan.pipeline]


def settings_in(values: Mapping[str, Any], pipeline: Pipeline) -> Any:
    """The settings of a family among those that a workload or a plan carries. ValueError if they are none."""
    own = {name: value for name, value in values.items() if name not in ("pipeline", "model", "compression")}
    return pipeline.settings_type.model_validate(own)


def settings_of_workload(workload: Workload) -> Named | None:
    """Sizes and settings of a named workload; None for one that was made otherwise, whatever it says."""
    known = pipelines().get(str(workload.settings.get("pipeline", FIRST.name)))
    sizes = known.models.get(str(workload.settings.get("model"))) if known else None
    if known is None or sizes is None:
        return None
    try:
        settings = settings_in(workload.settings, known)
    except ValueError:
        return None
    # A file may say that it was made from a model and hold other blocks.
    return (sizes, settings) if workload.sha256 in workload_of(sizes, settings).identities else None


def cut_choices(workload: Workload) -> CutChoices:
    """The cuts of a named workload, as a store can be built for; of any other its blocks, some joined."""
    named = settings_of_workload(workload)
    if named is None:
        return choices_of_blocks(workload)
    sizes, settings = named
    grammar = pipeline_of(sizes).grammar

    def cut(cuts: Cuts) -> tuple[str, Workload]:
        name = grammar.partition_name(cuts)
        return name, workload_of(sizes, settings.model_copy(update={"partition": name}))

    return CutChoices(
        choices=grammar.choices(),
        own=grammar.cuts_of(settings.partition),
        cut=cut,
        store_command=lambda partition: (
            f"cidl model build {sizes.name} --store DIR --dtype {settings.dtype} --partition {partition}"
        ),
    )
