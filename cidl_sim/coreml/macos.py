"""What only macOS has: the library with Core ML behind it, compiled packages, the footprint of the process.

None of this has been run: there was no Mac.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from cidl_sim.core.errors import MachineError
from cidl_sim.core.files import write_text
from cidl_sim.coreml.quiet import quiet


def check_macos(elsewhere: str = "--backend mil runs the same packages in the interpreter") -> None:
    """MachineError on other systems; `elsewhere` says what can be done there."""
    if sys.platform != "darwin":
        raise MachineError(f"Core ML runs on macOS only; {elsewhere}")


def core_ml() -> Any:
    """coremltools, which can load models here. MachineError off macOS."""
    check_macos()
    with quiet():
        import coremltools
    return coremltools


def compile_package(package: Path, target: Path, identity: str) -> bool:
    """Compile `package` to `target` unless that was done for this identity already; whether it was done now.

    MachineError if Core ML refuses the package, or the disk the result.
    """
    stamp = target.with_suffix(".sha256")
    if target.is_dir() and stamp.is_file() and stamp.read_text(encoding="utf-8").strip() == identity:
        return False
    try:
        stamp.unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        core_ml().models.utils.compile_model(str(package), str(target))
    except Exception as problem:
        raise MachineError(f"{package}: Core ML cannot compile it ({first_line(problem)})") from problem
    write_text(stamp, identity + "\n")
    return True


def phys_footprint_bytes() -> int:
    """What the system charges this process with, and a phone would kill it for; 0 if it does not tell.

    `ri_phys_footprint` of `proc_pid_rusage` with flavour 0: after 16 bytes of identity, the eighth of ten numbers.
    """
    numbers = ctypes.create_string_buffer(16 + 10 * 8)
    if ctypes.CDLL(None).proc_pid_rusage(os.getpid(), 0, numbers) != 0:
        return 0
    return int.from_bytes(numbers.raw[72:80], sys.byteorder)


def first_line(problem: Exception) -> str:
    """The first line of what an exception says, or its name."""
    return (str(problem).strip() or type(problem).__name__).partition("\n")[0]
