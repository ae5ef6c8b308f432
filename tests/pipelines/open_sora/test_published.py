"""The published rows, the fit to five of them, and the predictions of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from cidl_sim.core.errors import InputError, PublishedError
from cidl_sim.devices.catalog import find_device
from cidl_sim.devices.published import PublishedRow, read_published, row_of
from cidl_sim.pipelines.open_sora.iphone_fit import FITTED_ROWS, fit_iphone_15_pro
from cidl_sim.pipelines.open_sora.predictions import PREDICTIONS, compare_published, denoiser_alone
from cidl_sim.validation.disagreements import disagreements, load_rates

FOLDER = Path(__file__).parents[3] / "traces/published"
ROW = '[[rows]]\nid = "a"\nwhat = "w"\nvalue = 1\nunit = "s"\ndevice = "d"\nsource = "s"\n'


@pytest.fixture(scope="module")
def rows():
    return read_published(*sorted(FOLDER.glob("*.toml")))


@pytest.fixture(scope="module")
def phone():
    return find_device("iphone-15-pro")


@pytest.fixture(scope="module")
def compared(rows, phone):
    return compare_published(rows, phone)


def test_every_row_has_a_source_and_says_what_is_not_printed(rows):
    assert all(row.source for row in rows.values())
    for row in rows.values():
        given = row.conditions
        # A time of STDiT or of the whole pipeline means little without its resolution and its frames.
        if row.id.startswith(("lpl15", "ci_dl", "ci.", "components.stdit", "components.vae")):
            assert given.resolution or "resolution" in given.not_printed
            assert given.frames or "frames" in given.not_printed


def test_the_totals_belong_to_the_stdit_times_they_are_paired_with(rows):
    for size in ("192", "256"):
        rest = [rows[f"{t}.{size}.total"].seconds - rows[f"{t}.{size}.stdit"].seconds for t in ("lpl15", "ci_dl")]
        assert rest[0] == pytest.approx(rest[1], rel=0.01)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("format = 'cidl-published/2'\n" + ROW, "format"),
        ("format = 'cidl-published/1'\n" + ROW.replace("value = 1", "value = -1"), r"rows\.0\.value"),
        ("format = 'cidl-published/1'\n" + ROW.replace('unit = "s"', 'unit = "hours"'), r"rows\.0\.unit"),
        ("format = 'cidl-published/1'\n" + ROW + ROW, r"rows\.1\.id.*'a' appears twice"),
        ("format = 'cidl-published/1'\n" + ROW + "surprise = 1\n", r"rows\.0\.surprise"),
        (
            "format = 'cidl-published/1'\n" + ROW + "conditions = { steps = 3, not_printed = ['steps'] }\n",
            r"rows\.0\.conditions.*steps is given",
        ),
        ("format = ", "not TOML"),
    ],
)
def test_bad_data_is_one_line_that_names_file_and_field(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(PublishedError, match=message) as caught:
        read_published(path)
    assert isinstance(caught.value, InputError)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_id_in_two_files_and_a_missing_file_are_named(tmp_path):
    for name in ("a.toml", "b.toml"):
        (tmp_path / name).write_text("format = 'cidl-published/1'\n" + ROW)
    with pytest.raises(PublishedError, match=r"b\.toml.*appears twice"):
        read_published(tmp_path / "a.toml", tmp_path / "b.toml")
    with pytest.raises(PublishedError, match=r"c\.toml"):
        read_published(tmp_path / "c.toml")


def test_milliseconds_become_seconds_and_a_factor_is_no_time():
    fields = {"id": "a", "what": "w", "value": 20, "device": "d", "source": "s"}
    assert PublishedRow(**fields, unit="ms").seconds == 0.02
    with pytest.raises(PublishedError, match="no time"):
        _ = PublishedRow(**fields, unit="x").seconds


def test_the_shipped_profile_is_what_the_fit_gives(rows, phone):
    blank = phone.model_copy(
        update={
            "loader": phone.loader.model_copy(update={"bandwidth_bytes_per_s": 1.0}),
            "executor": phone.executor.model_copy(update={"efficiency": 1.0}),
            "measured": {},
        }
    )
    assert fit_iphone_15_pro(rows, blank).model_dump() == phone.model_dump()


def test_the_simulation_gives_the_fitted_rows_back(compared):
    fitted = [c for c in compared if c.role == "fitted"]
    assert {c.row.id for c in fitted} == set(FITTED_ROWS)
    for c in fitted:
        assert c.predicted == pytest.approx(c.published, rel=3e-4)


def test_rows_that_contradict_the_fits_assumption_are_refused(rows, phone):
    impossible = rows | {"t5.ci": rows["t5.ci"].model_copy(update={"value": 20.0})}
    with pytest.raises(PublishedError, match="does not hide"):
        fit_iphone_15_pro(impossible, phone)
    impossible = rows | {"ci_dl.256.stdit": rows["ci_dl.256.stdit"].model_copy(update={"value": 1200.0})}
    with pytest.raises(PublishedError, match="does not hide"):
        fit_iphone_15_pro(impossible, phone)
    impossible = rows | {"components.vae": rows["components.vae"].model_copy(update={"value": 1.0})}
    with pytest.raises(PublishedError, match="leave nothing"):
        fit_iphone_15_pro(impossible, phone)


def test_a_row_that_is_missing_is_named(rows, phone):
    without = {key: row for key, row in rows.items() if key != "t5.ci"}
    with pytest.raises(PublishedError, match=r"t5\.ci"):
        fit_iphone_15_pro(without, phone)
    with pytest.raises(PublishedError, match="nonsense"):
        row_of(rows, "nonsense")


def test_every_row_of_on_device_sora_is_predicted_except_the_other_devices_headlines(compared):
    left_out = {c.row.id for c in compared if "On-device Sora" in c.row.source and c.predicted is None}
    assert left_out == {"claim.a6000", "claim.h100"}


def test_every_row_appears_and_what_is_not_predicted_has_no_error(rows, compared):
    assert [*dict.fromkeys(c.row.id for c in compared)] == list(rows)
    assert all((c.error is None) == (c.predicted is None) for c in compared)
    assert len([c for c in compared if c.predicted is not None]) == len(PREDICTIONS)


def test_rows_without_a_printed_resolution_say_what_was_assumed(compared):
    for c in compared:
        if c.predicted is not None and "resolution" in c.row.conditions.not_printed and c.role == "predicted":
            assert c.assumed


def test_retention_saves_only_the_exposed_load_of_the_first_pair(compared, phone):
    gains = [c.predicted for c in compared if c.row.id == "dl.gain"]
    assert gains == pytest.approx([29 * phone.measured["stdit.pair"].load_s])


def test_merged_steps_exist_at_one_resolution_only():
    assert [stage.rounds for stage in denoiser_alone("256x256", merged=10, plain=20).stages] == [10, 20]
    with pytest.raises(PublishedError, match="192x192"):
        denoiser_alone("192x192", merged=10, plain=20)


def test_disagreements_are_between_different_figures(rows):
    found = disagreements(rows)
    assert all(d.spread > 0.02 for d in found)
    t5 = next(d for d in found if d.what == "T5 without a technique")
    assert [value for _, value in t5.figures] == [110.505, 164]
    assert t5.spread == pytest.approx(164 / 110.505 - 1)


def test_load_rates_are_bytes_over_seconds(rows):
    rates = {rate.row.id: rate.bytes_per_s for rate in load_rates(rows)}
    assert rates["dictus.iphone-15-pro.load"] == pytest.approx(1.8e9 / 2.079)
    assert "dictus.iphone-15-pro.prefill1" not in rates
