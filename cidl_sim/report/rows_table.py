"""A table of equal rows, whatever they are about."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def rows_table(title: str, rows: list[dict[str, Any]], skip: tuple[str, ...] = ()) -> Table:
    """A table of equal rows; the units of a column follow from the ending of its name."""
    table = Table(title=title, title_justify="left")
    columns = [name for name in rows[0] if name not in skip]
    for name in columns:
        table.add_column(
            _heading(name),
            no_wrap=name == "name",
            justify="right" if isinstance(rows[0][name], int | float) else "left",
        )
    for row in rows:
        table.add_row(*(_cell(name, row[name]) for name in columns))
    return table


def _heading(name: str) -> str:
    units = {
        "_bytes_per_s": " (GB/s)",
        "flops_per_s": " (TFLOPS)",
        "_bytes": " (MB)",
        "_s": " (s)",
        "flops": " (TFLOP)",
    }
    for ending, unit in units.items():
        if name.endswith(ending):
            stem = name.removesuffix(ending).replace("_", " ")
            return (stem or "compute") + unit
    return name.replace("_", " ")


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    scales = {"_bytes_per_s": 1e9, "flops_per_s": 1e12, "_bytes": 1e6, "flops": 1e12}
    for ending, scale in scales.items():
        if name.endswith(ending):
            return f"{value / scale:,.2f}" if scale > 1e6 else f"{value / scale:,.1f}"
    return f"{value:,.2f}" if isinstance(value, float) else str(value)
