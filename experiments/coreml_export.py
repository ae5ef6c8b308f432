"""What it takes to export blocks of Open-Sora v1.2 at full width as Core ML packages: time, memory, size on disk.

    .venv/bin/python experiments/coreml_export.py

Each row is a process of its own that exports two blocks of one kind: the first call brings the libraries' start-up,
the second shows whether memory grows from block to block. Weights are random. Needs 6 GB of memory and 5 GB of disk
for a while. Writes experiments/results/coreml_export.md; some minutes. These are conversions: no package is run.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

from bench_executor import processor

from cidl_sim.blocks.definition import TORCH_DTYPES
from cidl_sim.coreml.export import PackageJob, export_package
from cidl_sim.coreml.manifest import Compression, Package, Precision
from cidl_sim.executor.store import BlockStore, write_store
from cidl_sim.pipelines.catalog import parse_name
from cidl_sim.pipelines.open_sora.family import OPEN_SORA
from cidl_sim.pipelines.open_sora.settings import OPENSORA_V1_2
from cidl_sim.pipelines.random_weights import random_weights
from cidl_sim.pipelines.variants import variants_of

RESULTS = Path(__file__).parent / "results"
WORKLOAD = "opensora-v1.2-192x192-17f"
BLOCKS = ("t5.01", "t5.02", "stdit.00", "stdit.01")


@dataclass(frozen=True)
class Row:
    """One kind of block; `merged`: whether the denoiser's two functions are in the package."""

    name: str
    blocks: tuple[str, str]
    precision: Precision
    compression: Compression = "none"


ROWS = (
    Row("T5-XXL block", ("t5.01", "t5.02"), "fp16"),
    Row("T5-XXL block", ("t5.01", "t5.02"), "fp32"),
    Row("T5-XXL block", ("t5.01", "t5.02"), "fp16", "int8"),
    Row("T5-XXL block", ("t5.01", "t5.02"), "fp16", "palette6"),
    Row("STDiT3-XL/2 pair, plain and merged", ("stdit.00", "stdit.01"), "fp16"),
)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="cidl-coreml-", dir=Path.cwd()) as folder:
        store = full_width_store(Path(folder) / "store")
        lines = [line_of(row, store, Path(folder) / "out") for row in ROWS]
        plain = plain_bytes(store, Path(folder) / "plain")
    text = report(lines, plain)
    (RESULTS / "coreml_export.md").write_text(text)
    print(text)


def full_width_store(root: Path) -> BlockStore:
    """The blocks that are exported, in fp32, as `cidl model build --size full` writes them."""
    variants = variants_of(OPENSORA_V1_2, (parse_name(WORKLOAD)[1],))
    definitions = {weights: next(iter(variants[weights].values())).longest for weights in BLOCKS}
    return write_store(
        root,
        (
            (w, lambda block=block: random_weights(OPEN_SORA, block, 0, TORCH_DTYPES["fp32"]))
            for w, block in definitions.items()
        ),
        name=OPENSORA_V1_2.name,
        dtype="fp32",
        source="random, seed 0",
        pipeline=OPEN_SORA.name,
        model=OPENSORA_V1_2.model_dump(mode="json"),
    )


def job_of(weights: str, store: BlockStore, out: Path, row: Row) -> PackageJob:
    run = parse_name(WORKLOAD)[1].model_copy(update={"dtype": row.precision})
    sha256 = store.entry(weights).sha256
    variants = partial(variants_of, OPENSORA_V1_2, (run,))
    return PackageJob(weights, store.path(weights), sha256, variants, row.precision, row.compression, out)


@dataclass(frozen=True)
class Measured:
    """Seconds of an export by the clock and of the processor, and the most memory that the process ever held."""

    elapsed_s: float
    processor_s: float
    peak_bytes: int
    package: Package


def measured(job: PackageJob) -> Measured:
    job.out.mkdir(exist_ok=True)
    began, processor_began = time.perf_counter(), time.process_time()
    package = export_package(job)
    elapsed_s, processor_s = time.perf_counter() - began, time.process_time() - processor_began
    return Measured(elapsed_s, processor_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, package)


def line_of(row: Row, store: BlockStore, out: Path) -> str:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        first, second = (pool.submit(measured, job_of(weights, store, out, row)).result() for weights in row.blocks)
    source, package = store.entry(row.blocks[0]).data_bytes, first.package
    error = "-" if package.weight_error is None else f"{package.weight_error:.2%}"
    return (
        f"| {row.name} | {row.precision} | {row.compression} | {first.elapsed_s:.1f} | {second.elapsed_s:.1f} "
        f"| {second.processor_s:.1f} | {first.peak_bytes / 1e9:.2f} | {second.peak_bytes / 1e9:.2f} "
        f"| {source / 1e6:.1f} | {package.bytes / 1e6:.1f} | {error} |"
    )


def plain_bytes(store: BlockStore, out: Path) -> tuple[int, int]:
    """Bytes of a pair's package with both functions, and with the plain one alone."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_both_and_plain, job_of("stdit.00", store, out, ROWS[-1])).result()


def _both_and_plain(job: PackageJob) -> tuple[int, int]:
    from safetensors.torch import load_file

    from cidl_sim.coreml.conversion import convert, function_of
    from cidl_sim.coreml.manifest import files_of

    job.out.mkdir()
    both = export_package(job).bytes
    plain = next(iter(job.variants()[job.weights].values()))
    model = convert(plain.longest, function_of(plain, job.precision), load_file(job.file), job.precision)
    model.save(str(job.out / "plain.mlpackage"))
    return both, sum(file.bytes for file in files_of(job.out / "plain.mlpackage").values())


def report(lines: list[str], sizes: tuple[int, int]) -> str:
    both, plain = sizes
    return "\n".join(
        [
            "# Exporting blocks at full width",
            "",
            f"Command: `.venv/bin/python experiments/coreml_export.py`. Date: {datetime.now(UTC).date()}. Machine: "
            f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end; "
            f"coremltools {metadata.version('coremltools')}, torch {metadata.version('torch')}.",
            "",
            f"Shapes of {WORKLOAD}, random weights in an fp32 store. Each row is a process that exports two blocks; "
            "the first brings the start-up of the libraries. Peaks are of the whole process, the store's mapped file "
            "included. Other work shared the machine, hence the seconds of the processor, all threads together. "
            "Nothing was run: these are conversions.",
            "",
            "| block | dtype | weights | first (s) | second (s) | second, of the processor (s) | peak (GB) "
            "| peak after both (GB) | in the store (MB) | package (MB) | weight error |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *lines,
            "",
            f"A pair's package with plain and merged functions takes {both:,} bytes, with the plain one alone "
            f"{plain:,}: {both / plain:.4f} of it.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
