"""Many broken inputs, in all processes that there are cores: `python -m tests.fuzz --inputs 100000`.

Prints a table by kind, writes it to experiments/results/fuzz.md, and keeps inputs that are faults in fuzz-faults/.
Every thousand inputs have a process of their own, so that one that takes it down is a fault like others.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "experiments"))  # as pytest has it

from cidl_sim.executor.processor import processor_name
from tests.fuzz.kinds import KINDS
from tests.fuzz.running import Outcome, run

CHUNK = 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=[kind.name for kind in KINDS])
    parser.add_argument("--job", nargs=3, type=int, metavar=("KIND", "FIRST", "END"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        number, first, end = arguments.job
        sys.stdout.write("\n" + json.dumps(asdict(_here(number, range(first, end)))) + "\n")
        return 0
    kinds = [number for number, kind in enumerate(KINDS) if kind.name in arguments.kinds]
    each = arguments.inputs / sum(KINDS[number].share for number in kinds)
    first = arguments.first_seed
    ends = {number: first + math.ceil(each * KINDS[number].share) for number in kinds}
    jobs = [
        (number, range(start, min(start + CHUNK, ends[number])))
        for start in range(first, max(ends.values()), CHUNK)
        for number in kinds
        if start < ends[number]
    ]
    began_s, total = time.perf_counter(), sum(len(seeds) for _, seeds in jobs)
    outcomes = {KINDS[number].name: Outcome(KINDS[number].name) for number in kinds}
    done = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for future in as_completed([pool.submit(_job, *job) for job in jobs]):
            found = future.result()
            outcome = outcomes[found.kind]
            outcome.inputs += found.inputs
            outcome.refused += found.refused
            outcome.slowest_s = max(outcome.slowest_s, found.slowest_s)
            outcome.faults += found.faults
            done += found.inputs
            took_s = time.perf_counter() - began_s
            left_s = took_s / done * (total - done)
            faults = sum(len(o.faults) for o in outcomes.values())
            sys.stderr.write(f"\r{done} of {total} inputs, {faults} faults, {left_s:.0f} s left   ")
    sys.stderr.write("\n")
    text = _report(list(outcomes.values()), time.perf_counter() - began_s, arguments)
    sys.stdout.write(text)
    if arguments.inputs >= 50_000:
        (ROOT / "experiments/results/fuzz.md").write_text(text)
    return 1 if any(outcome.faults for outcome in outcomes.values()) else 0


def _job(number: int, seeds: range) -> Outcome:
    words = ["-m", "tests.fuzz", "--job", str(number), str(seeds.start), str(seeds.stop)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode == 0:
        return Outcome(**json.loads(done.stdout.splitlines()[-1]))
    said = done.stderr.strip().splitlines()[-1:] or [""]
    fault = f"seeds {seeds.start} to {seeds.stop}: the process died with {done.returncode}: {said[0]}"
    return Outcome(KINDS[number].name, len(seeds), faults=[fault])


def _here(number: int, seeds: range) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="cidl-fuzz-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        os.chdir(folder)
        return run(KINDS[number], Path(folder) / "files", seeds, keep=ROOT / "fuzz-faults")


def _report(outcomes: list[Outcome], took_s: float, arguments: argparse.Namespace) -> str:
    lines = [
        "# Broken inputs",
        "",
        f"Command: `python -m tests.fuzz --inputs {arguments.inputs} --first-seed {arguments.first_seed}`, which `make "
        f"fuzz` does. Date: {datetime.now(UTC).date()}. Machine: {processor_name()}, {os.cpu_count()} cores; "
        f"{took_s / 60:.0f} min.",
        "",
        "Wanted: no internal fault, no hang (10 s), nothing left half written, at most 1 GiB of memory more.",
        "",
        "| kind | inputs | refused | read all the same | slowest s | faults |",
        "|---|---|---|---|---|---|",
    ]
    for o in [*outcomes, _sum(outcomes)]:
        read = o.inputs - o.refused - len(o.faults)
        lines.append(f"| {o.kind} | {o.inputs} | {o.refused} | {read} | {o.slowest_s:.2f} | {len(o.faults)} |")
    faults = [f"- {o.kind}, {fault}" for o in outcomes for fault in o.faults[:20]]
    return "\n".join([*lines, "", *faults, ""])


def _sum(outcomes: list[Outcome]) -> Outcome:
    whole = Outcome("all")
    for outcome in outcomes:
        whole.inputs += outcome.inputs
        whole.refused += outcome.refused
        whole.slowest_s = max(whole.slowest_s, outcome.slowest_s)
        whole.faults += outcome.faults
    return whole


if __name__ == "__main__":
    sys.exit(main())
