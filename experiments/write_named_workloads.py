"""Write the shipped workload files again: run after any change of the models or of how they are measured.

.venv/bin/python experiments/write_named_workloads.py
"""

from pathlib import Path

from cidl_sim.workloads import catalog


def main() -> None:
    folder = Path(catalog.__file__).parent / "data"
    for old in folder.glob("*.json"):
        old.unlink()
    for name in catalog.SHIPPED:
        workload = catalog.measure_workload(*catalog.parse_name(name))
        workload.write(folder / f"{workload.name}.json")
        print(f"{workload.name}: {len(workload.visits)} visits, {workload.weights_bytes} bytes of weights")


if __name__ == "__main__":
    main()
