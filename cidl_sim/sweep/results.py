"""Results on disk: a folder of Parquet parts in the order of the rows, each whole or not there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from cidl_sim.core.files import read_json, replacing, validated, write_text
from cidl_sim.sweep.spec import Sweep, SweepError

if TYPE_CHECKING:
    import polars as pl

SWEEP_FILE = "sweep.json"
PART_KEY = b"cidl-sweep-part"


def part_name(number: int) -> str:
    """The file of a part; names are in the order of the rows."""
    return f"part-{number:06d}.parquet"


def encode_part(table: pa.Table, identity: str) -> bytes:
    """A part as the bytes of its file, the same bytes for the same rows; `identity` says of what and where."""
    table = table.replace_schema_metadata({PART_KEY: identity.encode()})
    sink = pa.BufferOutputStream()
    text = [column.name for column in table.schema if pa.types.is_string(column.type)]
    pq.write_table(table, sink, compression="zstd", use_dictionary=text, write_page_checksum=True)
    return bytes(sink.getvalue())


def write_part(folder: Path, number: int, content: bytes) -> None:
    """Write a part in one step."""
    with replacing(folder / part_name(number)) as temporary:
        temporary.write_bytes(content)


def is_whole(path: Path, identity: str, rows: int) -> bool:
    """Whether the file is there, undamaged (every page has a checksum), and that part with so many rows."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            metadata = file.schema_arrow.metadata or {}
            if metadata.get(PART_KEY) != identity.encode() or file.metadata.num_rows != rows:
                return False
            return all(batch.num_rows for batch in file.iter_batches())
    except (OSError, pa.ArrowException, ValueError):
        return False


def check_folder(folder: Path, identity: str) -> None:
    """Whether a sweep's results may go there. SweepError where another sweep's, or something else, is."""
    if folder.exists() and not folder.is_dir():
        raise SweepError(f"{folder}: is a file; results are a folder of parts")
    if (folder / SWEEP_FILE).is_file():
        described = read_json(folder / SWEEP_FILE, SweepError)
        if not isinstance(described, dict) or described.get("identity") != identity:
            raise SweepError(
                f"{folder}: holds another sweep, or the same one of workloads and devices that have changed; "
                "choose another -o or remove it"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise SweepError(f"{folder}: holds something else than results of a sweep; choose another -o")


def open_folder(folder: Path, sweep: Sweep, identity: str) -> None:
    """Make the folder of a sweep, if it is not there."""
    if not (folder / SWEEP_FILE).is_file():
        described = {"identity": identity, "sweep": sweep.model_dump(mode="json")}
        write_text(folder / SWEEP_FILE, json.dumps(described, indent=1) + "\n")


def read_sweep(folder: Path) -> Sweep:
    """The sweep whose results are in `folder`. SweepError where there are none."""
    if not (folder / SWEEP_FILE).is_file():
        raise SweepError(f"{folder}: no results of a sweep (there is no {SWEEP_FILE})")
    described = read_json(folder / SWEEP_FILE, SweepError)
    sweep = described.get("sweep") if isinstance(described, dict) else None
    return validated(Sweep, sweep, str(folder / SWEEP_FILE), SweepError)


def scan(folder: Path) -> pl.LazyFrame:
    """The rows in order, read as they are needed. SweepError where there are none."""
    import polars as pl

    return pl.scan_parquet(_parts(folder))


def _parts(folder: Path) -> list[Path]:
    read_sweep(folder)
    parts = sorted(folder.glob("part-*.parquet"))
    if not parts:
        raise SweepError(f"{folder}: no rows yet; 'cidl sweep' with the same axes goes on")
    return parts


@contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    """SweepError where a part cannot be read; its library panics over some damage, beyond what `Exception` is."""
    import polars as pl

    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        raise SweepError(f"{folder}: a part is damaged; the same 'cidl sweep' makes it again") from None


def row_at(folder: Path, index: int) -> dict[str, Any]:
    """The row with that index. SweepError if there is none."""
    import polars as pl

    with _damage_named(folder):
        found = scan(folder).filter(pl.col("index") == index).collect()
    if found.is_empty():
        raise SweepError(f"{folder}: no row {index}; rows count from 0")
    row: dict[str, Any] = found.row(0, named=True)
    return row


def best_rows(folder: Path) -> list[dict[str, Any]]:
    """Of each workload and device with figures set the fastest row, that with the least memory where several are.

    Beside it the number of rows and of those that fit; in the order of the sweep.
    """
    import polars as pl

    # Part by part: of millions of rows one group may have them all.
    with _damage_named(folder):
        found = pl.concat([_best_of_part(pl.read_parquet(path)) for path in _parts(folder)])
    rows = found.group_by(_CASE).agg(
        pl.col("rows").sum(),
        pl.col("fit").sum(),
        pl.col("first").min(),
        pl.col(_BEST).sort_by(*_FASTEST, nulls_last=True).first(),
    )
    best: list[dict[str, Any]] = rows.sort("first").drop("first", "rounded_s").to_dicts()
    return [{**row, "settings": json.loads(row["settings"])} for row in best]


_CASE = ["workload", "device", "settings"]
_FASTEST = ["rounded_s", "peak_resident_bytes", "index"]
_BEST = ["policy", "lookahead", "makespan_s", "lower_bound_s", "peak_resident_bytes", "index", "rounded_s"]


def _best_of_part(rows: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    makespan_s = pl.col("makespan_s")
    counted = pl.len().alias("rows"), makespan_s.is_not_null().sum().alias("fit"), pl.col("index").min().alias("first")
    # Makespans that differ by rounding are equal.
    rounded = rows.with_columns(rounded_s=makespan_s.round_sig_figs(12))
    return rounded.group_by(_CASE).agg(*counted, pl.col(_BEST).sort_by(*_FASTEST, nulls_last=True).first())
