import json

import jsonschema
import pytest

from cidl_sim.core.schemas import MODELS, SCHEMA_FOLDER, schema_file, schema_text
from cidl_sim.executor.job import RunSummary
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import simulate
from tests.conftest import uniform_device, uniform_workload

RECORDS = {**MODELS, "run_summary": RunSummary}


@pytest.mark.parametrize("name", RECORDS)
def test_the_schema_files_are_what_the_models_give(name):
    # If this fails: .venv/bin/python experiments/write_generated_files.py
    assert schema_file(name).read_text() == schema_text(RECORDS[name])


def test_every_schema_file_belongs_to_a_model():
    assert set(SCHEMA_FOLDER.iterdir()) == {schema_file(name) for name in RECORDS}


def test_what_we_write_is_valid_for_the_schemas():
    workload, device = uniform_workload(3, 2), uniform_device(2, 1, 1)
    plan = make_plan("next_block", workload, device)
    trace = simulate(workload, device, plan)
    for name, text in (("workload", workload.to_json()), ("plan", plan.to_json()), ("trace", trace.to_json())):
        jsonschema.validate(json.loads(text), json.loads(schema_file(name).read_text()))


def test_the_schema_refuses_what_the_reader_refuses():
    schema = json.loads(schema_file("trace").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"format": "cidl-trace/2", "header": {}, "spans": []}, schema)
