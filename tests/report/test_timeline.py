import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest

from cidl_sim.core.errors import MachineError
from cidl_sim.policies.catalog import make_plan
from cidl_sim.report.timeline import draw_bars, draw_timelines
from cidl_sim.simulator.engine import simulate
from tests.conftest import analytic_device, uniform_device, uniform_workload


def trace(policy: str = "spread"):
    workload, device = uniform_workload(6, 5), uniform_device(4, 2, 1)
    return simulate(workload, device, make_plan(policy, workload, device))


def test_two_traces_make_one_picture_taller_than_one(tmp_path):
    draw_timelines([("simulated", trace())], tmp_path / "one.png")
    draw_timelines([("simulated", trace()), ("measured", trace("next_block"))], tmp_path / "two.png", "title")
    one, two = (matplotlib.image.imread(tmp_path / name) for name in ("one.png", "two.png"))
    assert two.shape[0] > 1.5 * one.shape[0]
    # Something was drawn: loads and executions in the colour of their group.
    assert len({tuple(pixel) for row in two[::7, ::7, :3] for pixel in row.round(2)}) > 5


def test_a_run_of_no_length_can_be_drawn(tmp_path):
    workload, device = uniform_workload(2, 2, weight_bytes=0), analytic_device(1)
    empty = simulate(workload, device, make_plan("sequential", workload, device))
    draw_timelines([("empty", empty)], tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 0


def test_a_picture_that_cannot_be_written_is_an_environment_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MachineError, match="cannot be written"):
        draw_timelines([("simulated", trace())], tmp_path / "file" / "x.png")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("length", [1e-6, 0.02, 0.3])
def test_no_bar_is_lost_however_short(length):
    figure, axes = plt.subplots(figsize=(6, 1), dpi=130)
    axes.set_axis_off()
    axes.set_xlim(0, 100)
    draw_bars(axes, 0, [(1 + 2.37 * i, length) for i in range(40)], ["#0072B2"] * 40, 100)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())
    plt.close(figure)
    is_bar = pixels[pixels.shape[0] // 2, :, 0] < 150
    assert np.count_nonzero(np.diff(is_bar.astype(int)) == 1) == 40
