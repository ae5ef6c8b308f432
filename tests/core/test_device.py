import pytest

from cidl_sim.core.costs import execute_cost, load_cost
from cidl_sim.core.device import DeviceProfile, Executor, Loader, Measured, ThermalStep, read_device
from cidl_sim.core.errors import DeviceError
from cidl_sim.core.workload import Block

BLOCK = Block(name="b", kind="stdit.pair.fp32", weight_bytes=100, flops=1000, bytes_moved=50)


def device(**fields: object) -> DeviceProfile:
    return DeviceProfile(name="d", memory_limit_bytes=1000, **fields)


def test_the_formulas_of_the_analytic_costs():
    profile = device(
        loader=Loader(latency_s=0.5, bandwidth_bytes_per_s=10),
        executor=Executor(flops_per_s=100, efficiency=0.5, memory_bandwidth_bytes_per_s=2, launch_s=0.25),
    )
    assert load_cost(BLOCK, profile, cold=False).seconds == 0.5 + 10
    assert execute_cost(BLOCK, profile).seconds == 0.25 + max(1000 / 50, 50 / 2)
    assert not load_cost(BLOCK, profile, cold=False).measured


def test_a_measurement_replaces_the_formula_and_a_cold_load_adds_its_difference():
    profile = device(measured={BLOCK.kind: Measured(load_s=2, cold_load_s=5, exec_s=3)})
    assert load_cost(BLOCK, profile, cold=False).seconds == 2
    assert load_cost(BLOCK, profile, cold=True).seconds == 5
    assert execute_cost(BLOCK, profile).seconds == 3


def test_the_measurement_of_an_ancestor_kind_is_scaled_to_the_block():
    measured = {"stdit.pair": Measured(load_s=2, exec_s=3, weight_bytes=50, flops=500)}
    profile = device(measured=measured, loader=Loader(bandwidth_bytes_per_s=10))
    assert load_cost(BLOCK, profile, cold=False).seconds == pytest.approx(4)
    assert execute_cost(BLOCK, profile).seconds == pytest.approx(6)


def test_what_a_measured_executions_bytes_take_scales_by_bytes_and_the_rest_by_flops():
    memory = Executor(memory_bandwidth_bytes_per_s=50)  # a hundred bytes take 2 of the 3 s
    measured = {"stdit.pair": Measured(exec_s=3, flops=500, bytes_moved=100)}
    assert execute_cost(BLOCK, device(measured=measured, executor=memory)).seconds == pytest.approx(1 * 2 + 2 / 2)
    without = BLOCK.model_copy(update={"bytes_moved": 0})
    assert execute_cost(without, device(measured=measured, executor=memory)).seconds == pytest.approx(6)
    assert execute_cost(BLOCK, device(measured=measured)).seconds == pytest.approx(6)


def test_bytes_never_take_longer_than_the_execution_that_moved_them():
    slow = device(
        measured={"stdit.pair": Measured(exec_s=3, flops=500, bytes_moved=100)},
        executor=Executor(memory_bandwidth_bytes_per_s=1),
    )
    assert execute_cost(BLOCK, slow).seconds == pytest.approx(3 / 2)


def test_a_cold_difference_is_scaled_to_the_block_like_its_load():
    profile = device(
        measured={"stdit.pair": Measured(load_s=2, cold_load_s=5, weight_bytes=50)},
        loader=Loader(bandwidth_bytes_per_s=10),
    )
    assert load_cost(BLOCK, profile, cold=True).seconds == pytest.approx(10)


def test_a_kind_without_any_cost_is_an_error_that_names_it():
    with pytest.raises(DeviceError, match=r"stdit\.pair\.fp32"):
        load_cost(BLOCK, device(), cold=False)
    with pytest.raises(DeviceError, match=r"stdit\.pair\.fp32"):
        execute_cost(BLOCK, device())


def test_a_block_without_arithmetic_takes_no_time_on_a_described_executor():
    idle = Block(name="b", kind="k", weight_bytes=0)
    profile = device(executor=Executor(flops_per_s=1))
    assert execute_cost(idle, profile).seconds == 0
    assert load_cost(idle, profile, cold=False).seconds == 0


def test_a_profile_survives_its_file(tmp_path):
    profile = device(
        measured={"stdit.pair": Measured(load_s=0.1, exec_s=0.2)}, thermal=(ThermalStep(after_s=1, factor=0.5),)
    )
    profile.write(tmp_path / "d.toml")
    assert read_device(tmp_path / "d.toml") == profile


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not toml",
        'format = "cidl-device/9"\nname = "d"\nmemory_limit_bytes = 1',
        'format = "cidl-device/1"\nname = "d"\nmemory_limit_bytes = 0',
        'format = "cidl-device/1"\nname = "d"\nmemory_limit_bytes = 1\n[loader]\nlatency_s = -1',
        'format = "cidl-device/1"\nname = "d"\nmemory_limit_bytes = 1\n[loader]\nlatency_s = nan',
        'format = "cidl-device/1"\nname = "d"\nmemory_limit_bytes = 1\n[measured.k]\nexec_s = -1',
        'format = "cidl-device/1"\nname = "d"\nmemory_limit_bytes = 1\n'
        "[[thermal]]\nafter_s = 2\nfactor = 1\n[[thermal]]\nafter_s = 1\nfactor = 1",
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "d.toml").write_text(text)
    with pytest.raises(DeviceError) as caught:
        read_device(tmp_path / "d.toml")
    assert "d.toml" in str(caught.value)
    assert "\n" not in str(caught.value)
