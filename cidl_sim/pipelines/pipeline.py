"""What a model family is to the rest: one object that says how its models are named, cut, fed and written.

A family is one folder beside this file and one line in `catalog`. It derives from `Pipeline`, whose defaults serve a
family without anything special. What needs torch is imported when it is asked for, so that planning needs none.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from cidl_sim.blocks.cuts import CutGrammar, Dtype
from cidl_sim.core.errors import InputError
from cidl_sim.core.workload import Visit, Workload

if TYPE_CHECKING:
    from torch import Tensor

    from cidl_sim.blocks.definition import StageDefinition
    from cidl_sim.executor.backend import Call, Outcome
    from cidl_sim.pipelines.checkpoint import View

# Of what differs in length from run to run (a prompt): one token, what workloads count on, the most that is taken.
Length = Literal["shortest", "nominal", "longest"]
ColumnType = Literal["int32", "float64", "string"]
State = tuple[dict[str, "Tensor"], dict[str, Any]]  # tensors, and values that JSON can hold


class ModelSizes(BaseModel):
    """The widths of a model's networks. Frozen; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)


class RunSettings(BaseModel):
    """What a run is asked for; decides shapes and rounds, hence the workload. Frozen; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Dtype = "fp32"
    partition: str = "reference"
    prompts: int = Field(default=1, ge=1, le=100)


class RunOptions(BaseModel):
    """What a run may be told beside its plan: nothing that changes the workload. Values may be given as text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def of_the_result(self) -> dict[str, Any]:
        """What the result depends on: a saved run goes on under the same alone."""
        return self.model_dump(mode="json")


class NamePart:
    """One part of a workload's name: the settings that it gives, and how it is written.

    `pattern`: its named groups are settings. `written`: a format of the settings ("{0.steps}s"), or what gives the
    part's text for some settings, "" where it is left out.
    """

    def __init__(self, pattern: str, written: str | Callable[[Any], str]) -> None:
        self.pattern = re.compile(pattern)
        self.write: Callable[[Any], str] = written.format if isinstance(written, str) else written


def dtype_part() -> NamePart:
    """The part that names the dtype; always written."""
    return NamePart(r"(?P<dtype>fp32|bf16|fp16)", "{0.dtype}")


def partition_part(grammar: CutGrammar) -> NamePart:
    """The part that names another partition than the reference's."""
    one = rf"[{''.join(grammar.letters) or '.'}](?:fine|whole|chunks\d|\d+)"
    words = "|".join(("fine", "reference", *grammar.names))
    return NamePart(
        rf"(?P<partition>{words}|{one}(?:\.{one})*)",
        lambda settings: "" if settings.partition == "reference" else str(settings.partition),
    )


def prompts_part() -> NamePart:
    """The part that says for how many prompts, where it is more than one."""
    return NamePart(r"(?P<prompts>\d+)p", lambda settings: f"{settings.prompts}p" if settings.prompts > 1 else "")


class PromptProgram(Protocol):
    """What is computed for one prompt: it feeds each block of its part of the workload and keeps what comes out.

    `evaluations` of the denoiser so far. `token_ids`: what the blocks that are tables are asked for; only those rows
    are loaded.
    """

    evaluations: int

    @property
    def token_ids(self) -> Tensor:
        """The ids of the prompt's tokens, an integer tensor of any shape."""

    def run(self, visit: Visit, block: Call) -> Outcome:
        """Feed the block of this visit and keep its result."""

    def state(self) -> State:
        """What the rest of the run depends on after a visit for which `Pipeline.ends_step` is true."""

    def restore(self, state: State) -> None:
        """Be as after the visit at which `state` was taken."""

    def result(self) -> Any:
        """What the prompt became, once every visit has run: `Pipeline.write` takes it."""


@dataclass(frozen=True)
class Feed:
    """What a prompt's program is made from.

    `workload` is that of one prompt. `folder`: the store or the export, beside whose blocks a tokenizer may lie.
    `device`: where blocks compute.
    """

    workload: Workload
    sizes: Any
    settings: Any
    prompt: str
    seed: int
    options: Any
    folder: Path
    device: str = "cpu"


class Pipeline(ABC):
    """One model family. What is asked for by name are plain attributes, what has to be worked out are methods."""

    name: str
    sizes_type: type[ModelSizes]
    settings_type: type[RunSettings]
    options_type: type[RunOptions] = RunOptions
    # Models by name, each with the settings of a name without parts, and words that may stand for a model's name.
    models: Mapping[str, Any] = {}
    defaults: Mapping[str, Any] = {}
    words: Mapping[str, str] = {}
    # Names of workloads that lie as files in `data`, so that they need no torch.
    shipped: Sequence[str] = ()
    data: Path | None = None
    grammar: CutGrammar = CutGrammar({})
    name_parts: Sequence[NamePart] = (dtype_part(), prompts_part())
    example: str = "fp32"
    # The axes of a sweep, each with the settings that it sets ("AxB" where it sets two); the columns of its results.
    axes: Mapping[str, Sequence[str]] = {"dtype": ("dtype",), "partition": ("partition",)}
    columns: Mapping[str, ColumnType] = {"dtype": "string", "partition": "string"}
    # The parts of a published checkpoint, each with what it is.
    parts: Mapping[str, str] = {"model": "The checkpoint's folder."}
    # Those that only some of the models have.
    optional_parts: Sequence[str] = ()
    # What a run writes: the noun, and the endings of its file's name.
    output: str = "image"
    suffixes: Sequence[str] = (".png",)
    # The settings that a machine is measured with, where those of `defaults` are not meant.
    measuring: Mapping[str, Any] = {}

    # Blocks

    @abstractmethod
    def stages(self, sizes: Any, settings: Any, length: Length) -> list[StageDefinition]:
        """The stages of a run of one or several prompts, of the given length. Kinds do not depend on the length."""

    def state_bytes(self, sizes: Any, settings: Any, group: str) -> int:
        """Bytes of what a run carries from block to block beside each block's own inputs and outputs."""
        return 0

    def smallest(self, dtype: Dtype, partition: str) -> Any:
        """Settings of the least work under which every set of weights of a model occurs."""
        return self.settings_type(dtype=dtype, partition=partition)

    def covering(self, settings: Any) -> Any:
        """Settings of one prompt under which every kind of block occurs, whatever technique `settings` leave out."""
        return settings.model_copy(update={"prompts": 1})

    def calibrating(self, settings: Any, *, longer: bool = False) -> Any:
        """Settings of a short run that measures the blocks of `settings`; `longer`: twice as many steps, if any."""
        return settings.model_copy(update={"prompts": 1})

    def validating(self, settings: Any) -> list[Any]:
        """Settings around `settings` that a validation runs, so that what binds them differs."""
        return [settings]

    def quality(self, settings: Any) -> tuple[int | None, int | None]:
        """What speed is paid with: evaluations of the denoiser, and how many of them merge tokens; None: unknown."""
        return None, None

    def job(self, sizes: Any, settings: Any) -> str:
        """What is made, in words, whatever techniques make it faster."""
        return f"{sizes.name}, {settings.dtype}"

    # A run

    def check_options(self, settings: Any, options: Any) -> None:
        """InputError where a run under these settings cannot be told `options`."""
        return

    @abstractmethod
    def program(self, feed: Feed) -> PromptProgram:
        """What computes one prompt. InputError for a prompt that the model does not take."""

    @abstractmethod
    def write(self, path: Path, result: Any) -> None:
        """Write a program's result, in one step. MachineError where the disk does not take it."""

    def ends_step(self, workload: Workload, visit: Visit) -> bool:
        """Whether the state of a run is small and whole after this visit, so that it is worth saving."""
        stage = workload.stages[visit.stage]
        return stage.group == "denoiser" and visit.position == len(stage.blocks) - 1

    def write_pictures(self, folder: Path, result: Any) -> None:
        """Write a result as single pictures. InputError where that means nothing."""
        raise InputError(f"the {self.output} of this model has no single pictures")

    # Weights

    def known_tensor(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """The values of a tensor that are part of the architecture; None for one that is learnt."""
        return None

    def initial_scale(self, name: str, shape: tuple[int, ...]) -> float | None:
        """The standard deviation that a random tensor is drawn with; None for one over the root of its inputs."""
        return None

    def unused_keys(self, sizes: Any, part: str) -> dict[str, tuple[int, ...]]:
        """Keys of a published checkpoint, with their shapes, that the pipeline has no use for."""
        return {}

    def other_names(self, sizes: Any, part: str) -> dict[str, str]:
        """By key of a published checkpoint the other name that its tensor may have there instead."""
        return {}

    def in_single_file(self, sizes: Any, part: str) -> tuple[dict[str, View], tuple[str, ...]] | None:
        """Where a part's tensors lie in an original file with all parts, by key; and what its names begin with there.

        None where there are no such files.
        """
        return None

    def tokenizer_folder(self, parts: Mapping[str, Path]) -> Path | None:
        """Where the tokenizer of a checkpoint lies, given the folders of its parts; None where it has none."""
        return None

    def told_apart(self, folder: Path, fitting: Sequence[Any]) -> Any:
        """Of models whose tensors all fit a checkpoint, the one that its other files say it is of."""
        return fitting[0]

    def trained(self, model: str) -> dict[str, Path] | None:
        """The folders of weights that are shipped with the package for this model, by part; None if there are none."""
        return None

    def find_parts(self, folder: Path) -> dict[str, Path] | None:
        """The parts of a checkpoint in `folder`, or None if it is not laid out as this family's."""
        if len(self.parts) == 1:
            return dict.fromkeys(self.parts, folder) if any(folder.glob("*.safetensors")) else None
        parts = {part: folder / part for part in self.parts}
        there = {part: path for part, path in parts.items() if path.is_dir()}
        return there if parts.keys() - there.keys() <= set(self.optional_parts) else None
