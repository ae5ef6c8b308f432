"""Fits to published rows of text-to-image models."""

from __future__ import annotations

from pathlib import Path

import pytest

from cidl_sim.core.errors import PublishedError
from cidl_sim.devices.catalog import find_device
from cidl_sim.devices.published import read_published
from cidl_sim.pipelines.catalog import find_workload
from cidl_sim.pipelines.stable_diffusion.phones import FITTED, SLOWED, fitted_device, seconds_of, workload_of
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import makespan_s

ROWS = read_published(Path(__file__).parents[3] / "traces/published/text_to_image.toml")
GROUPS = {"clip": "text_encoder", "unet": "denoiser", "image_decoder": "decoder", "attention": "denoiser"}


@pytest.mark.parametrize("phone", FITTED)
def test_the_fitted_rows_come_out_again(phone: str) -> None:
    device = fitted_device(phone, ROWS)
    for group, (row, model) in FITTED[phone].items():
        assert seconds_of(workload_of(model), device)[GROUPS[group]] == pytest.approx(ROWS[row].seconds, rel=1e-6)


@pytest.mark.parametrize("phone", [*FITTED, *SLOWED])
def test_a_shipped_profile_is_its_fit(phone: str) -> None:
    fitted = fitted_device(phone, ROWS)
    shipped = find_device(fitted.name)
    assert shipped.measured.keys() == fitted.measured.keys()
    for kind, costs in fitted.measured.items():
        assert shipped.measured[kind].exec_s == pytest.approx(costs.exec_s, abs=6e-5)
        assert shipped.measured[kind].flops == pytest.approx(costs.flops or 0, rel=1e-9) or not costs.flops


@pytest.mark.parametrize("name", ["sd-v1.5", "snapfusion", "mobile-diffusion", "sdxl-bf16"])
def test_a_shipped_profile_can_price_every_model(name: str) -> None:
    workload, device = find_workload(name), find_device("iphone-14-pro-images")
    assert makespan_s(workload, device, make_plan("next_block", workload, device)) > 0


def test_five_transformers_are_most_of_stable_diffusions_step() -> None:
    device = fitted_device("iPhone 14 Pro", ROWS)
    with_them, without = (seconds_of(workload_of(name), device)["denoiser"] for name in ("sd-v1.5", "snapfusion-848m"))
    assert without < 0.15 * with_them


def test_a_row_that_is_missing_is_named() -> None:
    rows = {name: row for name, row in ROWS.items() if name != "sd.14_pro.unet"}
    with pytest.raises(PublishedError, match=r"sd\.14_pro\.unet"):
        fitted_device("iPhone 14 Pro", rows)
