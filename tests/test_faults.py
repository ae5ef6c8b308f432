"""Real runs that must fail: each leaves the documented exit code, one readable line and nothing half written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from cidl_sim.core.feasibility import largest_need
from cidl_sim.core.plan import read_plan
from cidl_sim.core.trace import read_trace
from cidl_sim.executor.arena import PAGE, Arena
from cidl_sim.executor.memory_limit import can_enforce
from cidl_sim.executor.saved_run import save_run
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.catalog import find_workload
from cidl_sim.policies.catalog import make_plan
from tests.conftest import analytic_device
from tests.in_process import run_jobs_here
from tests.test_cli import ROOM_FOR_THE_PROCESS, TINY, Outcome, answer_of, assert_refused, call_cidl

BLOCK = "stdit.01"


@pytest.fixture(autouse=True)
def own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Temporary files and the profile of this machine go to folders of the test's own."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> Path:
    """A copy of the tiny store, opened (so verified) once."""
    shutil.copytree(tiny_store, tmp_path / "store")
    BlockStore.open(tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A plan that a real run of the tiny model can follow."""
    return plan_of(TINY, tmp_path)


def plan_of(workload: str, folder: Path, *, baseline_bytes: int = ROOM_FOR_THE_PROCESS, room: int = 10_000_000) -> Path:
    """The plan of `cidl plan` for a device with `room` bytes beside its baseline."""
    device, plan = folder / "device.toml", folder / "plan.json"
    analytic_device(baseline_bytes + room, baseline_bytes=baseline_bytes).write(device)
    answer_of("plan", workload, device, "--policy", "next_block", "-o", plan)
    return plan


def run_arguments(plan: Path, store: Path, folder: Path, prompt: str = "a fox") -> list[str]:
    """A run that writes out/video.mp4 and out/trace.json in `folder`."""
    out = folder / "out"
    files = ["--trace", str(out / "trace.json"), "-o", str(out / "video.mp4")]
    return ["run", "--plan", str(plan), "--store", str(store), "--prompt", prompt, *files]


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what the worker refuses: how errors come out of its process `test_job.py` and the kill below say."""
    run_jobs_here(monkeypatch)


def assert_run_failed(outcome: Outcome, code: int, folder: Path, *words: str) -> None:
    """As documented: nothing on standard output, the reason in the last line, no file that was not there before.

    Before the reason, progress may have been reported.
    """
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    reason = outcome.err.splitlines()[-1]
    assert reason.startswith("cidl: ")
    assert outcome.err.count("cidl: ") == 1
    for word in words:
        assert word in reason
    assert not (folder / "out" / "video.mp4").is_file()
    assert left_behind(folder) == []


def left_behind(folder: Path) -> list[Path]:
    """Temporary files and folders of this package, and half-written files beside the video."""
    # Others (PyTorch) make folders of their own there.
    found = list((folder / "temporary").glob("cidl-*"))
    return found + (list((folder / "out").glob(".*")) if (folder / "out").is_dir() else [])


# Stores


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def alter_one_byte(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        last = opened.read(1)[0]
        opened.seek(-1, os.SEEK_END)
        opened.write(bytes([last ^ 1]))


def remove(file: Path) -> None:
    file.unlink()


def make_unreadable(file: Path) -> None:
    # Root may read whatever its mode says; a link to itself nobody can follow.
    file.unlink()
    file.symlink_to(file)


def replace_by_another_block(file: Path) -> None:
    shutil.copyfile(file.with_name("stdit.02.safetensors"), file)


def alter_header(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'"F32"', b'"I32"', 1))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "truncated"),
        (alter_one_byte, "altered"),
        (alter_header, "altered"),
        (replace_by_another_block, "altered"),
        (remove, "missing"),
        (make_unreadable, "missing or unreadable"),
    ],
)
def test_a_damaged_block_is_named_and_no_video_is_made(damage: Callable[[Path], None], reason, store, plan, tmp_path):
    file = store / f"{BLOCK}.safetensors"
    damage(file)
    outcome = call_cidl(*run_arguments(plan, store, tmp_path))
    assert_refused(outcome, 2, str(file), reason)
    assert_run_failed(outcome, 2, tmp_path)
    assert not (tmp_path / "out").exists()


def test_verify_finds_a_byte_that_was_altered_behind_the_stamps_back(store, plan, tmp_path):
    file = store / f"{BLOCK}.safetensors"
    before = file.stat()
    alter_one_byte(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    BlockStore.open(store)  # size, time and inode are those that were verified
    assert_refused(call_cidl(*run_arguments(plan, store, tmp_path), "--verify"), 2, str(file), "altered")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["no store.json", "cidl model build"]),
        ("[", ["store.json", "not JSON"]),
        ('{"format": "cidl-store/2"}', ["store.json", "format", "cidl-store/1"]),
    ],
)
def test_a_store_without_a_readable_index_is_refused(content, words, store, plan, tmp_path):
    (store / "store.json").unlink()
    if content is not None:
        (store / "store.json").write_text(content)
    assert_refused(call_cidl(*run_arguments(plan, store, tmp_path)), 2, str(store), *words)
    assert not (tmp_path / "out").exists()


def test_an_index_that_leaves_the_folder_of_the_store_is_refused(store, plan, tmp_path):
    index = json.loads((store / "store.json").read_text())
    index["blocks"][BLOCK]["file"] = f"../{BLOCK}.safetensors"
    shutil.copyfile(store / f"{BLOCK}.safetensors", tmp_path / f"{BLOCK}.safetensors")
    (store / "store.json").write_text(json.dumps(index))
    assert_refused(call_cidl(*run_arguments(plan, store, tmp_path)), 2, "store.json", "leaves the folder")


# Plans


def test_a_plan_whose_loads_are_for_other_steps_is_refused(store, plan, tmp_path):
    data = json.loads(plan.read_text())
    data["workload_settings"]["steps"] += 1
    plan.write_text(json.dumps(data))
    outcome = call_cidl(*run_arguments(plan, store, tmp_path))
    assert_refused(outcome, 2, "made for workload", TINY)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workload", ["opensora-small", TINY.replace("fp32", "bf16")])
def test_a_plan_for_another_model_is_refused(workload, store, tmp_path):
    plan = plan_of(workload, tmp_path, room=2_000_000_000)
    outcome = call_cidl(*run_arguments(plan, store, tmp_path))
    assert_refused(outcome, 2, find_workload(workload).name, str(store), "'opensora-tiny' in fp32")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--steps", "3", ["no such option: --steps", "--lpl-rule"]),
        ("--lpl-rules", "paper", ["no such option: --lpl-rules", "did you mean 'lpl_rule'"]),
        ("--lpl-rule", "eager", ["--lpl-rule 'eager'", "'reference-app'"]),
    ],
)
def test_an_option_that_the_models_family_has_not_is_refused(option, value, words, tiny_store, plan, tmp_path):
    assert_refused(call_cidl(*run_arguments(plan, tiny_store, tmp_path), option, value), 2, *words)
    assert not (tmp_path / "out").exists()


# Memory


def test_a_limit_below_what_any_plan_needs_names_the_block_and_the_bytes(tiny_store, plan, tmp_path):
    need, visit = largest_need(find_workload(TINY))
    least = ROOM_FOR_THE_PROCESS + need
    arguments = run_arguments(plan, tiny_store, tmp_path)
    outcome = call_cidl(*arguments, "--memory-limit", least - 1)
    assert_refused(outcome, 3, repr(visit.block.name), f"needs {least} bytes", f"limit {least - 1} bytes")
    assert_run_failed(outcome, 3, tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not can_enforce(), reason="no limit here that the kernel enforces (can_enforce() is False)")
def test_a_limit_too_small_for_the_process_is_reported_as_the_kernels_kill(tiny_store, tmp_path):
    plan = plan_of(TINY, tmp_path, baseline_bytes=0, room=150_000_000)
    outcome = call_cidl(*run_arguments(plan, tiny_store, tmp_path))
    assert_run_failed(outcome, 3, tmp_path, "the kernel killed the run", "150000000 bytes")
    assert not (tmp_path / "out").exists()


# Prompts and output


@pytest.mark.parametrize(
    ("prompt", "words"),
    [(" ", ["empty"]), ("a" * 42, ["42 bytes", "takes 41"])],
)
@pytest.mark.usefixtures("in_this_process")
def test_a_prompt_that_the_model_cannot_take_is_refused(prompt, words, tiny_store, plan, tmp_path):
    outcome = call_cidl(*run_arguments(plan, tiny_store, tmp_path, prompt))
    assert_run_failed(outcome, 2, tmp_path, "the prompt", *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("in_this_process")
def test_a_video_in_a_folder_that_is_a_file_is_the_environments_fault(tiny_store, plan, tmp_path):
    (tmp_path / "out").write_text("in the way")
    outcome = call_cidl(*run_arguments(plan, tiny_store, tmp_path))
    assert_run_failed(outcome, 4, tmp_path, str(tmp_path / "out" / "video.mp4"), "cannot be written")
    assert (tmp_path / "out").read_text() == "in the way"


@pytest.mark.usefixtures("in_this_process")
def test_a_video_with_the_name_of_a_folder_is_the_environments_fault(tiny_store, plan, tmp_path):
    video = tmp_path / "out" / "video.mp4"
    video.mkdir(parents=True)
    outcome = call_cidl(*run_arguments(plan, tiny_store, tmp_path))
    assert_run_failed(outcome, 4, tmp_path, str(video), "cannot be written")
    # The last denoising step is kept, so that --resume has only the decoder to run again.
    assert set((tmp_path / "out").rglob("*")) == {video, video.with_name("video.mp4.resume")}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of so many KiB; skipped where this user may not mount one."""
    mounted: list[Path] = []

    def mount(kibibytes: int) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        options = ["-o", f"size={kibibytes}k"]
        done = subprocess.run(["mount", "-t", "tmpfs", *options, "none", str(folder)], capture_output=True, check=False)
        if done.returncode != 0:
            pytest.skip("no small file system can be mounted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("full", ["saved run", "video", "trace"])
def test_a_disk_that_fills_up_leaves_whole_files_only(full, tiny_store, plan, tmp_path, small_disk):
    # In pages: a saved run takes two (four while it is replaced), the video three, the trace more.
    disk = small_disk({"saved run": 4, "video": 16, "trace": 8}[full])
    out = tmp_path / "out"
    video = (out if full == "trace" else disk) / "video.mp4"
    trace = (disk if full == "trace" else out) / "trace.json"
    arguments = ["run", "--plan", plan, "--store", tiny_store, "--prompt", "a fox", "--trace", trace, "-o", video]
    outcome = call_cidl(*arguments)
    assert outcome.code == 4, outcome.err
    unwritten = {"saved run": "video.mp4.resume", "video": "video.mp4", "trace": "trace.json"}[full]
    assert f"{disk / unwritten}: cannot be written (No space left on device)" in outcome.err.splitlines()[-1]
    left = {file.name for folder in (disk, out) if folder.is_dir() for file in folder.iterdir()}
    assert unwritten not in left
    assert not any(name.startswith(".") for name in left)
    assert left_behind(tmp_path) == []


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there_is_the_environments_fault(tiny_store, plan, tmp_path):
    outcome = call_cidl(*run_arguments(plan, tiny_store, tmp_path), "--device", "cuda")
    assert_run_failed(outcome, 4, tmp_path, "no 'cuda' device")


def test_a_device_of_no_known_kind_is_refused(tiny_store, plan, tmp_path):
    outcome = call_cidl(*run_arguments(plan, tiny_store, tmp_path), "--device", "abacus")
    assert_run_failed(outcome, 2, tmp_path, "abacus", "cpu, cuda, mps")


# Signals


def worker_of(temporary: Path) -> int | None:
    """The process that runs a job whose file lies in `temporary`, once its memory for weights exists."""
    for process in Path("/proc").glob("[0-9]*"):
        # Processes come and go while we look.
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes().split(b"\0")
            is_ours = b"cidl_sim.worker" in command and any(str(temporary).encode() in word for word in command)
            # Where the kernel names no anonymous memory the process has to do.
            if is_ours and ("cidl-arena" in (process / "maps").read_text() or not names_memory()):
                return int(process.name)
    return None


@cache
def names_memory() -> bool:
    """Whether the kernel shows the names of anonymous memory."""
    arena = Arena(PAGE)
    shown = "cidl-arena" in Path("/proc/self/maps").read_text()
    arena.close()
    return shown


def is_running(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to find the worker process")


@contextlib.contextmanager
def started_run(arguments: list[str], temporary: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A run in processes of its own, once its worker has memory for weights; none of them is left at the end."""
    command = [sys.executable, "-m", "cidl_sim.cli", *arguments]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    worker = None
    try:
        while (worker := worker_of(temporary)) is None:
            assert child.poll() is None, child.communicate()
            time.sleep(0.02)
        yield child, worker
    finally:
        child.kill()
        child.wait()
        if worker is not None and is_running(worker):
            os.kill(worker, signal.SIGKILL)


def long_plan(folder: Path, steps: int) -> Path:
    """Long enough that what comes finds the run at work."""
    device = analytic_device(ROOM_FOR_THE_PROCESS + 10_000_000, baseline_bytes=ROOM_FOR_THE_PROCESS)
    plan = make_plan("next_block", find_workload(TINY.replace("2s", f"{steps}s")), device)
    assert plan.workload_settings["steps"] == steps
    plan.write(folder / "plan.json")
    return folder / "plan.json"


@needs_proc
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_ends_the_run_and_its_worker_and_leaves_the_trace_until_then(number, tiny_store, tmp_path):
    plan = long_plan(tmp_path, 200)
    saved = tmp_path / "out" / "video.mp4.resume"
    with started_run(run_arguments(plan, tiny_store, tmp_path), tmp_path / "temporary") as (child, worker):
        while not saved.exists():
            time.sleep(0.02)
        child.send_signal(number)
        out, err = child.communicate(timeout=120)
        assert not is_running(worker)
    assert child.returncode == 128 + number
    assert out == ""
    assert "Traceback" not in err
    assert left_behind(tmp_path) == []
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"trace.json", saved.name}
    trace = read_trace(tmp_path / "out" / "trace.json")
    assert trace.events[-1].kind == "stopped"
    assert 0 < len(trace.of("execute")) < sum(s.rounds * len(s.blocks) for s in trace.header.stages)


@needs_proc
@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_and_gives_the_same_video(tiny_store, tmp_path):
    plan = long_plan(tmp_path, 30)
    arguments = run_arguments(plan, tiny_store, tmp_path)
    video, saved = tmp_path / "out" / "video.mp4", tmp_path / "out" / "video.mp4.resume"
    assert call_cidl(*arguments).code == 0
    uninterrupted = video.read_bytes()
    assert not saved.exists()
    video.unlink()
    with started_run(arguments, tmp_path / "temporary") as (child, worker):
        while not saved.exists():
            time.sleep(0.005)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        deadline = time.monotonic() + 60
        while is_running(worker) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not is_running(worker), "the worker outlives its parent"
    assert not video.exists()
    again = call_cidl(*arguments, "--resume", "--json")
    assert again.code == 0
    assert video.read_bytes() == uninterrupted
    assert not saved.exists()
    trace = read_trace(tmp_path / "out" / "trace.json")
    resumed = next(event for event in trace.events if event.kind == "resumed")
    assert min(span.visit for span in trace.of("execute")) == resumed.values["visit"] > 0


@pytest.mark.usefixtures("in_this_process")
def test_another_job_does_not_go_on_from_a_saved_run(tiny_store, plan, tmp_path):
    saved = tmp_path / "out" / "video.mp4.resume"
    state = {"z": torch.zeros(1), "text": torch.zeros(1)}
    save_run(saved, {"workload": "another"}, 0, 5, (state, {"evaluations": 1}))
    outcome = call_cidl(*run_arguments(plan, tiny_store, tmp_path), "--resume")
    assert_run_failed(outcome, 2, tmp_path, str(saved), "saved by another job", "workload")


@pytest.mark.usefixtures("in_this_process")
def test_a_saved_run_that_cannot_be_read_is_named(tiny_store, plan, tmp_path):
    saved = tmp_path / "out" / "video.mp4.resume"
    saved.parent.mkdir()
    saved.write_bytes(b"not a safetensors file")
    outcome = call_cidl(*run_arguments(plan, tiny_store, tmp_path), "--resume")
    assert_run_failed(outcome, 2, tmp_path, str(saved), "cannot be read")


@pytest.mark.slow
def test_two_runs_may_use_one_store_at_once(tiny_store, plan, tmp_path):
    commands = []
    for name in ("a", "b"):
        arguments = run_arguments(plan, tiny_store, tmp_path / name)
        commands.append(subprocess.Popen([sys.executable, "-m", "cidl_sim.cli", *arguments]))
    assert [command.wait(timeout=200) for command in commands] == [0, 0]
    videos = [tmp_path / name / "out" / "video.mp4" for name in ("a", "b")]
    assert videos[0].read_bytes() == videos[1].read_bytes()


# Memory that changes


@needs_proc
@pytest.mark.slow
@pytest.mark.skipif(not can_enforce(), reason="no limit that the kernel enforces can be had here")
def test_a_limit_that_is_lowered_and_raised_during_a_run_changes_no_pixel(tiny_store, tmp_path):
    plan = long_plan(tmp_path, 200)
    arguments = run_arguments(plan, tiny_store, tmp_path)
    assert call_cidl(*arguments).code == 0
    undisturbed = (tmp_path / "out" / "video.mp4").read_bytes()
    limit = read_plan(plan).memory_limit_bytes
    lower = limit - 8_000_000
    with started_run(arguments, tmp_path / "temporary") as (child, worker):
        group = group_of(worker)
        warning = group / ("memory.soft_limit_in_bytes" if "memory" in group.parts[:5] else "memory.high")
        while not (tmp_path / "out" / "video.mp4.resume").exists():
            time.sleep(0.01)
        warning.write_text(str(lower))
        time.sleep(1)
        warning.write_text(str(limit))
        _, err = child.communicate(timeout=200)
    assert child.returncode == 0, err
    assert (tmp_path / "out" / "video.mp4").read_bytes() == undisturbed
    changes = [e for e in read_trace(tmp_path / "out" / "trace.json").events if e.kind == "limit_changed"]
    assert [round(int(change.values["limit_bytes"]) / 1e6) for change in changes] == [
        round(lower / 1e6),
        round(limit / 1e6),
    ]


def group_of(process: int) -> Path:
    """The memory group of a process, found through its environment."""
    for entry in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
        name, _, value = entry.partition(b"=")
        if name == b"CIDL_MEMORY_GROUP":
            return Path(value.decode().partition(":")[2])
    raise AssertionError("the worker is in no group")
