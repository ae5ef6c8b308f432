"""What a plan does and what limits it, in sentences of which each is computed from its simulation or from a rerun.

Three kinds of reruns: the same number of blocks retained in another choice, the same blocks with loads as early as
memory allows, and more memory by one slot after the other (a slot is one block of the group that repeats).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.plan import Plan
from cidl_sim.core.timed import Timed, timed
from cidl_sim.core.trace import Trace
from cidl_sim.core.workload import Workload
from cidl_sim.planner.bisection import bytes_text
from cidl_sim.planner.break_points import PAYS
from cidl_sim.planner.slots import Slots, deep_makespan_s, fewest_slots
from cidl_sim.policies.build import positions_of, repeated_positions, repeating_groups
from cidl_sim.policies.on_device_sora import REFERENCE
from cidl_sim.policies.retained import even_positions, first_positions

# Busy for this share of the time: that side binds.
BINDS = 0.9
# A group with less of the makespan than this is not spoken of.
MINOR_GROUP = 0.01


@dataclass(frozen=True)
class _Explained:
    """A plan with its simulation, and what both are about."""

    workload: Workload
    device: DeviceProfile
    plan: Plan
    trace: Trace

    @cached_property
    def priced(self) -> Timed:
        """The workload priced on the device."""
        return timed(self.workload, self.device)

    @property
    def group(self) -> str | None:
        """The group that repeats (the one that takes longest, if several do)."""
        elapsed = self.trace.groups
        return max(repeating_groups(self.workload), key=lambda group: elapsed[group]["elapsed_s"], default=None)

    @property
    def is_deep(self) -> bool:
        """Whether every load starts as early as memory allows."""
        return all(load.gate is None for load in self.plan.loads)


def explain(
    workload: Workload,
    device: DeviceProfile,
    plan: Plan,
    trace: Trace,
    baselines: Mapping[str, float | None],
) -> list[str]:
    """Short sentences that hold for `plan` (with its predictions filled in) and its simulation `trace`.

    `baselines`: the makespan in seconds of each policy, None where it does not fit. Only what matters for this plan is
    said. DeviceError where a cost is unknown.
    """
    explained = _Explained(workload, device, plan, trace)
    sentences = [*_against_policies(plan, trace.makespan_s, baselines), *_proof(plan)]
    if trace.makespan_s > 0:
        sentences += [
            *_what_binds(explained),
            *_waits(explained),
            *_retention(explained),
            *_other_choices(explained, baselines),
            *_more_memory(explained),
        ]
    return sentences


# From the simulation


def _against_policies(plan: Plan, seconds: float, baselines: Mapping[str, float | None]) -> list[str]:
    """The reference app's policy beside the plan; beside that policy itself, the best other one."""
    name = plan.policy.partition(":")[0]
    if name == REFERENCE:
        others = [(s, policy) for policy, s in baselines.items() if s is not None and policy != name]
        best_s, best = min(others, default=(math.inf, ""))
        return [f"{best} is {_percent(seconds / best_s - 1)} faster"] if best_s * (1 + PAYS) < seconds else []
    if REFERENCE not in baselines:
        return []
    reference_s = baselines[REFERENCE]
    if reference_s is None:
        return [f"{REFERENCE} does not fit this device"]
    if not seconds or abs(reference_s / seconds - 1) < PAYS:
        return [f"as fast as {REFERENCE}"]
    faster = reference_s > seconds
    return [f"{_percent(_gain(seconds, reference_s))} {'faster' if faster else 'slower'} than {REFERENCE}"]


def _proof(plan: Plan) -> list[str]:
    if plan.proven_optimal:
        return [f"proven optimal: {plan.proof_scope} takes at least as long"]
    return [f"no plan can be more than {_percent(plan.gap, up=True)} faster"] if plan.gap is not None else []


def _what_binds(explained: _Explained) -> list[str]:
    """Which side is busy nearly all the time: in the whole run, or else group by group."""
    trace = explained.trace
    groups: dict[str, list[str]] = {}
    for group, (loader, executor) in _busy_shares(explained).items():
        side = _binding_side(loader, executor)
        groups.setdefault(side, []).append(f"the {_spoken(group)} ({_busy(side, loader, executor)})")
    if len(groups) > 1:
        return ["bound " + ", ".join(f"by {side} in {' and '.join(places)}" for side, places in groups.items())]
    loader, executor = trace.loader_busy_s / trace.makespan_s, trace.executor_busy_s / trace.makespan_s
    side = _binding_side(loader, executor)
    return [f"bound by {side}: {_busy(side, loader, executor)} of the time"]


def _busy_shares(explained: _Explained) -> dict[str, tuple[float, float]]:
    """The shares of each group's time in which the loader and the executor are busy; minor groups left out."""
    trace, workload = explained.trace, explained.workload
    ends = {span.visit: span.end_s for span in trace.of("execute")}
    loader_s: dict[str, float] = {}
    reached = 0.0
    for stage, following in zip(workload.stages, workload.first_visit_of_stage[1:], strict=True):
        end_s = ends[following - 1]
        loader_s[stage.group] = loader_s.get(stage.group, 0.0) + trace.loader_busy_within_s(reached, end_s)
        reached = end_s
    return {
        group: (loader_s[group] / row["elapsed_s"], row["executor_busy_s"] / row["elapsed_s"])
        for group, row in trace.groups.items()
        if row["elapsed_s"] >= MINOR_GROUP * trace.makespan_s
    }


def _binding_side(loader: float, executor: float) -> str:
    if max(loader, executor) < BINDS:
        return "neither side alone"
    return "the executor" if executor >= loader else "the loader"


def _busy(side: str, loader: float, executor: float) -> str:
    if side == "the loader":
        return f"busy {_share(loader)}, the executor waits {_share(1 - executor)}"
    if side == "the executor":
        return f"busy {_share(executor)}, the loader {_share(loader)}"
    return f"executor busy {_share(executor)}, loader {_share(loader)}"


def _waits(explained: _Explained) -> list[str]:
    """How long the executor waits, and how much of that for weights that it never had before."""
    trace, previous = explained.trace, explained.workload.previous_same_weights
    wait_s = trace.makespan_s - trace.executor_busy_s
    if wait_s <= PAYS * trace.makespan_s:
        return ["the executor never waits"]
    if trace.stalls_s <= PAYS * trace.makespan_s:
        return [f"no stalls: the executor waits for the first load alone ({_seconds(wait_s)})"]
    first_s = sum(
        span.end_s - span.start_s
        for span in trace.of("wait")
        if span.worker == "executor" and previous[span.visit] is None
    )
    share = "all" if wait_s - first_s <= PAYS * trace.makespan_s else _share(first_s / wait_s)
    of_it = f", {share} of it for weights that are loaded for the first time" if first_s > PAYS * wait_s else ""
    return [f"the executor waits {_seconds(wait_s)}{of_it}"]


def _retention(explained: _Explained) -> list[str]:
    """How many blocks stay from round to round, and how far loading runs ahead."""
    group = explained.group
    ahead = _most_ahead(explained, group)
    loads = f"loads up to {ahead} {'block' if ahead == 1 else 'blocks'} ahead" if ahead else "loads nothing ahead"
    if group is None:
        return [f"it {loads}"]
    blocks = repeated_positions(explained.workload, group)
    counts = {len(retained) for retained in _retained_in_rounds(explained, group)}
    name = f"{blocks} blocks of the {_spoken(group)}"
    if _rotates(explained, group):
        fewest, most = min(counts), max(counts)
        number = f"{most}" if fewest == most else f"{fewest} to {most}"
        return [f"it retains {number} of the {name}, not the same ones in every round, and {loads}"]
    count = counts.pop()
    number = "none of the" if not count else "all" if count == blocks else f"{count} of the"
    return [f"it retains {number} {name} and {loads}"]


def _most_ahead(explained: _Explained, group: str | None) -> int:
    """The most visits by which a load within a group starts before its own, from the visit under way or due next."""
    workload = explained.workload
    inside = {v.number for v in workload.visits if group in (None, workload.stages[v.stage].group)}
    current, most = 0, 0
    ends = [(span.end_s, 0, span.visit) for span in explained.trace.of("execute")]
    starts = [(span.start_s, 1, span.visit) for span in explained.trace.of("load")]
    for _, is_load, visit in sorted(ends + starts):
        if not is_load:
            current = visit + 1
        elif visit in inside and current in inside:
            most = max(most, visit - current)
    return most


def _retained_in_rounds(explained: _Explained, group: str) -> list[frozenset[int]]:
    """What stays after each round of a group that another round of its stage follows (of any other if none does).

    Where stages meet, a plan may drop what it retains, as the reference app does.
    """
    workload, keep = explained.workload, set(explained.plan.keep)
    inner: list[frozenset[int]] = []
    outer: list[frozenset[int]] = []
    for stage, first in zip(workload.stages, workload.first_visit_of_stage, strict=False):
        if stage.group != group:
            continue
        size = len(stage.blocks)
        for r in range(stage.rounds):
            start = first + r * size
            retained = frozenset(p for p in range(size) if start + p in keep)
            (inner if r < stage.rounds - 1 else outer).append(retained)
    return inner or outer[:-1] or outer


def _rotates(explained: _Explained, group: str) -> bool:
    return len(set(_retained_in_rounds(explained, group))) > 1


# By reruns


def _other_choices(explained: _Explained, baselines: Mapping[str, float | None]) -> list[str]:
    """The plan beside others that retain as many blocks: the first ones, or evenly spread ones."""
    group = explained.group
    if group is None:
        return []
    if _rotates(explained, group):
        return _against_fixed(explained.trace.makespan_s, baselines.get("spread"))
    blocks = repeated_positions(explained.workload, group)
    retained = positions_of(explained.plan, explained.workload)
    chosen, seconds = retained[group], explained.trace.makespan_s
    if not explained.is_deep:
        early_s = deep_makespan_s(explained.priced, retained)
        if early_s * (1 + PAYS) >= seconds:
            return []
        return [f"loading as early as memory allows would be {_percent(seconds / early_s - 1)} faster"]
    if not 0 < len(chosen) < blocks:
        return []
    sizes = _sizes(explained.workload, group)
    rest, worse, counts = [], [], {len(chosen)}
    for positions, name in ((first_positions, "the first {}"), (even_positions, "{} evenly spread")):
        others = _as_large(positions, chosen, sizes)
        if not others or others == chosen:
            continue
        named = name.format(len(others))
        other_s = deep_makespan_s(explained.priced, {**retained, group: others})
        if other_s == math.inf:
            rest.append(f"keeping {named} instead does not fit")
        elif other_s > seconds * (1 + PAYS):
            worse.append(f"{named} by {_percent(other_s / seconds - 1)}")
            counts.add(len(others))
        elif other_s * (1 + PAYS) < seconds:
            rest.append(f"keeping {named} instead would be {_percent(seconds / other_s - 1)} faster")
    ours = "{} blocks evenly spread" if chosen == even_positions(len(chosen), blocks) else "these {} blocks"
    bytes_said = ", within the same bytes" if len(counts) > 1 else ""
    if worse:
        worse = [f"keeping {ours.format(len(chosen))} beats keeping {' and '.join(worse)}{bytes_said}"]
    return worse + rest


def _against_fixed(seconds: float, fixed_s: float | None) -> list[str]:
    """A retained set that changes from round to round beside the best evenly spread one that does not."""
    if fixed_s is None or abs(fixed_s / seconds - 1) < PAYS:
        return []
    if fixed_s > seconds:
        return [f"other blocks in every round beat the best evenly spread ones by {_percent(fixed_s / seconds - 1)}"]
    return [f"keeping the best evenly spread blocks in all rounds would be {_percent(seconds / fixed_s - 1)} faster"]


def _sizes(workload: Workload, group: str) -> dict[int, int]:
    """The weights of a group's blocks by position."""
    stages = [stage for stage in workload.stages if stage.group == group]
    return {p: block.weight_bytes for stage in stages for p, block in enumerate(stage.blocks)}


def _as_large(
    positions: Callable[[int, int], set[int]], chosen: frozenset[int], sizes: Mapping[int, int]
) -> frozenset[int]:
    """As many blocks as have no more bytes than the chosen ones: a tiny block more is no slot more."""
    most, counts = sum(sizes[p] for p in chosen), range(1, len(sizes))
    fitting = [positions(count, len(sizes)) for count in counts]
    return frozenset(max((f for f in fitting if sum(sizes[p] for p in f) <= most), key=len, default=()))


def _more_memory(explained: _Explained) -> list[str]:
    """The fewest slots more with which the executor waits as little as with all weights in memory."""
    group, own_s = explained.group, explained.trace.makespan_s
    if group is None or explained.trace.stalls_s <= PAYS * own_s:
        return []
    own = positions_of(explained.plan, explained.workload)
    found = fewest_slots(explained.workload, explained.device, own, group)
    if found is None:
        return []
    if own_s <= found.makespan_s * (1 + PAYS):
        return ["more memory would not shorten the waits"]
    if not found.slots and found.retained == own:
        return []  # the plan's own blocks, loaded earlier: said among the other choices
    blocks = len(found.retained[group])
    would = f"would {_gained(explained.trace, found)}: {_percent(own_s / found.makespan_s - 1)} faster"
    if not found.slots:
        return [f"keeping {blocks} blocks evenly spread, loaded as early as this memory allows, {would}"]
    number = "1 more slot" if found.slots == 1 else f"{found.slots} more slots"
    limit = bytes_text(found.memory_limit_bytes)
    return [f"{number} of {bytes_text(found.slot_bytes)} (a limit of {limit}, {blocks} blocks retained) {would}"]


def _gained(trace: Trace, found: Slots) -> str:
    """What more slots do: to the stalls, and to executions, which loads beside them may slow down."""
    shorter_s = trace.executor_busy_s - found.executor_busy_s
    is_shorter = shorter_s > PAYS * trace.makespan_s
    if trace.stalls_s - found.stalls_s <= PAYS * trace.makespan_s:
        stalls = f"leave {_seconds(found.stalls_s)} of stalls"
    elif found.stalls_s <= PAYS * found.makespan_s:
        stalls = "remove all stalls"
    else:
        # Where executions get shorter too, the shortest run is not the one with the fewest stalls.
        stalls = f"remove all stalls but {_seconds(found.stalls_s)}" + ("" if is_shorter else " that no memory removes")
    return (
        f"{stalls} and shorten executions by {_seconds(shorter_s)} with fewer loads beside them"
        if is_shorter
        else stalls
    )


# Writing


def _gain(seconds: float, other_s: float) -> float:
    """By which share the faster of two is faster."""
    return max(seconds, other_s) / min(seconds, other_s) - 1


def _share(share: float) -> str:
    return f"{100 * share:.0f} %"


def _percent(share: float, *, up: bool = False) -> str:
    """A share in per cent, a tenth where it is small; `up` for what has to stay an upper bound."""
    scale = 1 if share >= 0.1 else 10
    count = math.ceil(100 * share * scale - 1e-9) if up else round(100 * share * scale)
    return f"{count / scale:g} %"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s"


def _spoken(group: str) -> str:
    return group.replace("_", " ")
