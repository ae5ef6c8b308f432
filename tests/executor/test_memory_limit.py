"""Limits that the kernel holds, and what is left where it holds none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cidl_sim.executor import memory_limit
from cidl_sim.executor.memory_limit import Charged, MemoryGroup, PeakMemory, can_enforce, charged_to_this_process

MIB = 1 << 20
needs_enforcement = pytest.mark.skipif(
    not can_enforce(), reason="this machine gives no memory limit that the kernel enforces (can_enforce() is False)"
)


def run_in(group: MemoryGroup, *lines: str) -> subprocess.CompletedProcess[str]:
    """Run a Python script inside the group; `charged` is what the group says from inside."""
    start = ["import json", "from cidl_sim.executor.memory_limit import *", "charged = charged_to_this_process()"]
    return subprocess.run(
        group.command([sys.executable, "-c", "\n".join([*start, *lines])]),
        env={**os.environ, **group.environment()},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def said(child: subprocess.CompletedProcess[str]) -> dict[str, int | None]:
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


@needs_enforcement
def test_a_child_beyond_the_limit_is_killed_and_the_group_says_so():
    with MemoryGroup(192 * MIB) as group:
        child = run_in(group, f"held = b'x' * {1024 * MIB}", "print('survived')")
        assert child.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
        assert child.stdout == ""
        # A scope of systemd is gone with its last process, and its counters with it.
        assert group.was_killed_by_limit() or group.enforced_by == "systemd-scope"


@needs_enforcement
def test_a_child_within_the_limit_survives_and_reads_its_limit_and_its_peak():
    with MemoryGroup(512 * MIB) as group:
        child = said(
            run_in(
                group,
                f"held = b'x' * {64 * MIB}",
                "print(json.dumps({'limit': charged.limit_bytes(), 'peak': charged.peak_bytes(),",
                "  'now': charged.unreclaimable_bytes(), 'baseline': charged.baseline_bytes()}))",
            )
        )
        assert not group.was_killed_by_limit()
    assert child["limit"] == 512 * MIB
    # Two readings of a live counter: between them the kernel may give back a few pages that it charged in advance.
    assert 64 * MIB < child["now"] <= child["baseline"] + 1 * MIB
    assert child["peak"] is None or 64 * MIB < child["peak"] <= 512 * MIB


@needs_enforcement
def test_a_child_killed_by_somebody_else_was_not_killed_by_its_limit():
    with MemoryGroup(512 * MIB) as group:
        child = run_in(group, "import os, signal", "os.kill(os.getpid(), signal.SIGKILL)")
        assert child.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
        assert not group.was_killed_by_limit()


@needs_enforcement
def test_preparing_memory_pushes_out_page_cache_and_resets_the_peak():
    with MemoryGroup(512 * MIB) as group:
        child = said(
            run_in(
                group,
                f"held = b'x' * {128 * MIB}",
                "del held",
                "before = charged.peak_bytes()",
                f"prepare_memory(charged, {256 * MIB})",
                "after = charged.peak_bytes()",
                "print(json.dumps({'before': before, 'after': after, 'can_reset': charged.reset_peak()}))",
            )
        )
    # Version 2 tells a peak since Linux 5.19 and resets it since 6.12.
    if child["before"] is not None:
        assert child["before"] > 128 * MIB
        assert (child["after"] < 128 * MIB) == child["can_reset"]


@needs_enforcement
def test_preparing_memory_never_asks_for_more_than_the_limit_leaves():
    with MemoryGroup(256 * MIB) as group:
        child = said(
            run_in(
                group,
                f"prepare_memory(charged, {1 << 40})",
                "print(json.dumps({'now': charged.unreclaimable_bytes()}))",
            )
        )
        assert not group.was_killed_by_limit()
    assert child["now"] < 256 * MIB


@needs_enforcement
def test_page_cache_is_not_counted_as_needed(tmp_path):
    file = tmp_path / "cached"
    file.write_bytes(bytes(64 * MIB))
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with MemoryGroup(512 * MIB) as group:
        child = said(
            run_in(
                group,
                "before = charged.unreclaimable_bytes()",
                f"file = open({str(file)!r}, 'rb')",
                f"while file.read({MIB}): pass",
                "print(json.dumps({'grown': charged.unreclaimable_bytes() - before}))",
            )
        )
    assert child["grown"] < 16 * MIB


def test_a_group_without_a_limit_limits_nothing():
    with MemoryGroup(None) as group:
        child = said(
            run_in(
                group,
                f"held = b'x' * {64 * MIB}",
                f"prepare_memory(charged, {8 * MIB})",
                "print(json.dumps({'limit': charged.limit_bytes()}))",
            )
        )
    assert child["limit"] is None


@needs_enforcement
def test_the_group_is_removed_at_the_end():
    with MemoryGroup(64 * MIB) as group:
        folder = group.folder
        assert group.enforced_by == "systemd-scope" if folder is None else folder.is_dir()
    assert folder is None or not folder.exists()


@needs_enforcement
def test_a_group_is_removed_although_its_last_process_takes_a_moment_to_leave():
    with MemoryGroup(64 * MIB) as group:
        if group.folder is None:
            pytest.skip("a scope of systemd is removed by systemd")
        leaving = subprocess.Popen(group.command(["sleep", "0.3"]))
        while not (group.folder / "cgroup.procs").read_text().split() and leaving.poll() is None:
            pass
    assert not group.folder.exists()
    leaving.wait()


# Where nothing enforces a limit


@pytest.fixture
def nothing_enforces(monkeypatch: pytest.MonkeyPatch) -> None:
    for attempt in ("_enter_v2", "_enter_v1", "_enter_scope"):
        monkeypatch.setattr(MemoryGroup, attempt, lambda group: False)


def test_without_any_mechanism_a_limit_is_only_accounted(nothing_enforces):
    with MemoryGroup(64 * MIB) as group:
        assert group.enforced_by == "accounting"
        assert group.folder is None
        assert group.command(["true", "x"]) == ["true", "x"]
        assert not group.was_killed_by_limit()
        child = said(
            run_in(
                group,
                f"held = b'x' * {128 * MIB}",
                f"prepare_memory(charged, {8 * MIB})",
                "print(json.dumps({'limit': charged.limit_bytes(), 'peak': charged.peak_bytes(),",
                "  'by': charged.enforced_by, 'can_reset': charged.reset_peak()}))",
            )
        )
        assert not group.was_killed_by_limit()
    assert child == {"limit": None, "peak": None, "by": "accounting", "can_reset": False}


def test_without_any_mechanism_the_machine_cannot_enforce(nothing_enforces):
    assert not can_enforce()


def test_mechanisms_are_tried_in_order_of_preference(monkeypatch):
    tried: list[str] = []
    for attempt in ("_enter_scope", "_enter_v1", "_enter_v2"):
        monkeypatch.setattr(MemoryGroup, attempt, lambda group, attempt=attempt: tried.append(attempt))
    with MemoryGroup(64 * MIB):
        pass
    assert tried == ["_enter_v2", "_enter_v1", "_enter_scope"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process what it holds, in /proc")
def test_what_is_only_accounted_still_knows_this_process():
    charged = Charged("accounting", None)
    before = charged.unreclaimable_bytes()
    held = bytearray(b"x" * 64 * MIB)
    assert charged.unreclaimable_bytes() >= before + len(held) // 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ("accounting", None)),
        ("accounting:", ("accounting", None)),
        ("cgroup-v1:/groups/a", ("cgroup-v1", Path("/groups/a"))),
        ("cgroup-v2:/groups/a:b", ("cgroup-v2", Path("/groups/a:b"))),
        ("cgroup-v2:", ("accounting", None)),
    ],
)
def test_a_child_finds_its_group_in_its_environment(monkeypatch, value, expected):
    if value is None:
        monkeypatch.delenv(memory_limit.GROUP_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(memory_limit.GROUP_VARIABLE, value)
    charged_to_this_process.cache_clear()
    try:
        charged = charged_to_this_process()
    finally:
        charged_to_this_process.cache_clear()
    assert (charged.enforced_by, charged.folder) == expected


@pytest.mark.parametrize(
    ("version", "files", "limit", "peak", "unreclaimable", "baseline"),
    [
        (
            "cgroup-v1",
            {
                "memory.limit_in_bytes": "1000\n",
                "memory.max_usage_in_bytes": "900\n",
                "memory.usage_in_bytes": "800\n",
                "memory.stat": "cache 500\nshmem 200\nmapped_file 50\n",
            },
            1000,
            900,
            800 - (500 - 200),
            800 - (500 - 200) + 50,
        ),
        (
            "cgroup-v2",
            {
                "memory.max": "1000\n",
                "memory.peak": "900\n",
                "memory.current": "800\n",
                "memory.stat": "anon 300\nfile 500\nshmem 200\nfile_mapped 50\n",
            },
            1000,
            900,
            800 - (500 - 200),
            800 - (500 - 200) + 50,
        ),
        (
            "cgroup-v2",
            {"memory.max": "max\n", "memory.current": "800\n", "memory.stat": "file 0\nshmem 0\nfile_mapped 0\n"},
            None,
            None,
            800,
            800,
        ),
    ],
    ids=["version 1", "version 2", "version 2 without limit or peak"],
)
def test_a_group_is_read_from_the_files_of_its_version(tmp_path, version, files, limit, peak, unreclaimable, baseline):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    charged = Charged(version, tmp_path)
    assert charged.limit_bytes() == limit
    assert charged.peak_bytes() == peak
    assert charged.unreclaimable_bytes() == unreclaimable
    assert charged.baseline_bytes() == baseline


def test_the_largest_number_of_version_1_is_no_limit(tmp_path):
    (tmp_path / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert Charged("cgroup-v1", tmp_path).limit_bytes() is None


@pytest.mark.parametrize(("version", "file"), [("cgroup-v1", "memory.oom_control"), ("cgroup-v2", "memory.events")])
@pytest.mark.parametrize("kills", [0, 2])
def test_a_kill_is_read_from_the_counter_of_the_version(tmp_path, version, file, kills):
    (tmp_path / file).write_text(f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n")
    group = MemoryGroup(1, enforced_by=version, folder=tmp_path)
    assert group.was_killed_by_limit() == (kills > 0)


def test_the_needed_peak_leaves_out_what_the_kernel_could_drop(tmp_path):
    def kernel_says(peak: int, cache: int) -> None:
        (tmp_path / "memory.usage_in_bytes").write_text(str(peak))
        (tmp_path / "memory.max_usage_in_bytes").write_text(str(peak))
        # 30 of the mapped bytes are the arena's, 20 a library's.
        (tmp_path / "memory.stat").write_text(f"cache {cache}\nshmem 30\nmapped_file 50\n")

    kernel_says(500, 100)
    peak = PeakMemory(Charged("cgroup-v1", tmp_path))
    kernel_says(900, 150)
    assert peak.look() == 900 - (150 - 30 - 20)
    assert (tmp_path / "memory.max_usage_in_bytes").read_text() == "0"
    kernel_says(600, 60)
    assert peak.look() == 590
    assert peak.needed_bytes == 800
    assert peak.charged_bytes() == 900


@needs_enforcement
def test_a_peak_between_two_looks_is_seen():
    with MemoryGroup(None) as group:
        child = run_in(
            group,
            "peak = PeakMemory(charged)",
            f"large = bytearray({64 * MIB})",
            "del large",
            "first = peak.look()",
            "print(json.dumps([peak.start_bytes, first, peak.look()]))",
        )
    start, first, second = said(child)
    assert first - start > 60 * MIB
    assert second - start < 30 * MIB


def test_without_a_group_it_is_the_peak_of_the_process(monkeypatch):
    peak = PeakMemory(Charged("accounting", None))
    if not peak.start_bytes:
        pytest.skip("this system does not tell the peak of a process")
    large = bytearray(64 * MIB)
    del large
    assert (peak.look() or 0) - peak.start_bytes > 30 * MIB
    assert peak.charged_bytes() is None
    monkeypatch.setattr(memory_limit, "_reset_peak_resident", lambda: False)
    assert PeakMemory(Charged("accounting", None)).look() is None
