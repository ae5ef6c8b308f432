"""A device with one figure changed: what was measured follows, and what makes no sense is refused."""

from __future__ import annotations

import pytest

from cidl_sim.core.device import DeviceProfile, Executor, Loader, Measured
from cidl_sim.core.errors import DeviceError
from cidl_sim.core.what_if import with_value


def device(**fields: object) -> DeviceProfile:
    return DeviceProfile(name="d", memory_limit_bytes=1000, **fields)


@pytest.mark.parametrize(
    ("key", "factor", "attribute", "expected"),
    [
        ("loader.bandwidth_bytes_per_s", 2, "load_s", 2.0),
        ("executor.flops_per_s", 2, "exec_s", 1.5),
        ("executor.efficiency", 0.5, "exec_s", 6.0),
    ],
)
def test_changing_a_parameter_scales_the_measured_costs_it_governs(key, factor, attribute, expected):
    profile = device(
        loader=Loader(bandwidth_bytes_per_s=25),
        executor=Executor(flops_per_s=300),
        measured={"k": Measured(load_s=4, exec_s=3, weight_bytes=100, flops=1000)},
    )
    section, field = key.split(".")
    changed = with_value(profile, key, getattr(getattr(profile, section), field) * factor)
    assert getattr(changed.measured["k"], attribute) == pytest.approx(expected)
    assert changed.measured["k"].weight_bytes == 100


def test_of_a_measured_execution_what_its_bytes_take_follows_the_memorys_bandwidth():
    profile = device(
        executor=Executor(flops_per_s=300, memory_bandwidth_bytes_per_s=100),
        measured={"k": Measured(exec_s=3, flops=1000, bytes_moved=100)},
    )
    halved = with_value(profile, "executor.memory_bandwidth_bytes_per_s", 50)
    assert halved.measured["k"].exec_s == pytest.approx(2 + 2)
    faster = with_value(profile, "executor.flops_per_s", 600)
    assert faster.measured["k"].exec_s == pytest.approx(1 + 1)


def test_figures_of_measured_kinds_can_be_set_although_kinds_contain_dots():
    profile = device(measured={"a.b.c": Measured(load_s=1)})
    assert with_value(profile, "measured.a.b.c.load_s", 2.5).measured["a.b.c"].load_s == 2.5


@pytest.mark.parametrize(
    "key", ["nonsense", "loader.nonsense", "measured.k.nonsense", "provenance.device", "format", "", "a.b.c", "loader."]
)
def test_an_unknown_figure_is_refused(key):
    with pytest.raises(DeviceError):
        with_value(device(measured={"k": Measured()}), key, 1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("memory_limit_bytes", True),
        ("executor.flops_per_s", False),
        ("memory_limit_bytes", -1),
        ("memory_limit_bytes", "x"),
        ("loader.channels", 0),
        ("noise.load", -0.1),
    ],
)
def test_an_impossible_value_is_refused(key, value):
    with pytest.raises(DeviceError, match=key.rpartition(".")[2]):
        with_value(device(), key, value)
