"""What a run leaves on the disk: its state after each denoising step, finished results, the trace."""

from __future__ import annotations

from pathlib import Path

from cidl_sim.core.trace import Trace
from cidl_sim.core.workload import Visit
from cidl_sim.executor.job import Job
from cidl_sim.executor.runtime import Runtime
from cidl_sim.executor.saved_run import SavedRunError, read_run, save_run
from cidl_sim.pipelines.pipeline import Pipeline
from cidl_sim.pipelines.several import SeveralPrompts


class Keeper:
    """Saves the run after each denoising step, goes on from where one was saved, and writes finished results."""

    def __init__(
        self, job: Job, pipeline: Pipeline, store_sha256: str, program: SeveralPrompts, runtime: Runtime
    ) -> None:
        self._job = job
        self._pipeline = pipeline
        self._program = program
        self._runtime = runtime
        self._identity = {
            "pipeline": pipeline.name,
            "workload": runtime.schedule.workload.sha256,
            "store": store_sha256,
            "backend": job.backend,
            "prompts": list(job.prompts),
            "seed": job.seed,
            **pipeline.options_type.model_validate(job.options).of_the_result(),
        }

    def resume(self) -> None:
        """Go on from the saved run, if that is asked for and there is one."""
        path = Path(self._job.saved_run) if self._job.saved_run else None
        if not (self._job.resume and path is not None and path.exists()):
            return
        known = {"workload": self._runtime.schedule.workload.identities}
        prompt, next_visit, state = read_run(path, self._identity, known)
        for finished in self._job.outputs[:prompt]:
            if not Path(finished).is_file():
                raise SavedRunError(f"{path}: saved after {finished} was written, which is not there any more")
        self._program.programs[prompt].restore(state)
        self._runtime.resume_at(next_visit)

    def __call__(self, visit: Visit) -> None:
        """After each visit."""
        index = self._program.index_of(visit)
        if self._job.saved_run and self._pipeline.ends_step(self._runtime.schedule.workload, visit):
            state = self._program.programs[index].state()
            save_run(Path(self._job.saved_run), self._identity, index, self._runtime.schedule.current, state)
        if self._program.ends_prompt(visit) and index + 1 < len(self._program.programs):
            write_result(self._job, self._pipeline, self._program, index)


def write_result(job: Job, pipeline: Pipeline, program: SeveralPrompts, index: int) -> None:
    """Write what the prompt with this number became, where the job says."""
    result = program.programs[index].result()
    if job.outputs:
        pipeline.write(Path(job.outputs[index]), result)
    if job.picture_folders:
        pipeline.write_pictures(Path(job.picture_folders[index]), result)


def write_trace(job: Job, trace: Trace) -> None:
    """Write the trace, if the job wants it."""
    if job.trace:
        trace.write(Path(job.trace))
