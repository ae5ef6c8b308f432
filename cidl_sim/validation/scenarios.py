"""Which runs a validation makes: policies that the calibration never saw, chosen for what binds them.

Candidates are combinations of settings, policy and memory limit. Each is simulated on the calibrated
profile; the chosen ones spread over loader-bound, balanced and executor-bound runs, over settings and policies. What a
machine does not have of one kind (a fast disk beside slow cores binds nothing to the loader) others make up for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cidl_sim.calibration.this_machine import Target
from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.progress import Progress, silent
from cidl_sim.core.trace import Trace
from cidl_sim.core.what_if import with_value
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.catalog import pipeline_of, workload_of
from cidl_sim.pipelines.matching import store_sizes
from cidl_sim.pipelines.pipeline import RunSettings
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import simulate
from cidl_sim.validation.runs import Scenario

# The calibration runs a plan that alternates and one that keeps everything; these it has never seen.
POLICIES = ("prefix:4", "spread:2", "spread:4", "spread:8", "lru", "on_device_sora", "spread")
# Of the weights, so much may be in memory at a time.
WEIGHTS_FRACTIONS = (0.15, 0.3, 0.5)
# How many of each kind a validation takes, and what counts as one: loading work over execution work.
WANTED = {"loader": 4, "balanced": 4, "executor": 2}
_CLEARLY_LOADER, _BALANCED, _CLEARLY_EXECUTOR = 1.35, (0.88, 1.14), 0.75


@dataclass(frozen=True)
class _Candidate:
    scenario: Scenario
    bound_by: str | None
    ratio: float
    policy: str


def default_targets(stores: Sequence[BlockStore], settings: RunSettings) -> list[Target]:
    """Variants of `settings` for each store, as its family says; of the stores after the first only two.

    The last variants are those of the next stores, where there are any (another partition).
    """
    variants = pipeline_of(store_sizes(stores[0])).validating(settings)
    targets = [(stores[0], variant) for variant in variants]
    for store in stores[1:]:
        own = {"partition": store.index.partition, "dtype": store.index.dtype}
        targets += [(store, variant.model_copy(update=own)) for variant in variants[:2]]
    return targets


def choose_scenarios(
    targets: Sequence[Target],
    device: DeviceProfile,
    on_candidate: Progress = silent,
) -> list[Scenario]:
    """Scenarios of `WANTED` kinds, as far as there are any, and others instead; the same input gives the same choice.

    `on_candidate` observes the simulations of candidates.
    """
    combinations = [(t, policy, fraction) for t in targets for policy in POLICIES for fraction in WEIGHTS_FRACTIONS]
    candidates: list[_Candidate] = []
    for done, ((store, settings), policy, fraction) in enumerate(combinations):
        candidates += _candidates(store, settings, policy, fraction, device)
        on_candidate(done + 1, len(combinations), policy)
    chosen: list[_Candidate] = []
    for kind, count in WANTED.items():
        chosen += _diverse([c for c in candidates if c.bound_by == kind], count, chosen)
    chosen += _diverse(candidates, sum(WANTED.values()) - len(chosen), chosen)
    return [_numbered(number, c) for number, c in enumerate(chosen, start=1)]


def _candidates(
    store: BlockStore, settings: RunSettings, policy: str, fraction: float, device: DeviceProfile
) -> Iterator[_Candidate]:
    workload = workload_of(store_sizes(store), settings)
    workspace = max(visit.block.workspace_bytes for visit in workload.visits)
    limit = device.baseline_bytes + workspace + int(fraction * workload.weights_bytes)
    limited = with_value(device, "memory_limit_bytes", limit)
    try:
        plan = make_plan(policy, workload, limited)
        trace = simulate(workload, limited, plan)
    except InfeasibleError:
        return
    ratio = trace.loader_busy_s / trace.executor_busy_s
    yield _Candidate(Scenario("", store, workload, policy, limit), _kind(trace, ratio), ratio, plan.policy)


def _kind(trace: Trace, ratio: float) -> str | None:
    """What binds a run, if that is clear: a candidate near a border may fall on either side when it is run."""
    if ratio >= _CLEARLY_LOADER:
        return "loader"
    if ratio <= _CLEARLY_EXECUTOR:
        return "executor"
    # One long wait makes a run with equal work no balanced one.
    waits = trace.idle_s.get("executor", {}).get("load", 0.0)
    return "balanced" if _BALANCED[0] <= ratio <= _BALANCED[1] and waits < 0.5 * trace.makespan_s else None


def _diverse(candidates: Sequence[_Candidate], count: int, before: Sequence[_Candidate]) -> list[_Candidate]:
    """Up to `count` more than `before`: each time the one whose settings, policy and limit were taken least often."""
    taken = Counter(feature for candidate in before for feature in _features(candidate))
    known = {(c.scenario.workload.name, c.policy) for c in before}
    chosen: list[_Candidate] = []
    while len(chosen) < count:
        left = [c for c in candidates if (c.scenario.workload.name, c.policy) not in known]
        if not left:
            break
        best = min(left, key=lambda c: sum(taken[feature] for feature in _features(c)))
        taken.update(_features(best))
        known.add((best.scenario.workload.name, best.policy))
        chosen.append(best)
    return chosen


def _features(candidate: _Candidate) -> tuple[object, ...]:
    scenario = candidate.scenario
    return (scenario.workload.name, scenario.policy.partition(":")[0], scenario.memory_limit_bytes)


def _numbered(number: int, candidate: _Candidate) -> Scenario:
    scenario = candidate.scenario
    policy = candidate.scenario.policy.replace(":", "-").replace("=", "").replace(",", "-")
    name = f"{number:02}-{policy}"
    return Scenario(name, scenario.store, scenario.workload, scenario.policy, scenario.memory_limit_bytes)
