"""The pages of `cidl report`: what they hold, and in headless Chromium that they work from disk."""

from __future__ import annotations

import base64
import json
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from cidl_sim.core.errors import MachineError
from cidl_sim.core.plan import Plan
from cidl_sim.core.trace import Trace
from cidl_sim.policies.catalog import make_plan
from cidl_sim.report.page import timeline_of, write_page
from cidl_sim.report.run_page import Comparison, run_page
from cidl_sim.report.sweep_page import SweepPage
from cidl_sim.report.sweep_plots import draw_sweep
from cidl_sim.simulator.engine import simulate
from cidl_sim.sweep.shown import figures_of
from tests.conftest import analytic_device, uniform_workload
from tests.sweep.small_sweep import small_sweep, trace_of_row
from tests.test_cli import answer_of, assert_refused, call_cidl

WAIT_S = 60


def trace_of(policy: str = "spread", **options: Any) -> Trace:
    workload, device = uniform_workload(6, 5, weight_bytes=10, workspace_bytes=3, flops=4), analytic_device(45)
    return simulate(workload, device, make_plan(policy, workload, device), **options)


def data_of(page: Path) -> dict[str, Any]:
    """The JSON that a page carries."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.fixture(scope="module")
def sweep_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    figures = figures_of(small_sweep().lazy())
    page = SweepPage(figures)
    for index, row in figures.points.items():
        page.add(index, trace_of_row(row))
    write_page(page.page("A small sweep </script><script>alert(1)</script>"), folder / "report.html")
    draw_sweep(figures, page.stalls_s, folder)
    return folder / "report.html"


@pytest.fixture(scope="module")
def one_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "report.html"
    comparison = Comparison({"loading": 100.0, "first load": 120.0}, {"lru": 300.0, "prefix": None})
    write_page(run_page(trace_of(), comparison, ["a note"]), path)
    return path


# What a page holds


@pytest.mark.parametrize("policy", ["spread", "sequential", "lru"])
def test_a_timeline_unpacks_to_the_spans_and_the_memory_of_the_trace(policy):
    trace = trace_of(policy, limit_changes=[(30.0, 30)])
    timeline = timeline_of(trace, "")
    values = np.frombuffer(zlib.decompress(base64.b64decode(timeline["data"])), "<f4").astype(float)
    for lane in timeline["lanes"]:
        columns, values = values[: 4 * lane["count"]].reshape(4, -1), values[4 * lane["count"] :]
        worker = lane["name"].replace("loader", "loader.0")
        spans = [s for s in trace.spans if s.worker == worker and s.operation != "unload"]
        gaps, lengths, steps, kinds = columns
        ends = np.cumsum(gaps + lengths)
        assert ends == pytest.approx([s.end_s for s in spans])
        assert ends - lengths == pytest.approx([s.start_s for s in spans])
        assert np.cumsum(steps).tolist() == [s.visit for s in spans]
        causes = [timeline["causes"][int(kind) - 1] if kind else None for kind in kinds]
        assert causes == [s.cause and s.cause.replace("_", " ") for s in spans]
    times, held = values.reshape(2, -1)
    assert dict(zip(np.cumsum(times), held, strict=True)) == pytest.approx(dict(trace.memory_curve))
    assert timeline["limits"] == [[0.0, 45.0], [30.0, 30.0]]


def test_idle_bars_add_up_to_the_makespan():
    trace = trace_of("sequential")
    totals: dict[str, float] = {}
    for bar in timeline_of(trace, "")["idle"]:
        for worker, seconds in zip(bar["y"], bar["x"], strict=True):
            totals[worker] = totals.get(worker, 0.0) + seconds
    assert totals["executor"] == pytest.approx(trace.makespan_s)


def test_a_trace_without_spans_still_has_a_timeline():
    empty = trace_of().model_copy(update={"spans": ()})
    assert timeline_of(empty, "")["lanes"] == [{"name": "executor", "count": 0}]


def test_a_page_needs_nothing_from_anywhere(sweep_page, one_page):
    for page in (sweep_page, one_page):
        text = page.read_text()
        head = text[: text.index("<script>")]
        assert "default-src 'none'" in head
        assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=(?!\"data:)", text)
        assert page.stat().st_size < 12e6


def test_a_sweeps_page_says_how_many_rows_it_shows_and_has_a_timeline_for_each(sweep_page):
    data = data_of(sweep_page)
    figures = figures_of(small_sweep().lazy())
    assert f"{len(figures.points)} of {small_sweep().height} rows are shown" in data["notes"][0]
    assert set(data["timelines"]) == {str(index) for index in figures.points}
    picked = [
        trace["customdata"]
        for chart in data["charts"]
        for panel in chart["panels"]
        for trace in panel["traces"]
        if "customdata" in trace
    ]
    keys = {key for keys in picked for key in np.ravel(np.array(keys, dtype=object)) if key is not None}
    assert keys <= set(data["timelines"])
    assert [chart["name"] for chart in data["charts"]] == ["pareto", "heat-map", "memory", "regret", "sensitivity"]


def test_a_sweeps_pictures_are_drawn(sweep_page):
    for name in ("heat_map.png", "memory.png", "pareto.png", "regret.png"):
        picture = matplotlib.image.imread(sweep_page.with_name(name))
        assert min(picture.shape[:2]) > 300
        assert len({tuple(pixel) for row in picture[::7, ::7, :3] for pixel in row.round(2)}) > 5
    assert {path.name for path in sweep_page.parent.iterdir()} == {
        "heat_map.png",
        "memory.png",
        "pareto.png",
        "regret.png",
        "report.html",
    }


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MachineError, match="cannot be written"):
        write_page(run_page(trace_of(), Comparison(), []), tmp_path / "file" / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# The command


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    workload, device = tmp_path / "workload.json", tmp_path / "device.toml"
    uniform_workload(4, 3, weight_bytes=10, workspace_bytes=2, flops=3).write(workload)
    analytic_device(40, baseline_bytes=5).write(device)
    return workload, device


@pytest.fixture
def plan(files, tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    assert call_cidl("plan", *files, "--policy", "spread", "-o", path).code == 0
    return path


@pytest.fixture
def trace(files, tmp_path: Path) -> Path:
    path = tmp_path / "trace.json.gz"
    assert call_cidl("simulate", *files, "--policy", "lru", "--trace", path).code == 0
    return path


def test_a_plan_is_simulated_and_shown_beside_bounds_and_policies(plan, files, tmp_path):
    figures = answer_of("report", plan, *files, "-o", tmp_path / "out")
    simulated = answer_of("simulate", *files, "--plan", plan)
    assert (figures["kind"], figures["makespan_s"]) == ("plan", simulated["makespan_s"])
    assert figures["baselines"] == answer_of("plan", *files)["baselines"]
    assert max(figures["bounds"].values()) == Plan.model_validate_json(plan.read_text()).lower_bound_s
    assert figures["files"] == [str(tmp_path / "out" / "report.html")]
    (chart,) = data_of(tmp_path / "out" / "report.html")["charts"]
    assert set(chart["panels"][0]["traces"][0]["y"]) > {"lru", "sequential", "bound: loading"}


def test_the_report_of_a_sweep_has_pictures_a_page_and_what_they_say(files, tmp_path):
    axes = ["--axis", "memory_limit_bytes=30,40", "--axis", "retained=0..3", "--axis", "lookahead=1,deep"]
    swept = answer_of("sweep", *files, *axes, "-o", tmp_path / "results.parquet")
    figures = answer_of("report", tmp_path / "results.parquet", "-o", tmp_path / "out")
    assert (figures["kind"], figures["rows"]) == ("sweep", swept["rows"])
    assert figures["shown_rows"] <= figures["feasible_rows"] <= figures["rows"]
    assert figures["best"][0]["makespan_s"] == min(row["makespan_s"] for row in swept["best"])
    assert {Path(file).name for file in figures["files"]} == {path.name for path in (tmp_path / "out").iterdir()}
    assert {"pareto.png", "memory.png", "heat_map.png", "regret.png"} < {Path(file).name for file in figures["files"]}
    data = data_of(tmp_path / "out" / "report.html")
    best = data["timelines"][str(figures["best"][0]["index"])]
    # What the sweep's compiled code found is what the engine simulates for the page.
    assert best["makespan"] == pytest.approx(figures["best"][0]["makespan_s"])


def test_the_report_of_a_sample_leaves_out_what_needs_equal_settings(files, tmp_path):
    options = ["--axis", "memory_limit_bytes=30..60", "--sample", "random", "--points", "12", "--no-bound"]
    assert call_cidl("sweep", *files, *options, "-o", tmp_path / "results.parquet").code == 0
    figures = answer_of("report", tmp_path / "results.parquet", "-o", tmp_path / "out")
    assert {Path(file).name for file in figures["files"]} == {"pareto.png", "report.html"}
    assert (figures["regrets"], figures["shown_rows"]) == ([], figures["feasible_rows"])
    assert data_of(tmp_path / "out" / "report.html")["notes"][1].startswith("A sample")


def test_a_sweep_of_workloads_that_have_changed_is_refused_and_nothing_is_written(files, tmp_path):
    assert call_cidl("sweep", *files, "-o", tmp_path / "results.parquet").code == 0
    uniform_workload(4, 3, weight_bytes=10, flops=4).write(files[0])
    outcome = call_cidl("report", tmp_path / "results.parquet", "-o", tmp_path / "out")
    assert (outcome.code, outcome.out) == (2, "")
    assert "is not what it was" in outcome.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_names_that_the_catalogs_have_need_not_be_given(tmp_path):
    names = ("opensora-small", "iphone-15-pro")
    assert call_cidl("plan", *names, "--policy", "next_block", "-o", tmp_path / "plan.json").code == 0
    figures = answer_of("report", tmp_path / "plan.json", "-o", tmp_path)
    assert (figures["device"], figures["policy"]) == ("iphone-15-pro", "next_block")


def test_a_trace_of_unknown_origin_is_shown_without_bounds(trace, files, tmp_path):
    figures = answer_of("report", trace, "-o", tmp_path)
    assert (figures["kind"], figures["bounds"], figures["baselines"]) == ("trace", {}, {})
    assert "No bounds" in data_of(tmp_path / "report.html")["notes"][1]
    known = answer_of("report", trace, *files, "-o", tmp_path)
    assert known["baselines"]["lru"] == known["makespan_s"]


def test_people_are_told_where_the_page_is(plan, files, tmp_path):
    assert call_cidl("report", plan, *files, "-o", tmp_path).out.split() == [str(tmp_path / "report.html")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("nowhere.json", ["nowhere.json", "no such file"]),
        ("{plan} {workload}", ["both WORKLOAD and DEVICE"]),
        ("{plan}", ["'uniform'", "'analytic'", "WORKLOAD DEVICE"]),
        ("{plan} opensora-small {device}", ["the plan was made for workload 'uniform'"]),
        ("{trace} opensora-small {device}", ["the trace was made for workload 'uniform'"]),
        ("{trace} --set memory_limit_bytes=3", ["--set goes with"]),
        ("{workload}", ["neither a plan", "nor a trace"]),
        ("{device}", ["device.toml", "not JSON"]),
        ("{plan} {workload} {device} -o {plan}", ["that is a file"]),
        ("{folder} {workload} {device}", ["name their own workloads"]),
        ("{folder}", ["folder"]),
    ],
)
def test_what_is_no_result_is_refused_in_one_line(arguments, words, plan, trace, files, tmp_path):
    (tmp_path / "folder").mkdir()
    workload, device = files
    places = {"plan": plan, "trace": trace, "workload": workload, "device": device, "folder": tmp_path / "folder"}
    parts = arguments.format(**places).split()
    target = [] if "-o" in parts else ["-o", tmp_path / "out"]
    assert_refused(call_cidl("report", *parts, *target), 2, *words)
    assert not (tmp_path / "out").exists()


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium that may not use the network."""
    selenium = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install selenium")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    missing = [name for name, found in (("chromium", chromium), ("chromedriver", driver)) if found is None]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)}: apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1400,1800"):
        options.add_argument(f"--{argument}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield window
    window.quit()


def wait_until(browser: Any, condition: Callable[[], Any]) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, WAIT_S).until(lambda _: condition())


def opened(browser: Any, page: Path) -> None:
    browser.get_log("browser")
    browser.get(page.as_uri())
    wait_until(browser, lambda: browser.execute_script("return document.body.dataset.ready"))


def count(browser: Any, selector: str) -> int:
    return browser.execute_script("return document.querySelectorAll(arguments[0]).length", selector)


def shown(browser: Any) -> str | None:
    """The key of the timeline that is shown."""
    return browser.execute_script("return document.getElementById('timeline').dataset.key ?? null")


def click(browser: Any, target: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", target)
    ActionChains(browser).move_to_element(target).pause(0.2).click().perform()


def assert_timeline_is_drawn(browser: Any) -> None:
    assert count(browser, "#timeline-chart .bars path") > 20
    assert count(browser, "#timeline-chart .scatterlayer .trace") == 3
    assert count(browser, "#idle-chart .bars path") > 2
    assert "makespan" in browser.find_element("id", "timeline-figures").text


@pytest.mark.browser
def test_any_point_picked_in_a_sweeps_page_shows_its_timeline(browser, sweep_page):
    opened(browser, sweep_page)
    for chart in ("pareto", "memory", "regret"):
        assert count(browser, f"#{chart} .scatterlayer .points path") > 2
    assert count(browser, "#heat-map .heatmaplayer image") > 0
    assert count(browser, "#sensitivity .bars path") > 2
    assert_timeline_is_drawn(browser)
    seen = {shown(browser)}
    for chart in ("pareto", "memory", "regret"):
        points = browser.find_elements("css selector", f"#{chart} .scatterlayer .points path")
        before = browser.find_element("id", "timeline-title").text
        for point in (points[0], points[-1]):
            click(browser, point)
            wait_until(browser, lambda: shown(browser) is not None)
            assert_timeline_is_drawn(browser)
            assert browser.find_element("id", "timeline-title").text.startswith(f"row {shown(browser)}: ")
            seen.add(shown(browser))
        assert before != browser.find_element("id", "timeline-title").text
    assert len(seen) > 3
    assert browser.get_log("browser") == []


@pytest.mark.browser
def test_cells_and_rows_of_tables_can_be_picked_and_panels_chosen(browser, sweep_page):
    opened(browser, sweep_page)
    data = data_of(sweep_page)
    (heat,) = (chart for chart in data["charts"] if chart["name"] == "heat-map")
    cells = {key for row in heat["panels"][0]["traces"][1]["customdata"] for key in row if key is not None}
    click(browser, browser.find_element("css selector", "#heat-map .nsewdrag"))
    wait_until(browser, lambda: shown(browser) in cells)
    choice = browser.find_element("css selector", "#memory select")
    before = browser.find_element("css selector", "#memory .scatterlayer").get_attribute("innerHTML")
    choice.find_elements("tag name", "option")[1].click()
    layer = lambda: browser.find_element("css selector", "#memory .scatterlayer").get_attribute("innerHTML")  # noqa: E731
    wait_until(browser, lambda: layer() != before)
    buttons = browser.find_elements("css selector", "#tables button")
    click(browser, buttons[-1])
    wait_until(browser, lambda: shown(browser) == data["tables"][0]["rows"][-1][1])
    assert browser.get_log("browser") == []


@pytest.mark.browser
def test_the_page_of_one_run_shows_timeline_idle_times_and_policies(browser, one_page):
    opened(browser, one_page)
    assert_timeline_is_drawn(browser)
    assert count(browser, "#makespans .bars path") == 4
    assert "Does not fit the memory: prefix" in browser.find_element("id", "makespans").text
    assert browser.get_log("browser") == []


@pytest.mark.browser
def test_zooming_into_a_long_run_draws_its_spans_one_by_one(browser, tmp_path):
    workload, device = uniform_workload(40, 60, weight_bytes=10, flops=4), analytic_device(45)
    trace = simulate(workload, device, make_plan("next_block", workload, device))
    write_page(run_page(trace, Comparison(), []), tmp_path / "long.html")
    opened(browser, tmp_path / "long.html")
    assert 0 < count(browser, "#timeline-chart .bars path") < len(trace.spans)
    assert "zoom in" in browser.execute_script(
        "return document.getElementById('timeline-chart').data.flatMap((t) => t.hovertext ?? []).join()"
    )
    browser.execute_script("Plotly.relayout('timeline-chart', {'xaxis.range[0]': 100, 'xaxis.range[1]': 130})")
    texts = "return document.getElementById('timeline-chart').data.flatMap((t) => t.hovertext ?? []).join()"
    wait_until(browser, lambda: "zoom in" not in browser.execute_script(texts))
    assert browser.get_log("browser") == []
