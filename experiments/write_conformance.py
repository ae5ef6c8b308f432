"""Write conformance/: a JSON file a case, with what the simulator makes of it, and the JSON Schema of such a file.

The cases are defined in conformance_cases/, with times derived by hand that tests compare with the files. Run it after
a case was added or a file format changed; if anything else changes here, a rule has.

    .venv/bin/python experiments/write_conformance.py
"""

from __future__ import annotations

from conformance_cases.catalog import DRAFTS
from conformance_cases.records import CASES, SCHEMA, schema_text

from cidl_sim.core.files import write_text


def main() -> None:
    write_text(SCHEMA, schema_text())
    for old in CASES.glob("*.json"):
        old.unlink()
    for name, draft in DRAFTS.items():
        write_text(CASES / f"{name}.json", draft.completed().to_json())
    print(f"{len(DRAFTS)} cases in {CASES}")


if __name__ == "__main__":
    main()
