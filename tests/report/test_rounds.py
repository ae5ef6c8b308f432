import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from cidl_sim.core.device import Loader
from cidl_sim.core.errors import MachineError
from cidl_sim.policies.catalog import make_plan
from cidl_sim.report.rounds import LOADED_COLOR, OTHER_ROUND_COLOR, RETAINED_COLOR, draw_rounds
from cidl_sim.simulator.engine import simulate
from tests.conftest import analytic_device, uniform_device, uniform_workload


def trace(policy: str, rounds: int = 5, **fields):
    workload, device = uniform_workload(6, rounds), uniform_device(4, 2, 1, **fields)
    return simulate(workload, device, make_plan(policy, workload, device))


def share_of(color: str, picture) -> float:
    """The share of a picture's pixels that have a colour."""
    return float(np.mean(np.all(np.abs(picture[:, :, :3] - to_rgb(color)) < 0.01, axis=2)))


def drawn(traces, path):
    draw_rounds(traces, path, "title")
    return matplotlib.image.imread(path)


def test_two_plans_are_drawn_under_each_other(tmp_path):
    one = drawn([("plan", trace("spread:2"))], tmp_path / "one.png")
    two = drawn([("plan", trace("spread:2")), ("reference", trace("on_device_sora"))], tmp_path / "two.png")
    assert two.shape[0] > 1.5 * one.shape[0]
    assert two.shape[1] == one.shape[1] > 900


@pytest.mark.parametrize(("policy", "is_retained"), [("spread:2", True), ("spread:0", False)])
def test_retained_blocks_have_a_colour_of_their_own(policy, is_retained, tmp_path):
    picture = drawn([("plan", trace(policy))], tmp_path / "p.png")
    legend_only = drawn([("plan", trace("sequential"))], tmp_path / "s.png")
    assert share_of(LOADED_COLOR, picture) > 0.01
    grown = share_of(RETAINED_COLOR, picture) - share_of(RETAINED_COLOR, legend_only)
    assert (grown > 0.002) == is_retained


def test_loads_for_the_next_round_are_told_apart(tmp_path):
    ahead = drawn([("plan", trace("spread:0"))], tmp_path / "a.png")
    none = drawn([("plan", trace("sequential"))], tmp_path / "n.png")
    assert share_of(OTHER_ROUND_COLOR, ahead) > share_of(OTHER_ROUND_COLOR, none) + 0.001


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_few_rounds_can_be_drawn(rounds, tmp_path):
    assert share_of(LOADED_COLOR, drawn([("plan", trace("spread", rounds))], tmp_path / "p.png")) > 0.01


def test_slow_first_loads_do_not_squeeze_the_later_rounds(tmp_path):
    workload, device = uniform_workload(6, 5), uniform_device(4, 2, 1)
    measured = {"b": device.measured["b"].model_copy(update={"cold_load_s": 500.0})}
    cold = device.model_copy(update={"measured": measured})
    run = simulate(workload, cold, make_plan("spread:2", workload, cold))
    assert share_of(RETAINED_COLOR, drawn([("plan", run)], tmp_path / "p.png")) > 0.01


def test_several_channels_have_a_lane_each(tmp_path):
    assert drawn([("plan", trace("spread", loader=Loader(channels=2)))], tmp_path / "p.png").shape[1] > 900


def test_a_run_of_no_length_can_be_drawn(tmp_path):
    workload, device = uniform_workload(2, 2, weight_bytes=0), analytic_device(1)
    drawn([("empty", simulate(workload, device, make_plan("sequential", workload, device)))], tmp_path / "e.png")


def test_a_picture_that_cannot_be_written_is_an_environment_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MachineError, match="cannot be written"):
        draw_rounds([("plan", trace("spread"))], tmp_path / "file" / "x.png", "title")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
