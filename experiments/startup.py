"""How long a caller waits for what should be quick: the package, the help, a list, a plan, what if.

    .venv/bin/python experiments/startup.py [--runs 5]

Each call is a new process; the calls take turns, so that a slow minute of the machine is shared. One turn before them
warms the page cache, numba's and the bytecode. Writes experiments/results/startup.md; a minute on 2 quiet cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from bench_executor import processor

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("cidl-sim", "numpy", "pydantic", "scipy", "simpy", "numba", "typer", "rich")
# What is called, and how long it may take in s; None: the floor that others stand on.
CALLS: dict[str, tuple[list[str], float | None]] = {
    "python -c 'import numpy, pydantic'": (["-c", "import numpy, pydantic"], None),
    "python -c 'import cidl_sim'": (["-c", "import cidl_sim"], 0.25),
    "cidl --help": (["-m", "cidl_sim.cli", "--help"], 0.45),
    "cidl devices": (["-m", "cidl_sim.cli", "devices"], 0.45),
    "cidl plan opensora-v1.2 iphone-15-pro": (
        ["-m", "cidl_sim.cli", "plan", "opensora-v1.2", "iphone-15-pro"],
        1.5,
    ),
    "cidl whatif opensora-v1.2 iphone-15-pro": (
        ["-m", "cidl_sim.cli", "whatif", "opensora-v1.2", "iphone-15-pro"],
        3.0,
    ),
}


# What the process of a run imports, and what it would import besides with T5 and the image decoder of the libraries.
IMPORTS = {
    "torch": "import torch",
    "a run of Open-Sora": "import cidl_sim.worker.child, cidl_sim.pipelines.open_sora.program, "
    "cidl_sim.pipelines.open_sora.stages",
    "the same, and T5 and AutoencoderKL of transformers and diffusers": "import cidl_sim.worker.child, "
    "cidl_sim.pipelines.open_sora.program, cidl_sim.pipelines.open_sora.stages; from diffusers import AutoencoderKL; "
    "from transformers.models.t5.modeling_t5 import T5Block",
}
_ANONYMOUS = "; print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('RssAnon')))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    load_before = os.getloadavg()[0]
    seconds: dict[str, list[float]] = {name: [] for name in CALLS}
    imports: dict[str, list[tuple[float, int]]] = {name: [] for name in IMPORTS}
    for turn in range(runs + 1):
        for name, (arguments, _) in CALLS.items():
            took_s, _ = call(arguments)
            if turn:
                seconds[name].append(took_s)
        for name, code in IMPORTS.items():
            took_s, printed = call(["-c", code + _ANONYMOUS])
            if turn:
                imports[name].append((took_s, int(printed)))
    report = text(seconds, runs, load_before) + imports_text(imports)
    (RESULTS / "startup.md").write_text(report)
    print(report)


def call(arguments: list[str]) -> tuple[float, str]:
    """Wall time of this Python with these arguments, from its start to its end, in s, and what it prints."""
    # As at a user's, where the first call leaves the package's bytecode for the next ones.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True, env=environment)
    return time.perf_counter() - began, done.stdout


def text(seconds: dict[str, list[float]], runs: int, load_before: float) -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
    lines = [
        "# How long a caller waits",
        "",
        f"Command: `.venv/bin/python experiments/startup.py --runs {runs}`. Date: {datetime.now(UTC).date()}. Machine: "
        f"{processor()}, {os.cpu_count()} cores, load {load_before:.1f} at the start. Python "
        f"{sys.version.split()[0]}, {versions}.",
        "",
        f"Seconds from the start of the process to its end: the median of {runs}, the fastest and the slowest.",
        "",
        "| call | median s | fastest to slowest s | wanted at most s | |",
        "|---|---|---|---|---|",
    ]
    for name, times in seconds.items():
        wanted_s, median_s = CALLS[name][1], statistics.median(times)
        wanted = "the floor" if wanted_s is None else f"{wanted_s:.2f}"
        verdict = "" if wanted_s is None else "met" if median_s <= wanted_s else "missed"
        lines.append(f"| `{name}` | {median_s:.2f} | {min(times):.2f} to {max(times):.2f} | {wanted} | {verdict} |")
    return "\n".join(lines) + "\n"


def imports_text(imports: dict[str, list[tuple[float, int]]]) -> str:
    lines = [
        "",
        "What the process that computes imports before its first visit, and the anonymous memory that this takes: it "
        "counts against the limit of the run.",
        "",
        "| imports | median s | fastest to slowest s | median MB |",
        "|---|---|---|---|",
    ]
    for name, found in imports.items():
        times, kilobytes = zip(*found, strict=True)
        lines.append(
            f"| {name} | {statistics.median(times):.2f} | {min(times):.2f} to {max(times):.2f} | "
            f"{statistics.median(kilobytes) * 1024 / 1e6:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
