"""Who keeps weights after which visit, for many retained patterns at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.feasibility import check_any_plan_fits, check_plan
from cidl_sim.core.plan import Plan
from cidl_sim.core.workload import Workload
from cidl_sim.policies.build import deep_prefetch, keep_positions, repeated_positions, repeating_groups
from cidl_sim.policies.catalog import make_plan
from cidl_sim.policies.retained import KEEPS
from cidl_sim.sweep.points import Ints, hashed
from cidl_sim.sweep.spec import PATTERNS, RANDOM

Bools = NDArray[np.bool_]


def keep_rows(workload: Workload, policies: Sequence[str], retained: Ints, seeds: Ints) -> Bools:
    """A row (visits,) for each pattern with its number of retained blocks, as `evaluate_many` takes them."""
    rows = np.zeros((len(policies), len(workload.visits)), np.bool_)
    fixed: dict[tuple[str, int], list[int]] = {}
    for row, policy in enumerate(policies):
        if policy != RANDOM:
            fixed.setdefault((policy, int(retained[row])), []).append(row)
    for (policy, number), places in fixed.items():
        numbers = dict.fromkeys(repeating_groups(workload), number)
        rows[np.ix_(places, sorted(KEEPS[policy](workload, numbers)))] = True
    drawn = [row for row, policy in enumerate(policies) if policy == RANDOM]
    if drawn:
        rows[drawn] = _random_rows(workload, retained[drawn], seeds[drawn])
    return rows


def plan_of(
    workload: Workload,
    device: DeviceProfile,
    policy: str,
    retained: int | None,
    lookahead: int | None = None,
    seed: int | None = None,
) -> Plan:
    """The plan of one row. InfeasibleError where it does not fit, PolicyError for an unknown policy or number."""
    if retained is None or policy not in PATTERNS:
        return make_plan(policy if retained is None else f"{policy}:{retained}", workload, device)
    check_any_plan_fits(workload, device.memory_limit_bytes, device.baseline_bytes)
    one = keep_rows(workload, [policy], np.array([retained]), np.array([seed or 0]))
    keep = {int(number) for number in np.flatnonzero(one[0])}
    plan = deep_prefetch(f"{policy}:{retained}", workload, device, keep, lookahead)
    check_plan(workload, device, plan)
    return plan


def _random_rows(workload: Workload, retained: Ints, seeds: Ints) -> Bools:
    """Of each group the blocks that come first in a random order of their own for each seed, round after round."""
    rows = np.zeros((len(retained), len(workload.visits)), np.bool_)
    for number, group in enumerate(repeating_groups(workload)):
        count = repeated_positions(workload, group)
        positions = np.array([visit.position for visit in workload.visits])
        stays = sorted(keep_positions(workload, {group: set(range(count))}))
        scores = hashed(number, seeds[:, None], np.arange(count)[None, :])
        ranks = scores.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
        rows[:, stays] = (ranks < retained[:, None])[:, positions[stays]]
    return rows
