"""Which runs a validation chooses: nothing is run here."""

from __future__ import annotations

import pytest

from cidl_sim.core.device import DeviceProfile, Executor, Loader
from cidl_sim.core.what_if import with_value
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.model_store import build_random_store
from cidl_sim.pipelines.open_sora.settings import OPENSORA_TINY, VideoSettings
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import simulate
from cidl_sim.validation.scenarios import WANTED, choose_scenarios, default_targets

SETTINGS = VideoSettings(height=32, width=32, frames=17, steps=6, lpl="3", tdtm=2)


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> list[BlockStore]:
    folder = tmp_path_factory.mktemp("stores")
    return [build_random_store(folder / p, OPENSORA_TINY, "fp32", seed=0, partition=p) for p in ("reference", "fine")]


def device(bandwidth: float) -> DeviceProfile:
    return DeviceProfile(
        name="d",
        memory_limit_bytes=10**9,
        loader=Loader(bandwidth_bytes_per_s=bandwidth),
        executor=Executor(flops_per_s=1e9),
    )


def test_targets_vary_size_steps_leap_and_merging_and_take_the_other_partition(stores):
    targets = default_targets(stores, SETTINGS)
    settings = [s for _, s in targets]
    assert len({(s.height, s.width, s.frames) for s in settings}) >= 3
    assert {s.lpl for s in settings} >= {"off", "3", "dynamic"}
    assert len({s.tdtm for s in settings}) >= 2
    assert {s.partition for s in settings} == {"reference", "fine"}
    assert all(store.index.partition == s.partition for store, s in targets)


def test_scenarios_are_of_every_kind_that_there_is_and_differ(stores):
    targets = default_targets(stores, SETTINGS)
    chosen = choose_scenarios(targets, device(1.5e7))
    assert len(chosen) == sum(WANTED.values())
    assert len({s.name for s in chosen}) == len(chosen)
    assert len({s.policy for s in chosen}) >= 3
    assert len({s.workload.name for s in chosen}) >= 3
    assert chosen == choose_scenarios(targets, device(1.5e7))


def test_a_device_that_only_loads_has_as_many_runs_all_bound_by_the_loader(stores):
    slow = device(1e5)
    chosen = choose_scenarios(default_targets(stores[:1], SETTINGS), slow)
    assert len(chosen) == sum(WANTED.values())
    assert len({(s.workload.name, s.policy, s.memory_limit_bytes) for s in chosen}) == len(chosen)
    for scenario in chosen:
        limited = with_value(slow, "memory_limit_bytes", scenario.memory_limit_bytes)
        trace = simulate(scenario.workload, limited, make_plan(scenario.policy, scenario.workload, limited))
        assert trace.loader_busy_s > 2 * trace.executor_busy_s
