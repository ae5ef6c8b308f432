import gc
from weakref import ref

import numpy as np
import pytest
from hypothesis import given

from cidl_sim.core.costs import execute_cost, load_cost
from cidl_sim.core.device import DeviceProfile, Measured, ThermalStep
from cidl_sim.core.errors import DeviceError
from cidl_sim.core.timed import timed
from cidl_sim.core.workload import Block, Stage, Workload
from tests.conftest import analytic_device, uniform_device, uniform_workload
from tests.core.strategies import cases


@given(cases())
def test_every_visit_costs_what_its_block_does(case):
    workload, device, _ = case
    priced = timed(workload, device)
    for visit in workload.visits:
        v, block = visit.number, visit.block
        load = load_cost(block, device, cold=workload.previous_same_weights[v] is None)
        assert priced.load_cost(v) == load
        assert priced.execute_cost(v) == execute_cost(block, device)
        assert (priced.load_fixed_s[v], priced.load_work_s[v]) == (load.fixed_s, load.work_s)
        assert priced.execute_s[v] == execute_cost(block, device).seconds
        assert (priced.weight_bytes[v], priced.workspace_bytes[v]) == (block.weight_bytes, block.workspace_bytes)
        assert priced.previous[v] == (-1 if (p := workload.previous_same_weights[v]) is None else p)
        assert priced.following[v] == (-1 if (n := workload.next_same_weights[v]) is None else n)


@given(cases())
def test_weights_have_the_same_number_where_they_are_the_same(case):
    workload, device, _ = case
    names = [visit.block.weights for visit in workload.visits]
    numbers = timed(workload, device).weights.tolist()
    assert len(set(numbers)) == len(set(names)) == len(set(zip(names, numbers, strict=True)))


def test_weights_stay_within_a_group_alone():
    block = Block(name="a", kind="k", weights="w", weight_bytes=1, flops=1)
    stages = [Stage(name=name, group=name, rounds=2, blocks=[block]) for name in ("first", "second")]
    workload = Workload(name="two groups", stages=stages)
    assert timed(workload, analytic_device(4)).stays.tolist() == [True, False, True, False]


def test_the_first_load_is_a_cold_one():
    device = DeviceProfile(
        name="d", memory_limit_bytes=9, measured={"b": Measured(load_s=1.0, cold_load_s=3.0, exec_s=1.0)}
    )
    block = Block(name="b", kind="b", weight_bytes=1)
    priced = timed(Workload(name="w", stages=[Stage(name="s", rounds=3, blocks=[block])]), device)
    assert (priced.load_fixed_s + priced.load_work_s).tolist() == [3.0, 1.0, 1.0]


def test_an_unknown_cost_is_an_error_for_whoever_asks_for_it():
    blocks = [Block(name=name, kind=name, weight_bytes=1) for name in ("a", "b")]
    workload = Workload(name="w", stages=[Stage(name="s", blocks=blocks)])
    measured = {"a": Measured(load_s=1.0), "b": Measured(exec_s=1.0)}
    priced = timed(workload, DeviceProfile(name="d", memory_limit_bytes=9, measured=measured))
    assert priced.load_cost(0).seconds == priced.execute_cost(1).seconds == 1.0
    assert list(priced.unknown_loads) == [1]
    with pytest.raises(DeviceError, match="no load cost for kind 'b'"):
        priced.load_cost(1)
    with pytest.raises(DeviceError, match="no load cost for kind 'b'"):
        _ = priced.least_load_s
    with pytest.raises(DeviceError, match="no execution cost for kind 'a'"):
        _ = priced.execute_s


def test_heat_that_speeds_up_counts_for_the_least_durations():
    device = uniform_device(3, 2.0, 6.0).model_copy(update={"thermal": (ThermalStep(after_s=1, factor=1.5),)})
    priced = timed(uniform_workload(2, 2), device)
    assert not priced.is_plain
    assert np.all(priced.least_execute_s == 4.0)
    assert np.all(priced.execute_s == 6.0)


def test_what_is_held_is_priced_once_and_nothing_is_held_for_nobody():
    workload, device = uniform_workload(2, 2), uniform_device(2, 1.0, 1.0)
    held = timed(workload, device)
    assert timed(workload, device) is held
    assert timed(workload, device.model_copy(update={"name": "other"})) is not held
    gone = ref(held)
    del held
    gc.collect()
    assert gone() is None
