"""Runs that go on: from every saved step the rest is the same, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cidl_sim.core.errors import MachineError
from cidl_sim.core.trace import Trace, header_for
from cidl_sim.executor.runtime import Limits, Runtime
from cidl_sim.executor.saved_run import SavedRunError, read_run, save_run
from cidl_sim.executor.store import BlockStore
from cidl_sim.executor.torch_backend import TorchBackend
from cidl_sim.pipelines.catalog import workload_of
from cidl_sim.pipelines.open_sora.family import OPEN_SORA
from cidl_sim.pipelines.open_sora.program import TextToVideo
from cidl_sim.pipelines.open_sora.prompt import encode_prompt
from cidl_sim.pipelines.open_sora.settings import OPENSORA_TINY, VideoSettings
from cidl_sim.pipelines.several import SeveralPrompts
from cidl_sim.policies.catalog import make_plan
from cidl_sim.sampling.linear_proportional_leap import StoppingRule
from tests.executor.tiny_runs import SETTINGS, tight_device, tiny_stages

EAGER = StoppingRule(minimum_steps=2, tolerance=10.0, patience=2)
PROMPTS = ("a fox in the snow", "a red ball")


def program_of(settings: VideoSettings) -> tuple[SeveralPrompts, torch.Tensor]:
    alone = settings.model_copy(update={"prompts": 1})
    tokens = [encode_prompt(prompt, OPENSORA_TINY.text_encoder_tokens) for prompt in PROMPTS[: settings.prompts]]
    one = workload_of(OPENSORA_TINY, alone)
    videos = [TextToVideo(one, OPENSORA_TINY, alone, t, 1, rule=EAGER) for t in tokens]
    return SeveralPrompts(workload_of(OPENSORA_TINY, settings), videos), torch.cat([ids for ids, _ in tokens])


def run(
    store: Path, settings: VideoSettings, saved: Path, resume_from: Path | None = None, share: float = 0.6
) -> tuple[SeveralPrompts, Trace]:
    """Run, saving each step as `saved`.N; or go on from a saved step."""
    workload = workload_of(OPENSORA_TINY, settings)
    plan = make_plan("lru", workload, tight_device(workload, share))
    program, ids = program_of(settings)
    backend = TorchBackend(
        BlockStore.open(store), tiny_stages(settings), plan.memory_limit_bytes - plan.baseline_bytes, ids
    )
    runtime = Runtime(workload, plan, Limits(plan.memory_limit_bytes, plan.baseline_bytes), backend)
    if resume_from is not None:
        video, visit, state = read_run(resume_from, {})
        program.programs[video].restore(state)
        runtime.resume_at(visit)
    steps = 0

    def save(visit):
        nonlocal steps
        if resume_from is None and OPEN_SORA.ends_step(workload, visit):
            index = program.index_of(visit)
            state = program.programs[index].state()
            save_run(saved.with_suffix(f".{steps}"), {}, index, runtime.schedule.current, state)
            steps += 1

    try:
        runtime.run(program, save)
    finally:
        backend.close()
    header = header_for(workload, plan, origin="torch-cpu", enforced_by="accounting", clock="perf_counter")
    return program, runtime.recorder.finish(header)


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        SETTINGS.model_copy(update={"steps": 5, "lpl": "3", "tdtm": 2}),
        SETTINGS.model_copy(update={"steps": 6, "lpl": "dynamic", "tdtm": 0}),
        SETTINGS.model_copy(update={"steps": 2, "prompts": 2}),
    ],
    ids=["plain", "static leap", "dynamic leap", "two prompts"],
)
def test_from_every_saved_step_the_rest_is_the_same(settings, tiny_store, tmp_path):
    whole, _ = run(tiny_store, settings, tmp_path / "step")
    saved = sorted(tmp_path.glob("step.*"))
    assert len(saved) == whole.evaluations
    for step in saved:
        video = read_run(step, {})[0]
        rest, trace = run(tiny_store, settings, tmp_path / "other", resume_from=step)
        for ours, theirs in zip(rest.programs[video:], whole.programs[video:], strict=True):
            assert torch.equal(ours.frames, theirs.frames)
        assert trace.events[0].kind == "resumed"
        assert step.stat().st_size < 100_000


def test_videos_of_one_run_are_those_of_runs_of_their_own(tiny_store, tmp_path, monkeypatch):
    both, _ = run(tiny_store, SETTINGS.model_copy(update={"prompts": 2}), tmp_path / "step")
    first, _ = run(tiny_store, SETTINGS, tmp_path / "other")
    assert torch.equal(both.programs[0].frames, first.programs[0].frames)
    monkeypatch.setattr("tests.executor.test_saved_run.PROMPTS", PROMPTS[::-1])
    second, _ = run(tiny_store, SETTINGS, tmp_path / "another")
    assert torch.equal(both.programs[1].frames, second.programs[0].frames)


def test_what_the_plan_keeps_between_two_prompts_is_not_loaded_again(tiny_store, tmp_path):
    settings = SETTINGS.model_copy(update={"prompts": 2})
    _, trace = run(tiny_store, settings, tmp_path / "step", share=1.5)
    assert len(trace.of("load")) == len({v.block.weights for v in workload_of(OPENSORA_TINY, settings).visits})


def test_a_saved_run_of_another_job_is_refused(tmp_path):
    save_run(tmp_path / "s", {"seed": 1}, 0, 7, ({"z": torch.ones(2)}, {"evaluations": 1}))
    video, visit, (tensors, values) = read_run(tmp_path / "s", {"seed": 1})
    assert (video, visit, values) == (0, 7, {"evaluations": 1})
    assert torch.equal(tensors["z"], torch.ones(2))
    with pytest.raises(SavedRunError, match="its seed is 1, here it is 2"):
        read_run(tmp_path / "s", {"seed": 2})


def test_a_disk_that_is_full_is_the_machines_fault_and_the_step_before_stays(tmp_path):
    small = tmp_path / "missing" / "s"
    (tmp_path / "missing").write_text("a file where a folder should be")
    with pytest.raises(MachineError, match="cannot be written"):
        save_run(small, {}, 0, 0, ({"z": torch.ones(2)}, {}))


def test_a_workload_is_known_by_what_it_was_called_before(tmp_path):
    save_run(tmp_path / "s", {"workload": "old", "seed": 1}, 0, 3, ({}, {}))
    assert read_run(tmp_path / "s", {"workload": "new", "seed": 1}, {"workload": {"new", "old"}})[:2] == (0, 3)
    with pytest.raises(SavedRunError, match="its workload is 'old', here it is 'new'"):
        read_run(tmp_path / "s", {"workload": "new", "seed": 1}, {"workload": {"other"}})
