"""The XML that `xctrace export` writes of a recording's tables, as rows of text.

A table is a `schema` with columns, then rows whose cells come in the columns' order, each in an element named after its
type. A value is written once, with an `id`; wherever it occurs again, inside other values too, stands an element with a
`ref`. A query may give several nodes of which only the first has the schema. Written after public descriptions of the
format, not after a document of Apple's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError, iterparse

from cidl_sim.core.errors import TraceError

SIGNPOSTS = ("OSSignpostIntervals", "os-signpost-interval")  # the table's name depends on Xcode's version
CORE_ML = "coreml-os-signpost"
NEURAL_ENGINE = ("ane-hw-intervals", "ane-hw-intervals-internal")
GPU = "metal-gpu-intervals"
KNOWN = (*SIGNPOSTS, CORE_ML, *NEURAL_ENGINE, GPU)


@dataclass(frozen=True, slots=True)
class Cell:
    """A value: `column` is its column's mnemonic ("" where the table has no schema), `type` its element's name.

    `text` is the value itself, a number for a state or a time; `shown` is what Instruments shows for it.
    """

    column: str
    type: str
    text: str
    shown: str


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table `schema` in `file`; `number` counts the table's rows in that file from 1."""

    file: Path
    schema: str
    number: int
    cells: tuple[Cell, ...]

    @property
    def named(self) -> str:
        """How messages call it."""
        return f"{self.file}: table {self.schema!r}, row {self.number}"

    def text(self, *names: str) -> str:
        """What is shown in the first cell whose column or type is one of `names`, in their order; "" if none is."""
        cell = self._cell(names)
        return "" if cell is None else cell.shown

    def nanoseconds(self, *names: str) -> int:
        """The value of such a cell. TraceError if it is missing or no number of nanoseconds."""
        cell = self._cell(names)
        text = "" if cell is None else cell.text
        if not text.isascii() or not text.isdigit():
            raise TraceError(f"{self.named}: {names[0]} is {text!r}, not a number of nanoseconds")
        return int(text)

    def _cell(self, names: tuple[str, ...]) -> Cell | None:
        cells = (cell for name in names for cell in self.cells if name in (cell.column, cell.type))
        return next(cells, None)

    @property
    def interval_ns(self) -> tuple[int, int]:
        """Start and end, counted from the start of the recording."""
        start_ns = self.nanoseconds("start", "start-time")
        return start_ns, start_ns + self.nanoseconds("duration")

    @property
    def message(self) -> str:
        """What a signpost says, at its begin and at its end."""
        return " ".join(c.text for c in self.cells if c.type == "os-log-metadata" or c.column.endswith("message"))


def read_tables(files: list[Path]) -> dict[str, list[Row]]:
    """The tables of `KNOWN` in some exported files, by name; a table may be spread over several.

    TraceError for a file that is no export, that holds none of these tables or one without rows: what was not
    recorded must not pass for something that did not happen.
    """
    tables: dict[str, list[Row]] = {}
    for file in files:
        found: dict[str, list[Row]] = {}
        others: dict[str, None] = {}
        for schema, row in _rows(file):
            if schema not in KNOWN:
                others[schema] = None
                continue
            rows = found.setdefault(schema, [])
            if row is not None:
                rows.append(Row(file, schema, len(rows) + 1, row))
        for schema, rows in found.items():
            if not rows:
                raise TraceError(f"{file}: table {schema!r} has no rows; nothing was recorded there, which is not zero")
        if not found:
            held = f"only {', '.join(map(repr, others))}" if others else "no table"
            raise TraceError(f"{file}: {held}; export one of {', '.join(KNOWN)}")
        for schema, rows in found.items():
            tables.setdefault(schema, []).extend(rows)
    return tables


def _rows(file: Path) -> Iterator[tuple[str, tuple[Cell, ...] | None]]:
    """Each row with its table's name, and each schema on its own, so that tables without rows are seen."""
    values: dict[str, Element] = {}
    schema, columns = "", []
    try:
        node = None
        for event, element in iterparse(file, ("start", "end")):
            if event == "start":
                if node is None:
                    _check_root(file, element)
                if node is None or element.tag == "node":
                    node = element
                continue
            # In the document's order: a value stands before what refers to it, and a node may count its ids anew.
            if element.get("id") is not None:
                values[element.attrib["id"]] = element
            if element.tag == "schema":
                schema = element.get("name", "")
                columns = [column.findtext("mnemonic") or "" for column in element.findall("col")]
                yield schema, None
            elif element.tag == "row":
                if columns and len(columns) != len(element):
                    raise TraceError(
                        f"{file}: table {schema!r}: a row of {len(element)} cells for {len(columns)} columns"
                    )
                mnemonics = columns or [""] * len(element)
                cells = [_cell(file, m, c, values) for m, c in zip(mnemonics, element, strict=True)]
                element.clear()
                if node is not None:
                    node.clear()  # a recording's rows do not stay in memory
                yield schema, tuple(cells)
    except ParseError as problem:
        raise TraceError(f"{file}: not XML as xctrace exports it ({problem})") from None
    except RecursionError:
        raise TraceError(f"{file}: values that refer to themselves") from None
    except OSError as problem:
        raise TraceError(f"{file}: cannot be read ({problem.strerror})") from None


def _check_root(file: Path, root: Element) -> None:
    if root.tag == "trace-toc":
        raise TraceError(f"{file}: a recording's table of contents; export its tables with --xpath")
    if root.tag != "trace-query-result":
        raise TraceError(f"{file}: <{root.tag}>, not the <trace-query-result> that xctrace exports")


def _cell(file: Path, column: str, element: Element, values: dict[str, Element]) -> Cell:
    value = _resolved(file, element, values)
    text = _text(file, value, values)
    return Cell(column, element.tag, text, text if element.tag == "os-log-metadata" else value.get("fmt") or text)


def _resolved(file: Path, element: Element, values: dict[str, Element]) -> Element:
    reference = element.get("ref")
    if reference is None:
        return element
    if reference not in values:
        raise TraceError(f"{file}: <{element.tag} ref={reference!r}> refers to nothing")
    return values[reference]


def _text(file: Path, value: Element, values: dict[str, Element]) -> str:
    """A value as text; that of a message is made of its parts, one after another."""
    if value.tag == "os-log-metadata" and len(value):
        return "".join(_text(file, _resolved(file, part, values), values) for part in value)
    if value.tag == "narrative-text":
        return value.text or ""  # the spaces in it separate what is told
    return (value.text or "").strip() or value.get("fmt", "")
