"""All cases by the name of their file."""

from __future__ import annotations

from conformance_cases import contention, costs, early_ends, keeps, limits, refusals, rules
from conformance_cases.building import Draft

DRAFTS: dict[str, Draft] = {
    name: draft
    for part in (rules, keeps, costs, contention, early_ends, limits, refusals)
    for name, draft in part.CASES.items()
}
