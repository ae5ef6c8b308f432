"""The interpreter of saved Core ML packages against PyTorch: one block of each kind, at real width, in both precisions.

PYTHONPATH=. .venv/bin/python experiments/coreml_interpreter.py        (some twenty minutes)

Every block is converted and saved, read back and run, and what it gives is compared with what the block gives in
PyTorch in fp32 on the same inputs.
"""

from __future__ import annotations

import multiprocessing
import platform
import resource
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from bench_executor import processor

from cidl_sim.coreml.check import BlockErrors, compare_block
from cidl_sim.mil.interpreter import load_package
from tests.coreml.converted import convert, example_inputs, exportable, loaded
from tests.coreml.test_interpreter_real_widths import BLOCKS, SETTINGS

RESULTS = Path(__file__).parent / "results" / "coreml_interpreter.md"


@dataclass(frozen=True)
class Row:
    """One block: errors of its fp32 program, and of its fp16 program with results rounded and in exact mode."""

    kind: str
    parameters: int
    fp32: BlockErrors
    fp16: BlockErrors
    fp16_exact: BlockErrors
    operations: Counter[str]
    peak_bytes: int


def measured(kind: str) -> Row:
    module, inputs = loaded(BLOCKS[kind]), example_inputs(BLOCKS[kind])
    with TemporaryDirectory() as folder:
        package = Path(folder) / "fp32.mlpackage"
        convert(exportable(loaded(BLOCKS[kind])), inputs, package)
        operations = Counter(o.type for o in load_package(package).function().operations if o.type != "const")
        fp32 = compare_block(module, inputs, package)
    with TemporaryDirectory() as folder:
        package = Path(folder) / "fp16.mlpackage"
        convert(exportable(loaded(BLOCKS[kind])), inputs, package, fp16=True)
        fp16, exact = (compare_block(module, inputs, package, mode=mode) for mode in ("rounded", "exact"))
    return Row(
        kind=kind,
        parameters=sum(p.numel() for p in module.parameters()),
        fp32=fp32,
        fp16=fp16,
        fp16_exact=exact,
        operations=operations,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def report(rows: list[Row]) -> Iterator[str]:
    used = sorted(set().union(*(row.operations for row in rows)))
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "coremltools"))
    yield "# The interpreter of Core ML packages against PyTorch"
    yield ""
    yield (
        "Command: `PYTHONPATH=. .venv/bin/python experiments/coreml_interpreter.py`. "
        f"Date: {datetime.now(UTC).date()}. Machine: {processor()}, "
        f"{platform.system()} {platform.release()}; {versions}."
    )
    yield ""
    yield (
        f"Open-Sora v1.2 at its real widths with random weights, {SETTINGS.width}x{SETTINGS.height}, "
        f"{SETTINGS.frames} frames, 50 text tokens; one block of each kind. Each was converted, saved, read "
        "back and run by the interpreter with torch on the CPU; Core ML itself ran nowhere. "
        "Errors are relative: the norm of the difference to the block in PyTorch in fp32 over the norm of what that "
        "gives, the largest over the block's "
        "outputs. fp16 rounded: the result of every operation is rounded as the package declares; fp16 exact: only the "
        "weights are. Norms and angles stay in fp32 in the fp16 programs. Flags: overflow, NaN, "
        "more than five dimensions."
    )
    yield ""
    yield "| block | parameters (M) | operations | fp32 | fp16 rounded | fp16 exact | flags | peak memory (GB) |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        flags = "some" if row.fp32.flagged or row.fp16.flagged else "none"
        yield (
            f"| {row.kind} | {row.parameters / 1e6:.2f} | {sum(row.operations.values())} | {row.fp32.largest:.1e} | "
            f"{row.fp16.largest:.1e} | {row.fp16_exact.largest:.1e} | {flags} | {row.peak_bytes / 1e9:.2f} |"
        )
    yield ""
    yield (
        f"Largest: {max(r.fp32.largest for r in rows):.1e} in fp32, {max(r.fp16.largest for r in rows):.1e} in fp16 "
        f"rounded. The peak memory is that of tracing, converting and running both programs of a block."
    )
    yield ""
    yield f"The {len(used)} kinds of operations in the fp32 programs: {', '.join(used)}."


def main() -> None:
    rows = []
    # A process for each block, so that each peak of memory is its own.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for row in pool.map(measured, BLOCKS):
            print(f"{row.kind}: {row.fp32.largest:.1e} {row.fp16.largest:.1e}", file=sys.stderr)
            rows.append(row)
    text = "\n".join(report(rows)) + "\n"
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
