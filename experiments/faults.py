"""What kills, full disks and limits that move leave behind: each at random moments, then the same command again.

    .venv/bin/python experiments/faults.py [--moments 100] [--writes 50] [--limits 50] [--only build run ...]

Each of build, import, sweep, export and run (the command or its worker, by turns) is killed with SIGKILL at so many
random moments of its time and called again: the result has to be the one of an undisturbed call byte for byte, and no
temporary file, process, group or shared memory may be left. Then the disk is full after a random number of bytes, and
the limit of a run is rewritten. Commands run in forks of this process, which has the libraries already. Writes
experiments/results/faults.json and faults.md after each moment, and goes on with a row that the same code began; with
--only the other rows stay what they were.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from safetensors.torch import save_file

import cidl_sim
from cidl_sim.cli import _exit_code
from cidl_sim.core.device import DeviceProfile, Executor, Loader
from cidl_sim.core.files import write_text
from cidl_sim.core.plan import read_plan
from cidl_sim.executor.memory_limit import can_enforce
from cidl_sim.executor.processor import processor_name
from cidl_sim.pipelines.catalog import find_workload
from cidl_sim.pipelines.model_store import build_random_store, distinct_blocks
from cidl_sim.pipelines.open_sora.family import OPEN_SORA
from cidl_sim.pipelines.open_sora.settings import OPENSORA_TINY
from cidl_sim.pipelines.random_weights import random_weights
from cidl_sim.policies.catalog import make_plan

RESULTS = Path(__file__).parent / "results"
MODEL, BASELINE = "opensora-tiny", 800_000_000
STARTED: list[int] = []  # the forks, whose numbers their groups' names begin with


@dataclass(frozen=True)
class Case:
    """A command in a folder of its own: what it makes, and with which words it goes on."""

    name: str
    words: tuple[str, ...]
    made: tuple[str, ...]
    again: tuple[str, ...] = ()
    given: Callable[[Path], None] = lambda folder: None


@dataclass
class Found:
    """What came of a case; `code` identifies the package that it was found of."""

    name: str
    code: str = ""
    disturbed: int = 0
    in_time: int = 0  # had already ended
    bad: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=100)
    parser.add_argument("--writes", type=int, default=50)
    parser.add_argument("--limits", type=int, default=50)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cidl-faults-") as folder:
        base = Path(folder)
        os.environ |= {"TMPDIR": str(base / "temporary"), "XDG_CACHE_HOME": str(base / "cache")}
        (base / "temporary").mkdir()
        tempfile.tempdir = None
        cases = [case for case in all_cases(base) if not arguments.only or case.name in arguments.only]
        rows: list[Found] = []
        for case in cases:
            for disturb, times in ((killed, arguments.moments), (on_full_disks, arguments.writes)):
                rows.append(disturb(case, base, times))
            if case.name == "run" and can_enforce():
                rows.append(under_moving_limits(case, base, arguments.limits))
    print((RESULTS / "faults.md").read_text())
    sys.exit(1 if any(row.bad for row in rows) else 0)


def begun(name: str) -> Found:
    """The row of this name as far as it got, where that was with the package as it is now."""
    code = code_hash()
    kept = kept_rows().get(name, {})
    if kept.get("code") != code:
        return Found(name, code)
    return Found(**{field.name: kept[field.name] for field in fields(Found)})


def code_hash() -> str:
    """Of all sources of the package and of this script."""
    digest = hashlib.sha256()
    for path in (*sorted(Path(cidl_sim.__file__).parent.rglob("*.py")), Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def kept_rows() -> dict[str, dict[str, Any]]:
    path = RESULTS / "faults.json"
    rows: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}
    return rows


def keep(row: Found) -> None:
    """Put a row into the results, in the place of the one of its name."""
    kept = kept_rows()
    if row.disturbed + row.in_time:
        kept[row.name] = {**asdict(row), "date": str(datetime.now(UTC).date())}
    write_text(RESULTS / "faults.json", json.dumps(kept, indent=1) + "\n")
    write_text(RESULTS / "faults.md", report(kept))


def all_cases(base: Path) -> list[Case]:
    """The commands, with what they are given made once."""
    shared = base / "shared"
    if not shared.exists():
        shared.mkdir()
        make_shared(shared)
    store, checkpoint = str(shared / "store"), str(shared / "checkpoint")

    def with_plan(folder: Path) -> None:
        shutil.copy(shared / "plan.json", folder / "plan.json")

    run = ("run", "--plan", "plan.json", "--store", store, "--prompt", "a fox", "-o", "out/video.mp4")
    return [
        Case("build", ("model", "build", MODEL, "--random", "3", "--store", "store"), ("store/*",)),
        Case("import", ("model", "import", checkpoint, "--store", "store"), ("store/*",)),
        Case(
            "sweep",
            ("sweep", MODEL, "iphone-15-pro", "--axis", "policy=lru,spread", "--axis", "memory_limit_bytes=1e9..3e9/8",
             "-o", "rows.parquet"),
            ("rows.parquet/part-*",),
        ),
        Case(
            "export",
            ("coreml", "export", "--store", store, "--out", "packages", "--blocks", "stdit.part2", "--blocks",
             "t5.final_norm", "--workers", "1"),
            ("packages/*/Data/**/*.mlmodel", "packages/*/Data/**/weight.bin"),
        ),
        Case("run", run, ("out/video.mp4",), again=("--resume",), given=with_plan),
    ]  # fmt: skip


def make_shared(shared: Path) -> None:
    build_random_store(shared / "store", OPENSORA_TINY, "fp32", seed=0)
    parts: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for block in distinct_blocks(OPENSORA_TINY, "fp32"):
        weights = random_weights(OPEN_SORA, block, 0, torch.float32)
        parts[block.checkpoint] |= {block.published_key(name): tensor for name, tensor in weights.items()}
    for part, tensors in parts.items():
        (shared / "checkpoint" / part).mkdir(parents=True)
        save_file(tensors, shared / "checkpoint" / part / "model.safetensors")
    device = DeviceProfile(
        name="d",
        memory_limit_bytes=BASELINE + 10_000_000,
        baseline_bytes=BASELINE,
        loader=Loader(bandwidth_bytes_per_s=1e9),
        executor=Executor(flops_per_s=1e9),
    )
    make_plan("next_block", find_workload(f"{MODEL}-32x32-17f-30s"), device).write(shared / "plan.json")


def killed(case: Case, base: Path, moments: int) -> Found:
    """The case killed at random moments, then called again."""
    found, (clean, took_s) = begun(f"{case.name}, killed"), undisturbed(case, base)
    chance = random.Random(f"{case.name} {found.disturbed + found.in_time}")
    for number in progress(case.name, 3 * (moments - found.disturbed)):
        if found.disturbed == moments:
            break
        with own_folder(case, base) as folder:
            child = started(case.words, folder)
            time.sleep(chance.uniform(0, took_s))
            victim = worker_of(child) if case.name == "run" and number % 2 else None
            with suppress(ProcessLookupError):
                os.kill(victim or child, signal.SIGKILL)
            code = ended(child)
            if code == 0:
                found.in_time += 1
            else:
                found.disturbed += 1
                go_on(case, folder, clean, base, found, f"moment {number}")
        keep(found)
    return found


def on_full_disks(case: Case, base: Path, times: int) -> Found:
    """The case on a disk that is full after a random number of bytes, then on one that is not."""
    found, (clean, _) = begun(f"{case.name}, disk full"), undisturbed(case, base)
    with own_folder(case, base) as folder:
        run_to_end(case.words, folder)
        needed = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    chance = random.Random(f"{case.name} {found.disturbed + found.in_time}")
    for _ in progress(f"{case.name}, disk full", times - found.disturbed - found.in_time):
        with own_folder(case, base) as folder:
            kibibytes = max(4, int(chance.uniform(0, needed) / 1024))
            options = ["-o", f"size={kibibytes}k"]
            given = {path.name: path.read_bytes() for path in folder.iterdir()}
            if subprocess.run(["mount", "-t", "tmpfs", *options, "none", str(folder)], check=False).returncode:
                return found  # this user may not mount
            try:
                with suppress(OSError):
                    for name, content in given.items():
                        (folder / name).write_bytes(content)
                code, said = run_to_end(case.words, folder)
                wait_for_orphans()
                if code == 0:
                    found.in_time += 1
                    keep(found)
                    continue
                found.disturbed += 1
                if code not in (2, 4) or said.count("cidl: ") != 1:
                    found.bad.append(f"{kibibytes} KiB: exit code {code}: {said[-300:]!r}")
                # The journal of what is whole is what the next call goes on from.
                if hidden := [str(p.relative_to(folder)) for p in leftovers(folder) if p.name != ".writing.json"]:
                    found.bad.append(f"{kibibytes} KiB: left {hidden}")
                subprocess.run(["mount", "-o", "remount,size=4g", str(folder)], check=True)
                for name, content in given.items():
                    (folder / name).write_bytes(content)
                go_on(case, folder, clean, base, found, f"{kibibytes} KiB")
            finally:
                unmount(folder)
        keep(found)
    return found


def unmount(folder: Path, longest_s: float = 60) -> None:
    """As soon as the last helper of a pool has left it."""
    until = time.monotonic() + longest_s
    while subprocess.run(["umount", str(folder)], capture_output=True, check=False).returncode:
        if time.monotonic() > until:
            raise SystemExit(f"{folder}: somebody does not leave it")
        time.sleep(0.1)


def under_moving_limits(case: Case, base: Path, times: int) -> Found:
    """A run whose limit in the kernel is rewritten at a random moment, down or up."""
    found, (clean, took_s) = begun("run, limit rewritten"), undisturbed(case, base)
    chance = random.Random(f"limits {found.disturbed}")
    for number in progress("limits", 5 * (times - found.disturbed)):
        if found.disturbed == times:
            break
        with own_folder(case, base) as folder:
            child = started(case.words, folder)
            time.sleep(chance.uniform(0.3, 1) * took_s)
            group = group_of(child)
            # Mostly up: less than is held just then the kernel refuses.
            limit = read_plan(folder / "plan.json").memory_limit_bytes + int(chance.uniform(-3e6, 9e6))
            if group is None:
                found.in_time += 1
            else:
                with suppress(OSError):
                    group.write_text(str(limit))
                    found.disturbed += 1
            code = ended(child)
            if code not in (0, 3):
                found.bad.append(f"limit {number}: exit code {code}")
            go_on(case, folder, clean, base, found, f"limit {number}")
        keep(found)
    return found


def go_on(case: Case, folder: Path, clean: dict[str, str], base: Path, found: Found, what: str) -> None:
    """Call again and see that all is as if nothing had happened."""
    wait_for_orphans()
    code, said = run_to_end((*case.words, *case.again), folder)
    if code != 0:
        found.bad.append(f"{what}: called again: exit code {code}: {said[-300:]!r}")
        return
    if (made := content(case, folder)) != clean:
        found.bad.append(f"{what}: another result: {sorted(set(made.items()) ^ set(clean.items()))[:4]}")
    # PyTorch's compiler makes an empty folder for its cache.
    temporary = [path for path in (base / "temporary").iterdir() if not path.name.startswith("torchinductor")]
    left = [str(path) for path in (*leftovers(folder), *temporary)]
    if left:
        found.bad.append(f"{what}: left {left[:4]}")
        for path in (base / "temporary").iterdir():
            shutil.rmtree(path, ignore_errors=True)
    # Whoever else runs something on this machine has groups, too.
    if groups := [path.name for root in own_groups() for child in STARTED for path in root.glob(f"cidl-{child}-*")]:
        found.bad.append(f"{what}: groups {groups}")
    if processes := ours():
        found.bad.append(f"{what}: processes {processes}")


def own_groups() -> dict[Path, str]:
    """Where groups of this process's runs are made, by version of cgroups, and the name of the file with the limit."""
    found = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            found[Path("/sys/fs/cgroup/memory") / path.lstrip("/")] = "memory.limit_in_bytes"
        elif not controllers:
            found[Path("/sys/fs/cgroup") / path.lstrip("/")] = "memory.max"
    return found


def undisturbed(case: Case, base: Path) -> tuple[dict[str, str], float]:
    """What the case makes, and how long it takes."""
    with own_folder(case, base) as folder:
        began_s = time.perf_counter()
        code, said = run_to_end(case.words, folder)
        if code:
            raise SystemExit(f"{case.name}: exit code {code}: {said}")
        return content(case, folder), time.perf_counter() - began_s


def content(case: Case, folder: Path) -> dict[str, str]:
    files = (path for pattern in case.made for path in folder.glob(pattern) if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if not path.name.startswith(".") and path.name != "store.json"
    }


def leftovers(folder: Path) -> list[Path]:
    """Files under temporary names: those of replaced files and of journals."""
    return [path for path in folder.rglob(".*") if path.name != ".verified.json" and path.is_file()]


def started(words: tuple[str, ...], folder: Path) -> int:
    """The command in a fork of this process; its number."""
    child = os.fork()
    if child:
        STARTED.append(child)
        return child
    try:
        os.chdir(folder)
        with (folder.parent / f"{folder.name}.said").open("w") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            sys.stdout = sys.stderr = os.fdopen(2, "w", closefd=False)
            sys.argv = ["cidl", *words]
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
            code = _exit_code()
            sys.stderr.flush()
        os._exit(code)
    except BaseException:
        os._exit(70)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_to_end(words: tuple[str, ...], folder: Path) -> tuple[int, str]:
    code = ended(started(words, folder))
    return code, (folder.parent / f"{folder.name}.said").read_text(errors="replace")


@contextmanager
def own_folder(case: Case, base: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="case-", dir=base))
    case.given(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        (folder.parent / f"{folder.name}.said").unlink(missing_ok=True)


def ours() -> list[int]:
    """Processes that belong to a command of ours: workers and pools, not this one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            own = f"TMPDIR={os.environ['TMPDIR']}".encode() in (process / "environ").read_bytes().split(b"\0")
            if own and (b"cidl_sim.worker" in words or any(b"spawn_main" in word for word in words)):
                found.append(int(process.name))
    return found


def worker_of(parent: int) -> int | None:
    for process in ours():
        with suppress(OSError):
            if int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1]) == parent:
                return process
    return None


def group_of(parent: int) -> Path | None:
    """The file with the limit of the worker's group."""
    for root, name in own_groups().items():
        for folder in root.glob(f"cidl-{parent}-*"):
            return folder / name
    return None


def wait_for_orphans(longest_s: float = 60) -> None:
    """Until what was started by a killed command has ended as well."""
    until = time.monotonic() + longest_s
    while ours() and time.monotonic() < until:
        time.sleep(0.02)


def progress(name: str, count: int) -> Iterator[int]:
    began_s = time.monotonic()
    for number in range(count):
        yield number
        left_s = (time.monotonic() - began_s) / (number + 1) * (count - number - 1)
        sys.stderr.write(f"\r{name}: {number + 1}/{count}, {left_s:.0f} s left    ")
    sys.stderr.write("\n")


def report(kept: dict[str, dict[str, Any]]) -> str:
    lines = [
        "# Kills, full disks, limits that move",
        "",
        f"Command: `.venv/bin/python experiments/faults.py`. Machine: {processor_name()}, {os.cpu_count()} cores; "
        f"torch {torch.__version__}.",
        "",
        "At random moments of each command: SIGKILL (of a run by turns to the command and to its worker), a disk that "
        "is full after a random number of bytes, another limit in the kernel. Then the same command again: it has to "
        "give the same bytes, and nothing may be left.",
        "",
        "| disturbance | times | had ended before | went wrong | date |",
        "|---|---|---|---|---|",
    ]
    for name, row in kept.items():
        lines.append(f"| {name} | {row['disturbed']} | {row['in_time']} | {len(row['bad'])} | {row['date']} |")
    wrong = [f"- {name}: {json.dumps(bad)}" for name, row in kept.items() for bad in row["bad"][:10]]
    return "\n".join([*lines, "", *wrong]).rstrip("\n") + "\n"


if __name__ == "__main__":
    main()
