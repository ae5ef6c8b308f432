"""What an earlier command measured is found again by all that it follows from, and by nothing else."""

from __future__ import annotations

import os

import pytest

from cidl_sim.core.errors import WorkloadError
from cidl_sim.core.workload import Workload
from cidl_sim.pipelines import measured_before
from cidl_sim.pipelines.catalog import measure_workload, parse_name
from cidl_sim.pipelines.measured_before import kept_or_made
from cidl_sim.pipelines.named import named_in, workload_in
from cidl_sim.pipelines.open_sora.family import OPEN_SORA
from tests.conftest import uniform_workload
from tests.pipelines.toy_family import TOY

NAME = "opensora-tiny-32x32-17f-2s"
FOLLOWS = {"pipeline": "p", "sizes": {"width": 8}, "settings": {"steps": 2}}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cidl_sim" / "workloads"


def test_what_was_measured_is_measured_once(cache):
    whole = measure_workload(*parse_name(NAME))
    made: list[Workload] = []

    def make() -> Workload:
        made.append(whole)
        return whole

    found = [kept_or_made(FOLLOWS, make) for _ in range(2)]
    assert made == [whole]
    assert [workload.sha256 for workload in found] == [whole.sha256] * 2
    assert found[0] == found[1]


@pytest.mark.parametrize("other", ["settings", "sizes", "pipeline", "sources", "libraries"])
def test_whatever_it_follows_from_decides(other, monkeypatch):
    kept_or_made(FOLLOWS, lambda: uniform_workload(1, 1))
    follows, made_by = dict(FOLLOWS), dict(measured_before._made_by())
    if other in follows:
        follows[other] = {"another": 1}
    else:
        made_by["sources" if other == "sources" else "torch"] = "another"
    monkeypatch.setattr(measured_before, "_made_by", lambda: made_by)
    assert len(kept_or_made(follows, lambda: uniform_workload(2, 1)).visits) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "x"}', "\0\xff"])
def test_a_file_that_cannot_be_read_is_made_again(content, cache):
    kept_or_made(FOLLOWS, lambda: uniform_workload(1, 1))
    (file,) = cache.iterdir()
    file.write_text(content)
    assert len(kept_or_made(FOLLOWS, lambda: uniform_workload(2, 1)).visits) == 2
    assert kept_or_made(FOLLOWS, lambda: uniform_workload(3, 1)) == uniform_workload(2, 1)


def test_a_file_that_was_edited_is_not_believed(cache):
    workload = uniform_workload(1, 1)
    kept_or_made(FOLLOWS, lambda: workload)
    (file,) = cache.iterdir()
    size = f'"weight_bytes":{workload.visits[0].block.weight_bytes}'
    edited = file.read_text().replace(size, '"weight_bytes":7')
    assert edited != file.read_text()
    file.write_text(edited)
    assert kept_or_made(FOLLOWS, lambda: workload) == workload
    assert kept_or_made(FOLLOWS, lambda: uniform_workload(2, 1)) == workload


def test_a_cache_that_cannot_be_written_takes_nothing_away(cache):
    cache.parent.parent.write_text("a file")
    assert kept_or_made(FOLLOWS, lambda: uniform_workload(1, 1)) == uniform_workload(1, 1)


def test_those_go_that_were_read_the_longest_time_ago(cache, monkeypatch):
    monkeypatch.setattr(measured_before, "MOST_FILES", 2)
    for number, when in ((1, 300), (2, 100)):
        kept_or_made({"number": number}, lambda: uniform_workload(1, 1))
        (file,) = (path for path in cache.iterdir() if path.stat().st_mtime > 1000)
        os.utime(file, (when, when))
        oldest = file
    kept_or_made({"number": 3}, lambda: uniform_workload(1, 1))
    assert len(list(cache.iterdir())) == 2
    assert not oldest.exists()


def test_a_family_of_the_users_own_is_measured_by_each_command(cache):
    workload_in.cache_clear()
    named_in(TOY, "toy-16r-2s")
    assert not cache.exists()
    named_in(OPEN_SORA, NAME)
    assert len(list(cache.iterdir())) == 1


def test_an_unknown_name_leaves_nothing(cache):
    with pytest.raises(WorkloadError):
        named_in(OPEN_SORA, "opensora-tiny-1x1-0f")
    assert not cache.exists()
