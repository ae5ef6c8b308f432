"""Several numbers of compute threads in one profile, and the choice between them."""

from __future__ import annotations

import pytest

from cidl_sim.core.device import DeviceProfile, Executor, Loader, Measured, ThreadChoice, read_device
from cidl_sim.core.errors import DeviceError
from cidl_sim.pipelines.catalog import cut_choices
from cidl_sim.planner.report import PlanQuestions, find_plan
from cidl_sim.policies.catalog import make_plan
from cidl_sim.policies.threads import with_best_threads
from cidl_sim.simulator.engine import simulate
from tests.conftest import uniform_device, uniform_workload

WORKLOAD = uniform_workload(6, 3)
# Both cores compute a block in 2 s where one needs 3, but then loads and executions hinder each other.
ONE_OR_TWO = DeviceProfile(
    name="two cores",
    memory_limit_bytes=3,
    loader=Loader(slowdown_while_executing=1.0),
    executor=Executor(threads=1, launch_s=0.1),
    measured={"b": Measured(load_s=3.0, exec_s=3.0, samples=7)},
    other_threads=(
        ThreadChoice(threads=2, exec_s={"b": 2.0}, slowdown_while_loading=1.8, slowdown_while_executing=1.5),
    ),
)


def test_the_choice_depends_on_the_plan():
    alone, beside = (with_best_threads(policy, WORKLOAD, ONE_OR_TWO) for policy in ("sequential", "next_block"))
    assert alone.executor.threads == 2
    assert beside.executor.threads == 1
    plans = make_plan("sequential", WORKLOAD, alone), make_plan("next_block", WORKLOAD, beside)
    assert [plan.compute_threads for plan in plans] == [2, 1]
    for policy, chosen in (("sequential", alone), ("next_block", beside)):
        took = [
            simulate(WORKLOAD, device, make_plan(policy, WORKLOAD, device)).makespan_s
            for device in (chosen, chosen.with_threads(chosen.other_threads[0].threads))
        ]
        assert took[0] <= took[1]


def test_a_profile_that_knows_one_number_is_as_it_is():
    device = uniform_device(3, 1.0, 1.0)
    assert with_best_threads("next_block", WORKLOAD, device) is device
    assert device.with_threads(5) is device
    assert device.sha256 == device.model_validate(device.model_dump(exclude={"other_threads"})).sha256


def test_changing_the_number_loses_nothing():
    two = ONE_OR_TWO.with_threads(2)
    assert two.measured["b"] == Measured(load_s=3.0, exec_s=2.0, samples=7)
    assert two.loader.slowdown_while_executing == 1.5
    assert two.executor.slowdown_while_loading == 1.8
    assert two.executor.launch_s == 0.0
    assert two.thread_numbers == (2, 1)
    assert two.with_threads(1) == ONE_OR_TWO
    assert two.with_threads(None) is two
    assert two.sha256 != ONE_OR_TWO.sha256
    with pytest.raises(DeviceError, match="not measured with 3 compute threads"):
        two.with_threads(3)


def test_the_file_holds_all_numbers(tmp_path):
    ONE_OR_TWO.write(tmp_path / "device.toml")
    assert read_device(tmp_path / "device.toml") == ONE_OR_TWO


@pytest.mark.parametrize("own", ["", "threads = 2"])
def test_a_number_that_is_missing_or_there_twice_is_one_clear_line(tmp_path, own):
    file = tmp_path / "device.toml"
    file.write_text(f'name = "d"\nmemory_limit_bytes = 9\n[executor]\n{own}\n[[other_threads]]\nthreads = 2\n')
    with pytest.raises(DeviceError, match=r"other_threads: executor\.threads has to say a number") as problem:
        read_device(file)
    assert "\n" not in str(problem.value)


def test_a_plan_that_is_asked_for_says_what_the_other_number_takes():
    found = find_plan(WORKLOAD, ONE_OR_TWO, PlanQuestions("next_block"), cut_choices(WORKLOAD))
    assert found.planned.plan.compute_threads == 1
    assert found.device.executor.threads == 1
    (note,) = found.planned.notes
    assert note.startswith("compute threads: 1; the plan found for others takes ")
    assert note.endswith(" s with 2")
