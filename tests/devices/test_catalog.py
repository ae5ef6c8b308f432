import tomllib

import pytest

from cidl_sim.core.errors import DeviceError
from cidl_sim.devices.catalog import find_device, shipped_devices, this_machine_file
from cidl_sim.pipelines.catalog import find_workload
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import makespan_s


@pytest.mark.parametrize("name", shipped_devices())
def test_every_shipped_profile_reads_and_carries_its_name(name):
    assert find_device(name).name == name


@pytest.mark.parametrize("name", shipped_devices())
def test_every_figure_of_a_shipped_profile_has_a_source(name):
    data = tomllib.loads(shipped_devices()[name].read_text())
    sources = data["provenance"]["figures"]
    given = {key for key in data if key not in ("format", "name", "loader", "executor", "measured", "provenance")}
    given |= {f"{section}.{key}" for section in ("loader", "executor") for key in data[section]}
    # The source of a kind's costs covers each of them, and the size they belong to.
    given |= {f"measured.{kind}" for kind in data.get("measured", {})}
    assert given <= set(sources)
    costs = {f"measured.{kind}.{key}" for kind, figures in data.get("measured", {}).items() for key in figures}
    assert set(sources) <= given | costs, "a source for a figure that is not there"
    assert all(len(figure["source"]) > 10 for figure in sources.values())
    assert data["provenance"]["device"]
    assert data["provenance"]["os"]


@pytest.mark.parametrize("name", shipped_devices())
def test_no_shipped_profile_claims_a_measurement_of_ours(name):
    assert all(figure.mark != "measured" for figure in find_device(name).provenance.figures.values())


def test_phones_without_figures_of_their_own_follow_the_iphone_15_pro():
    phone = find_device("iphone-15-pro")
    for name in ("iphone-13-pro", "iphone-14-pro-max", "iphone-17-pro", "ipad-pro-m2"):
        other = find_device(name)
        slower = phone.executor.flops_per_s / other.executor.flops_per_s
        assert other.executor.efficiency == phone.executor.efficiency
        assert other.loader.bandwidth_bytes_per_s == phone.loader.bandwidth_bytes_per_s
        for kind, costs in phone.measured.items():
            copied = other.measured[kind]
            assert (copied.load_s, copied.cold_load_s) == (costs.load_s, costs.cold_load_s)
            assert copied.exec_s == pytest.approx(costs.exec_s * slower, rel=1e-3)


@pytest.mark.parametrize("name", shipped_devices())
def test_every_shipped_profile_can_run_the_pipeline(name):
    workload, device = find_workload("opensora-v1.2-256x256-68f-lpl15"), find_device(name)
    assert makespan_s(workload, device, make_plan("on_device_sora", workload, device)) > 0


def test_the_phone_is_the_published_one():
    phone = find_device("iphone-15-pro")
    assert phone.memory_limit_bytes == 3_300_000_000
    assert phone.executor.flops_per_s == 2.15e12


def test_an_unknown_device_lists_the_known_ones():
    with pytest.raises(DeviceError, match="iphone-15-pro"):
        find_device("nonsense")


def test_this_machine_exists_only_once_it_was_measured(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DeviceError, match="not been measured"):
        find_device("this-machine")
    find_device("iphone-15-pro").write(this_machine_file())
    assert find_device("this-machine").name == "iphone-15-pro"
