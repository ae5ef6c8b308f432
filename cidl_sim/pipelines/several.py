"""Several prompts in one run, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cidl_sim.core.workload import Visit, Workload
from cidl_sim.executor.backend import Call, Outcome
from cidl_sim.pipelines.pipeline import PromptProgram


def of_one_prompt(workload: Workload, prompts: int) -> Workload:
    """What the program of one prompt runs: the first of as many parts that are alike. Nothing is measured again."""
    stages = workload.stages[: len(workload.stages) // prompts]
    return Workload(name=workload.name, settings={**workload.settings, "prompts": 1}, stages=stages)


class SeveralPrompts:
    """The programs of some prompts as one: each has its own part of the workload's stages."""

    def __init__(self, workload: Workload, programs: Sequence[PromptProgram]) -> None:
        self.programs = list(programs)
        self._stages = len(workload.stages) // len(self.programs)
        self._visits = workload.first_visit_of_stage[self._stages]

    def run(self, visit: Visit, block: Call) -> Outcome:
        """Feed the block of this visit to the program that it belongs to."""
        index = self.index_of(visit)
        first_stage = index * self._stages
        own = replace(visit, stage=visit.stage - first_stage, number=visit.number - index * self._visits)
        outcome = self.programs[index].run(own, block)
        if outcome.end_stage is None:
            return outcome
        return replace(outcome, end_stage=first_stage + outcome.end_stage)

    def index_of(self, visit: Visit) -> int:
        """Which of the prompts a visit belongs to."""
        return visit.stage // self._stages

    def ends_prompt(self, visit: Visit) -> bool:
        """Whether a prompt's result is whole after this visit."""
        return visit.number + 1 == (self.index_of(visit) + 1) * self._visits

    @property
    def evaluations(self) -> int:
        """Evaluations of the denoiser so far."""
        return sum(program.evaluations for program in self.programs)

    @property
    def token_ids(self) -> Tensor:
        """The token ids of all prompts, flat."""
        return torch.cat([program.token_ids.reshape(-1) for program in self.programs])
