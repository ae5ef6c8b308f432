"""Published measurements: read as data, compared with what the simulator predicts.

A file (format `cidl-published/1`, TOML) holds rows as their authors print them; `predictions.py` says what predicts
which row, `iphone_fit.py` from which rows the profile is fitted. None of them was measured by this project.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from cidl_sim.core.device import Mark
from cidl_sim.core.errors import PublishedError
from cidl_sim.core.files import Record, read_text, validated

_SECONDS = {"s": 1.0, "ms": 1e-3}


class PublishedConditions(Record):
    """Under what a figure was measured. `not_printed` names what the source leaves open; None: does not apply."""

    resolution: str | None = Field(default=None, pattern=r"^\d+x\d+$")
    frames: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    technique: str | None = None
    model: str | None = None
    weight_bytes: int | None = Field(default=None, gt=0)
    load: Literal["first", "later"] | None = None
    os: str | None = None
    not_printed: tuple[
        Literal["resolution", "frames", "steps", "technique", "model", "weight_bytes", "load", "os"], ...
    ] = ()

    @model_validator(mode="after")
    def _what_is_not_printed_is_not_given(self) -> PublishedConditions:
        for name in self.not_printed:
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is given and said to be not printed")
        return self

    def text(self) -> str:
        """The conditions in a few words."""
        words = [
            self.resolution,
            f"{self.frames} frames" if self.frames else None,
            f"{self.steps} steps" if self.steps else None,
            None if self.technique is None else "no technique" if self.technique == "none" else self.technique,
            self.model,
            f"{self.weight_bytes / 1e6:,.0f} MB" if self.weight_bytes else None,
            self.os,
            f"not printed: {', '.join(self.not_printed).replace('_', ' ')}" if self.not_printed else None,
        ]
        return "; ".join(word for word in words if word)


class PublishedRow(Record):
    """One published figure. `claim`: a headline whose settings are not given, so nothing can be held against it."""

    id: str = Field(min_length=1)
    what: str = Field(min_length=1)
    value: float = Field(gt=0)
    unit: Literal["s", "ms", "x", "it/s", "tokens/s"]
    device: str = Field(min_length=1)
    source: str = Field(min_length=1)
    mark: Mark = "published"
    claim: bool = False
    conditions: PublishedConditions = PublishedConditions()

    @property
    def seconds(self) -> float:
        """The figure in seconds. PublishedError if it is no time."""
        if self.unit not in _SECONDS:
            raise PublishedError(f"published row {self.id!r}: {self.value} {self.unit} is no time")
        return self.value * _SECONDS[self.unit]

    @property
    def is_time(self) -> bool:
        """Whether the figure is a time (else a factor or a rate)."""
        return self.unit in _SECONDS


class PublishedFile(Record):
    """A file of rows."""

    format: Literal["cidl-published/1"]
    rows: tuple[PublishedRow, ...] = Field(min_length=1)


Rows = Mapping[str, PublishedRow]


def read_published(*paths: Path) -> dict[str, PublishedRow]:
    """The rows of some files by id, in the files' order.

    PublishedError names the file and the field, or the id that appears twice.
    """
    rows: dict[str, PublishedRow] = {}
    for path in paths:
        try:
            data = tomllib.loads(read_text(path, PublishedError))
        except tomllib.TOMLDecodeError as problem:
            raise PublishedError(f"{path}: not TOML ({problem})") from None
        for number, row in enumerate(validated(PublishedFile, data, str(path), PublishedError).rows):
            if row.id in rows:
                raise PublishedError(f"{path}: rows.{number}.id: {row.id!r} appears twice")
            rows[row.id] = row
    return rows


def row_of(rows: Rows, row_id: str) -> PublishedRow:
    """The row called `row_id`; PublishedError if there is none."""
    if row_id not in rows:
        raise PublishedError(f"no published row {row_id!r}; there are: {', '.join(rows)}")
    return rows[row_id]
