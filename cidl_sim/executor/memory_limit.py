"""Run a command under a memory limit that the kernel enforces, and read what the kernel saw.

In order of preference: cgroup v2, cgroup v1, a user scope of systemd. Each child is put into its group by
a shell before it becomes the command, so everything it ever touches is charged to the group, page cache
included. Where none of them can be had, the limit is only accounted, and the trace says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from cidl_sim.core.files import is_alive
from cidl_sim.core.trace import EnforcedBy

_SAFETY_BYTES = 16 << 20
_LEAVING_S = 1.0  # what an ended process may need to leave its group
# Freed memory that the heap may hold beyond a visit's workspace. Giving it back costs its page faults again.
_HEAP_SLACK_BYTES = 32 << 20
_MAPPED: dict[str, str] = {"cgroup-v1": "mapped_file", "cgroup-v2": "file_mapped", "systemd-scope": "file_mapped"}
GROUP_VARIABLE = "CIDL_MEMORY_GROUP"  # tells the child "<mechanism>:<folder>"
_V1_ROOT = Path("/sys/fs/cgroup/memory")
_V2_ROOT = Path("/sys/fs/cgroup")


@dataclass
class MemoryGroup:
    """A group that a command runs in. Use as a context manager: the group is removed at the end.

    `limit_bytes` None measures without limiting.
    """

    limit_bytes: int | None
    enforced_by: EnforcedBy = "accounting"
    folder: Path | None = None
    _command_prefix: list[str] = field(default_factory=list)

    def __enter__(self) -> MemoryGroup:
        for attempt in (self._enter_v2, self._enter_v1, self._enter_scope):
            if attempt():
                return self
        return self

    def __exit__(self, *_: object) -> None:
        if self.folder is not None and self.enforced_by != "systemd-scope":
            _remove(self.folder)

    def command(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` inside the group."""
        return [*self._command_prefix, *command]

    def environment(self) -> dict[str, str]:
        """What the child's environment needs so that it can read its own group."""
        return {GROUP_VARIABLE: f"{self.enforced_by}:{self.folder or ''}"}

    def was_killed_by_limit(self) -> bool:
        """Whether the kernel killed a process of this group for its memory."""
        if self.folder is None:
            return False
        if self.enforced_by == "cgroup-v1":
            return _counter(self.folder / "memory.oom_control", "oom_kill") > 0
        return _counter(self.folder / "memory.events", "oom_kill") > 0

    def _enter_v1(self) -> bool:
        parent = _own_group(_V1_ROOT, "memory")
        if parent is None or not (parent / "memory.limit_in_bytes").exists():
            return False
        folder = _make_group(parent)
        if folder is None:
            return False
        limits = {"memory.limit_in_bytes": self.limit_bytes, "memory.memsw.limit_in_bytes": self.limit_bytes}
        return self._limited(folder, limits) and self._joined_by_shell("cgroup-v1", folder)

    def _enter_v2(self) -> bool:
        parent = _own_group(_V2_ROOT, "")
        if parent is None or "memory" not in _words(parent / "cgroup.controllers"):
            return False
        if "memory" not in _words(parent / "cgroup.subtree_control"):
            try:
                (parent / "cgroup.subtree_control").write_text("+memory")
            except OSError:
                return False  # the group holds processes itself, or is not ours
        folder = _make_group(parent)
        if folder is None:
            return False
        limits = {"memory.max": self.limit_bytes, "memory.swap.max": 0}
        return self._limited(folder, limits) and self._joined_by_shell("cgroup-v2", folder)

    def _enter_scope(self) -> bool:
        run = shutil.which("systemd-run")
        if run is None or self.limit_bytes is None:
            return False
        prefix = [run, "--user", "--scope", "--quiet", "--collect"]
        prefix += ["-p", f"MemoryMax={self.limit_bytes}", "-p", "MemorySwapMax=0", "--"]
        try:
            probe = subprocess.run([*prefix, "true"], capture_output=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return False
        if probe.returncode != 0:
            return False
        self.enforced_by, self._command_prefix = "systemd-scope", prefix
        return True

    def _limited(self, folder: Path, limits: dict[str, int | None]) -> bool:
        """Write the limits that the kernel knows, in order; on failure remove the group again."""
        if self.limit_bytes is None:
            return True
        try:
            for name, value in limits.items():
                if (folder / name).exists():
                    (folder / name).write_text(str(value))
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
            return False
        return True

    def _joined_by_shell(self, mechanism: EnforcedBy, folder: Path) -> bool:
        self.enforced_by, self.folder = mechanism, folder
        join = f'echo $$ > "{folder}/cgroup.procs" && exec "$@"'
        self._command_prefix = ["/bin/sh", "-c", join, "sh"]
        return True


@dataclass
class Charged:
    """What the kernel charges a group, read from inside it."""

    enforced_by: EnforcedBy
    folder: Path | None
    _peak_descriptor: int | None = None

    def unreclaimable_bytes(self) -> int | None:
        """Charged now, page cache that the kernel could drop at any time left out; None if unknown."""
        if self.folder is None:
            return (_resident_bytes("RssAnon:") + _resident_bytes("RssShmem:")) or None
        if self.enforced_by == "cgroup-v1":
            # In version 1 "cache" includes shared memory, which cannot be dropped without swap.
            stat = _stat(self.folder)
            usage = _number(self.folder / "memory.usage_in_bytes")
            return None if usage is None else usage - max(0, stat.get("cache", 0) - stat.get("shmem", 0))
        stat = _stat(self.folder)
        usage = _number(self.folder / "memory.current")
        return None if usage is None else usage - max(0, stat.get("file", 0) - stat.get("shmem", 0))

    def baseline_bytes(self) -> int:
        """Unreclaimable memory and the mapped files charged to the group.

        The kernel may drop pages of mapped libraries, but the process reads them back at its next call, so
        they belong to what it needs. Pages that another group brought in first are charged there.
        """
        mapped = _stat(self.folder).get(_MAPPED[self.enforced_by], 0) if self.folder is not None else 0
        return (self.unreclaimable_bytes() or 0) + mapped

    def droppable_bytes(self) -> int:
        """Pages of files that no process has mapped: the kernel can drop them at any time."""
        if self.folder is None:
            return 0
        stat = _stat(self.folder)
        shared = stat.get("shmem", 0)
        files = stat.get("cache" if self.enforced_by == "cgroup-v1" else "file", 0) - shared
        return max(0, files - max(0, stat.get(_MAPPED[self.enforced_by], 0) - shared))

    def peak_bytes(self) -> int | None:
        """The most that was charged since the last reset, page cache included; None if the kernel does not tell."""
        if self.folder is None:
            return None
        if self._peak_descriptor is not None:
            return int(os.pread(self._peak_descriptor, 64, 0))
        name = "memory.max_usage_in_bytes" if self.enforced_by == "cgroup-v1" else "memory.peak"
        return _number(self.folder / name)

    def reset_peak(self) -> bool:
        """Let `peak_bytes` start again from now; False where the kernel cannot (version 2 before Linux 6.12)."""
        if self.folder is None:
            return False
        try:
            if self.enforced_by == "cgroup-v1":
                (self.folder / "memory.max_usage_in_bytes").write_text("0")
                return True
            # In version 2 a reset holds for the descriptor that wrote it, so the peak is read through it later.
            if self._peak_descriptor is None:
                self._peak_descriptor = os.open(self.folder / "memory.peak", os.O_RDWR)
            os.write(self._peak_descriptor, b"reset\n")
        except OSError:
            return False
        return True

    def limit_bytes(self) -> int | None:
        """The limit that the kernel holds for the group, read back; None if there is none."""
        if self.folder is None:
            return None
        limit = _number(self.folder / ("memory.limit_in_bytes" if self.enforced_by == "cgroup-v1" else "memory.max"))
        return limit if limit is not None and limit < 1 << 60 else None

    def wanted_limit_bytes(self) -> int | None:
        """What this process is asked to stay below now: the kernel's limit, or a lower one that warns of it.

        The warning is version 1's soft limit and version 2's `memory.high`. A hard limit cannot be lowered below what
        is in use (version 1), or kills at once (version 2), so whoever needs memory back asks here first.
        """
        if self.folder is None:
            return None
        name = "memory.soft_limit_in_bytes" if self.enforced_by == "cgroup-v1" else "memory.high"
        limits = [limit for limit in (self.limit_bytes(), _number(self.folder / name)) if limit is not None]
        wanted = min(limits, default=1 << 60)
        return wanted if wanted < 1 << 60 else None


def prepare_memory(charged: Charged, size: int) -> None:
    """Take `size` bytes once and give them back, so that a run's first loads find memory as later ones do.

    Otherwise they pay for what has nothing to do with them: page cache that start-up left in the group has to be
    reclaimed for each page that the arena grows by, and a page that a virtual machine's host has not backed yet costs
    several times a page fault. Never takes more than the limit leaves; without one, than half of the machine's memory.
    """
    import numpy as np  # the file is read where nothing else is needed, and before it is counted what is held

    limit, held = charged.limit_bytes(), charged.unreclaimable_bytes()
    if charged.folder is not None and not charged.reset_peak():
        return  # the peak would tell of this, and not of the run
    if limit is None or held is None:
        room = min(size, physical_memory_bytes() // 2)
    else:
        room = min(size, limit - held - _SAFETY_BYTES)
    if room > 0:
        with mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            # As the arena takes it.
            memory.madvise(getattr(mmap, "MADV_HUGEPAGE", mmap.MADV_NORMAL))
            np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE] = 1
        charged.reset_peak()


@cache
def charged_to_this_process() -> Charged:
    """What the group that this process was started in says; an unlimited process is only accounted."""
    mechanism, _, folder = os.environ.get(GROUP_VARIABLE, "accounting:").partition(":")
    if mechanism == "systemd-scope":
        own = _own_group(_V2_ROOT, "")
        return Charged("systemd-scope", own) if own is not None else Charged("accounting", None)
    if mechanism in ("cgroup-v1", "cgroup-v2") and folder:
        return Charged("cgroup-v1" if mechanism == "cgroup-v1" else "cgroup-v2", Path(folder))
    return Charged("accounting", None)


def can_enforce() -> bool:
    """Whether this machine lets us have a limit that the kernel enforces."""
    with MemoryGroup(limit_bytes=1 << 30) as group:
        return group.enforced_by != "accounting"


def _own_group(root: Path, controller: str) -> Path | None:
    """The folder of this process's group under `root`, for a version 1 controller or ("") for version 2."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            folder = root / path.lstrip("/")
            return folder if folder.is_dir() else (root if root.is_dir() else None)
    return None


def _make_group(parent: Path) -> Path | None:
    _remove_what_was_left(parent)
    folder = parent / f"cidl-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
    except OSError:
        return None
    return folder


def _remove(folder: Path) -> None:
    """Remove a group that its last process may still be leaving; one that stays is empty and costs nothing."""
    until_s = time.monotonic() + _LEAVING_S
    while folder.exists():
        with contextlib.suppress(OSError):
            folder.rmdir()
        if time.monotonic() > until_s:
            return
        time.sleep(0.01)


def _remove_what_was_left(parent: Path) -> None:
    """Groups of processes that were killed before they could remove them."""
    for folder in parent.glob("cidl-*-*"):
        process = folder.name.split("-")[1]
        if process.isdecimal() and not is_alive(int(process)):
            with contextlib.suppress(OSError):  # a child is still leaving
                folder.rmdir()


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _stat(folder: Path) -> dict[str, int]:
    words = _words(folder / "memory.stat")
    return {name: int(value) for name, value in zip(words[::2], words[1::2], strict=False)}


def _counter(path: Path, name: str) -> int:
    words = _words(path)
    return int(words[words.index(name) + 1]) if name in words else 0


class PeakMemory:
    """What this process needs at most, as the kernel saw it: all that was charged but pages it could drop at any time.

    Between two looks the kernel keeps the peak of everything charged; what it could drop is read at each look, and
    changes little between them. Without a group, or where its peak cannot start again, it is the peak of resident
    memory, in which pages that are mapped twice count twice. `start_bytes`: what was held at first.
    """

    def __init__(self, charged: Charged) -> None:
        self._charged = charged
        self._by_group = charged.reset_peak()
        self._by_process = not self._by_group and _reset_peak_resident()
        self._charged_bytes = 0
        self.needed_bytes = self.start_bytes = (
            charged.baseline_bytes() if self._by_group else _resident_bytes("VmHWM:") if self._by_process else 0
        )

    def look(self) -> int | None:
        """The peak since the last look, which this one ends; None if the system does not tell."""
        if self._by_group:
            peak = self._charged.peak_bytes() or 0
            self._charged_bytes = max(self._charged_bytes, peak)
            found = peak - self._charged.droppable_bytes()
            self._charged.reset_peak()
        elif self._by_process:
            found = _resident_bytes("VmHWM:")
            _reset_peak_resident()
        else:
            return None
        self.needed_bytes = max(self.needed_bytes, found)
        return found

    def charged_bytes(self) -> int | None:
        """The most that the kernel charged since the start, page cache included; None if it does not tell."""
        peak = self._charged.peak_bytes()
        return None if peak is None else max(peak, self._charged_bytes)


def _reset_peak_resident() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def physical_memory_bytes() -> int:
    """What this process may use at all: the machine's memory, or less where a container limits it."""
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    group_v1, group_v2 = _own_group(_V1_ROOT, "memory"), _own_group(_V2_ROOT, "")
    files = (group_v1 and group_v1 / "memory.limit_in_bytes", group_v2 and group_v2 / "memory.max")
    return min([installed, *(limit for path in files if path and (limit := _number(path)) is not None)])


def anonymous_bytes() -> int:
    """Resident memory of this process that no file or arena is behind: heaps and stacks. 0 if unknown."""
    try:
        _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * mmap.PAGESIZE


def trim_heap() -> None:
    """Return the heap's free pages to the kernel, those between pieces in use included (glibc only)."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


class Heap:
    """The process's heap, whose free memory should not stay charged when weights need the room."""

    def __init__(self) -> None:
        self._before_bytes = anonymous_bytes()

    def trim_beyond(self, needed_bytes: int) -> None:
        """Give free memory back if the heap has grown by more than what is needed and some slack."""
        if anonymous_bytes() - self._before_bytes > needed_bytes + _HEAP_SLACK_BYTES:
            trim_heap()


def _resident_bytes(field_name: str) -> int:
    words = _words(Path("/proc/self/status"))
    return int(words[words.index(field_name) + 1]) * 1024 if field_name in words else 0
