"""JSON Schemas of what other programs read and write, files and `--json`, generated from the records themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from cidl_sim.core.files import Record, write_text
from cidl_sim.core.plan import Plan
from cidl_sim.core.reports import PlanReport, ValidationReport, WhatIfReport
from cidl_sim.core.trace import Trace
from cidl_sim.core.workload import Workload

SCHEMA_FOLDER = Path(__file__).parent / "schema"
MODELS: dict[str, type[Record]] = {
    "workload": Workload,
    "plan": Plan,
    "trace": Trace,
    "plan_report": PlanReport,
    "what_if": WhatIfReport,
    "validation": ValidationReport,
}


def schema_text(model: type[Record]) -> str:
    """The JSON Schema (2020-12) of a record."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
    return json.dumps(schema, indent=1) + "\n"


def schema_file(name: str) -> Path:
    """Where the schema of that name is kept."""
    return SCHEMA_FOLDER / f"{name}.schema.json"


def write_schemas(models: Mapping[str, type[Record]] = MODELS) -> list[Path]:
    """Write the schema files of some records; returns their paths."""
    for name, model in models.items():
        write_text(schema_file(name), schema_text(model))
    return [schema_file(name) for name in models]
