import pytest

from cidl_sim.core.errors import DeviceError
from cidl_sim.devices.catalog import find_device, shipped_devices, this_machine_file


@pytest.mark.parametrize("name", shipped_devices())
def test_every_shipped_profile_reads_and_carries_its_name(name):
    assert find_device(name).name == name


@pytest.mark.parametrize("name", shipped_devices())
def test_every_figure_of_a_shipped_profile_has_a_source(name):
    device = find_device(name)
    figures = device.provenance.figures
    given = {"memory_limit_bytes", "baseline_bytes"}
    for section in ("loader", "executor"):
        given |= {f"{section}.{key}" for key in getattr(device, section).model_fields_set - {"channels", "launch_s"}}
    given |= {f"measured.{kind}" for kind in device.measured}
    assert given <= set(figures)


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
