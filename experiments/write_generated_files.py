"""Write the files that are made from code: the JSON Schemas and the shipped workloads.

Run it after any change of the file formats, of the models or of how they are measured; tests compare.

    .venv/bin/python experiments/write_generated_files.py
"""

from cidl_sim.core import schemas
from cidl_sim.executor.job import RunSummary
from cidl_sim.pipelines import catalog


def main() -> None:
    for path in schemas.write_schemas({**schemas.MODELS, "run_summary": RunSummary}):
        print(path)
    for pipeline in catalog.pipelines().values():
        for old in pipeline.data.glob("*.json") if pipeline.data else ():
            old.unlink()
        for name in pipeline.shipped:
            workload = catalog.measure_workload(*catalog.parse_name(name))
            workload.write(pipeline.data / f"{workload.name}.json")
            print(f"{workload.name}: {len(workload.visits)} visits, {workload.weights_bytes} bytes of weights")


if __name__ == "__main__":
    main()
