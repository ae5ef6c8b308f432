"""JSON Schemas of the files that other programs read and write, generated from the nouns themselves."""

from __future__ import annotations

import json
from pathlib import Path

from cidl_sim.core.files import Record, write_text
from cidl_sim.core.plan import Plan
from cidl_sim.core.trace import Trace
from cidl_sim.core.workload import Workload

SCHEMA_FOLDER = Path(__file__).parent / "schema"
MODELS: dict[str, type[Record]] = {"workload": Workload, "plan": Plan, "trace": Trace}


def schema_text(model: type[Record]) -> str:
    """The JSON Schema (2020-12) of a file format."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
    return json.dumps(schema, indent=1) + "\n"


def schema_file(name: str) -> Path:
    """Where the schema of "workload", "plan" or "trace" is kept."""
    return SCHEMA_FOLDER / f"{name}.schema.json"


def write_schemas() -> list[Path]:
    """Write all schema files; returns their paths."""
    for name, model in MODELS.items():
        write_text(schema_file(name), schema_text(model))
    return [schema_file(name) for name in MODELS]
