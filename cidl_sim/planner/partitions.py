"""The cut of a model into blocks, chosen together with the plan.

Every group of stages (text encoder, denoiser, decoder) may be cut in its own way. Few policies and the lower bound
judge each cut, then an even spread of retained blocks those that may still win; the planner spends its time on the best
ones. A cut whose bound is above a makespan found is out, proven.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from cidl_sim.blocks.cuts import AS_GIVEN, CutChoices, Cuts
from cidl_sim.core.costs import execute_cost, load_cost
from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import DeviceError, InfeasibleError
from cidl_sim.core.feasibility import check_any_plan_fits, largest_need
from cidl_sim.core.progress import Progress, silent
from cidl_sim.core.reports import PartitionRow
from cidl_sim.core.timed import Timed, timed
from cidl_sim.core.workload import Block, Workload
from cidl_sim.planner.bounds import best_bound_s
from cidl_sim.planner.evaluate import TOLERANCE, baseline, baseline_makespans, evaluated_plan
from cidl_sim.planner.planner import Planned, best_plan

# Policies that need no search of their own.
QUICK_POLICIES = ("sequential", "next_block", "on_device_sora", "lru")
# Usually the best policy, but one that tries many numbers; for as much of the time that is left as this.
SLOW_POLICY = "spread"
SLOW_SHARE = 0.4
# So many cuts get the planner's time.
FINALISTS = 2


@dataclass
class Cut:
    """One way to cut: its workload, and what is known of it so far (None: nothing that fits or can be costed)."""

    partition: str
    cuts: Cuts
    workload: Workload
    makespan_s: float | None = None
    lower_bound_s: float | None = None
    is_comparable: bool = True
    derived_kinds: list[str] = field(default_factory=list)
    remark: str = ""

    @property
    def blocks(self) -> list[Block]:
        """The blocks, those with the same weights once."""
        return list({b.weights: b for stage in self.workload.stages for b in stage.blocks}.values())

    @property
    def largest_block_bytes(self) -> int:
        """Weights of the largest block."""
        return max(block.weight_bytes for block in self.blocks)


@dataclass(frozen=True)
class ChosenPartition:
    """The cut that was chosen, its plan, and every cut that was looked at (the workload's own first).

    `store_command` builds a store for it; None where the executor has no such model.
    """

    cut: Cut
    planned: Planned
    cuts: list[Cut]
    store_command: str | None

    @property
    def is_unnamed(self) -> bool:
        """Whether its workload can neither be named nor is the one that was given: a plan needs its file beside."""
        return self.store_command is None and self.cut.partition != AS_GIVEN

    @property
    def rows(self) -> tuple[PartitionRow, ...]:
        """A row for each cut that was looked at."""
        return tuple(
            PartitionRow(
                partition=cut.partition,
                blocks=len(cut.blocks),
                largest_block_bytes=cut.largest_block_bytes,
                makespan_s=cut.makespan_s,
                lower_bound_s=cut.lower_bound_s,
                derived_kinds=tuple(cut.derived_kinds),
                chosen=cut is self.cut,
                remark=cut.remark,
            )
            for cut in self.cuts
        )


def best_partition(
    workload: Workload,
    device: DeviceProfile,
    choices: CutChoices,
    *,
    policy: str | None = None,
    time_limit_s: float = 10.0,
    on_step: Progress = silent,
) -> ChosenPartition:
    """The cut with the best plan found, never worse than any policy's plan for the cut that `workload` has.

    Looking at every cut takes some seconds; what is left of `time_limit_s` then goes to `best_plan` for the best ones,
    half of it in any case. With a `policy` that policy's plans are compared.

    Raises:
        InfeasibleError: no cut fits the device's memory; names the layer that binds.
    """
    deadline_s = time.monotonic() + time_limit_s
    own = _cut(choices, choices.own)
    tried = _Tried(choices, own, device, (policy,) if policy else QUICK_POLICIES, on_step)
    tried.look_at_all()
    deadline_s = max(deadline_s, time.monotonic() + time_limit_s / 2)
    if policy is None:
        tried.look_closer(time.monotonic() + SLOW_SHARE * (deadline_s - time.monotonic()))
        chosen, planned = _searched(tried, deadline_s, on_step)
    else:
        chosen = tried.ranked()[0]
        baselines = baseline_makespans(chosen.workload, device)
        planned = Planned(*evaluated_plan(policy, chosen.workload, device), baselines)
    _remark(tried.cuts, chosen)
    return ChosenPartition(chosen, planned, tried.cuts, choices.store_command(chosen.partition))


def check_fits(workload: Workload, device: DeviceProfile, choices: CutChoices) -> None:
    """InfeasibleError if no plan fits: names the block that binds, and the largest cut that would fit."""
    try:
        check_any_plan_fits(workload, device.memory_limit_bytes, device.baseline_bytes)
    except InfeasibleError as problem:
        raise InfeasibleError(f"{problem}; {_what_would_fit(choices, device)}") from None


def _cut(choices: CutChoices, cuts: Cuts) -> Cut:
    partition, workload = choices.cut(cuts)
    return Cut(partition, cuts, workload)


# Judging them


class _Tried:
    """The cuts that were looked at, each with the bound and the best of a few policies."""

    def __init__(
        self, choices: CutChoices, own: Cut, device: DeviceProfile, policies: tuple[str, ...], on_step: Progress
    ) -> None:
        self.own = own
        self.device = device
        self.cuts: list[Cut] = []
        self._choices = choices
        self._policies = policies
        self._on_step = on_step
        self._known = _measured_kinds(own.workload, device)

    def look_at_all(self) -> None:
        """The workload's own cut, the alternatives, and what is best for each group, together."""
        self._look_at(self.own)
        base = self.own
        if self.own.makespan_s is None:
            finest = self._look_at(_cut(self._choices, self._choices.finest))
            base = finest if finest.makespan_s is not None else base
        for cuts in self._choices.alternatives(base.cuts):
            self._look_at(_cut(self._choices, cuts))
        together = {group: self._best_of(group, base.cuts) for group in self._choices.choices}
        self._look_at(_cut(self._choices, together))
        if not self.ranked():
            check_fits(self.own.workload, self.device, self._choices)
            raise InfeasibleError(f"no policy has a plan for any cut of {self.own.workload.name} on {self.device.name}")

    def look_closer(self, deadline_s: float) -> None:
        """The slow policy for the workload's own cut, and until the deadline for those that their bounds leave in."""
        ranked = self.ranked()
        for cut in sorted(ranked, key=lambda cut: cut is not self.own):
            best_s = self.ranked()[0].makespan_s
            if cut is self.own or (time.monotonic() < deadline_s and _bound(cut) < (best_s or 0.0)):
                self._on_step(len(self.cuts), _count(self._choices), f"{SLOW_POLICY} for partition {cut.partition}")
                found = (cut.makespan_s, _policy_s(SLOW_POLICY, timed(cut.workload, self.device)))
                cut.makespan_s = min((s for s in found if s is not None), default=None)

    def ranked(self) -> list[Cut]:
        """Those that fit and can be compared with the workload's own, fastest first, of equals least changed."""
        known = [(cut.makespan_s, cut) for cut in self.cuts if cut.makespan_s is not None and cut.is_comparable]
        # To nine digits, as sums of the same durations in another order differ in the last ones.
        ranked = sorted(known, key=lambda found: (float(f"{found[0]:.9g}"), self._changes(found[1])))
        return [cut for _, cut in ranked]

    def _look_at(self, cut: Cut) -> Cut:
        same = (other for other in self.cuts if other.workload.stages == cut.workload.stages)
        known = next(same, None)
        if known is not None:
            return known
        self._on_step(len(self.cuts), _count(self._choices), f"partition {cut.partition}")
        self.cuts.append(cut)
        workload, device = cut.workload, self.device
        try:
            check_any_plan_fits(workload, device.memory_limit_bytes, device.baseline_bytes)
            priced = timed(workload, device)
            makespans = [_policy_s(policy, priced) for policy in self._policies]
            cut.lower_bound_s = best_bound_s(priced)
        except InfeasibleError:
            need, visit = largest_need(workload)
            least = need + device.baseline_bytes
            cut.remark = f"does not fit: {visit.block.name} needs {least / 1e6:,.0f} MB"
            return cut
        except DeviceError as problem:
            if cut is self.own:
                raise
            cut.remark = str(problem)
            return cut
        cut.makespan_s = min((s for s in makespans if s is not None), default=None)
        cut.derived_kinds = _derived_kinds(workload, device)
        if cut is not self.own and (kind := _formula_for_measured(workload, device, self._known)):
            cut.is_comparable = False
            cut.remark = f"not compared: {kind} by the formula, where measurements tell of the workload's own blocks"
        return cut

    def _changes(self, cut: Cut) -> int:
        """In how many groups a cut is not the workload's own."""
        return sum(count != self.own.cuts[group] for group, count in cut.cuts.items())

    def _best_of(self, group: str, base: Cuts) -> int:
        others = {g: c for g, c in base.items() if g != group}
        for cut in self.ranked():
            if others == {g: c for g, c in cut.cuts.items() if g != group}:
                return cut.cuts[group]
        return base[group]


def _policy_s(policy: str, priced: Timed) -> float | None:
    """The makespan of a policy's plan in seconds; None where it does not fit."""
    found = baseline(priced, policy)
    return None if found is None else found[0]


def _count(choices: CutChoices) -> int:
    return 2 + sum(1 for _ in choices.alternatives(choices.own))


def _distinct(workload: Workload) -> list[Block]:
    return list({block.kind: block for stage in workload.stages for block in stage.blocks}.values())


def _costs(block: Block, device: DeviceProfile) -> Iterator[tuple[str, bool, bool]]:
    """Of load and execution: which it is, whether it was measured, whether derived from other blocks."""
    for what, cost in (("load", load_cost(block, device, cold=True)), ("execution", execute_cost(block, device))):
        yield what, cost.measured, cost.derived


def _derived_kinds(workload: Workload, device: DeviceProfile) -> list[str]:
    return [b.kind for b in _distinct(workload) if any(derived for *_, derived in _costs(b, device))]


def _measured_kinds(workload: Workload, device: DeviceProfile) -> set[tuple[str, str]]:
    """The kinds of which measurements tell, with what was measured: those of the blocks and of what they are like."""
    return {
        (what, kind)
        for block in _distinct(workload)
        for what, measured, _ in _costs(block, device)
        if measured
        for kind in (block.kind, *(other.kind for other in block.like))
    }


def _formula_for_measured(workload: Workload, device: DeviceProfile, known: set[tuple[str, str]]) -> str | None:
    """A kind that only the formula can tell of, although measurements tell of the same layers in other blocks.

    The formula and measurements may lie far apart, so comparing them would choose between models of the device.
    """
    for block in _distinct(workload):
        kinds = (block.kind, *(other.kind for other in block.like))
        for what, measured, derived in _costs(block, device):
            if not measured and not derived and any((what, kind) in known for kind in kinds):
                return block.kind
    return None


def _searched(tried: _Tried, deadline_s: float, on_step: Progress) -> tuple[Cut, Planned]:
    """The best of the planner's plans for the best cuts; the workload's own is always among them, if it fits."""
    ranked = tried.ranked()
    finalists = ranked[:FINALISTS]
    # The own one first, so that it stays where no other is better; beyond the best ones it gets no more time.
    ordered = [cut for cut in ranked if cut is tried.own] + [cut for cut in finalists if cut is not tried.own]
    best: tuple[float, Cut, Planned] | None = None
    for done, cut in enumerate(ordered):
        if best is not None and _bound(cut) >= best[0] * (1 - TOLERANCE):
            continue
        on_step(done, len(ordered), f"plan for partition {cut.partition}")
        left_s = max(0.0, deadline_s - time.monotonic()) / (len(ordered) - done)
        planned = best_plan(cut.workload, tried.device, time_limit_s=left_s if cut in finalists else 0.0)
        seconds = planned.trace.makespan_s
        cut.makespan_s, cut.lower_bound_s = seconds, planned.plan.lower_bound_s
        if best is None or seconds < best[0] * (1 - TOLERANCE):
            best = seconds, cut, planned
    assert best is not None  # look_at_all raises where nothing is ranked
    return best[1], best[2]


def _bound(cut: Cut) -> float:
    return cut.lower_bound_s or 0.0


def _remark(cuts: list[Cut], chosen: Cut) -> None:
    """Say of each cut without a remark whether its bound rules it out."""
    best_s = chosen.makespan_s or 0.0
    for cut in cuts:
        if cut is not chosen and not cut.remark and _bound(cut) > best_s * (1 + TOLERANCE):
            cut.remark = "out: no plan for it is as fast"


def _what_would_fit(choices: CutChoices, device: DeviceProfile) -> str:
    """The cut with the largest blocks that fits, or the layer that binds in the finest."""
    finest = _cut(choices, choices.finest)
    if finest.partition == AS_GIVEN:
        return "its layers are not known, so nothing finer can be tried"
    need, visit = largest_need(finest.workload)
    block, least = visit.block, need + device.baseline_bytes
    if least > device.memory_limit_bytes:  # blocks of no other cut need less
        return (
            f"no cut fits: in the finest (partition {finest.partition}) {block.name!r} needs {least} bytes "
            f"(weights {block.weight_bytes} + workspace {block.workspace_bytes} + baseline {device.baseline_bytes})"
        )
    fitting = [finest]
    for cuts in choices.alternatives(choices.own):
        cut = _cut(choices, cuts)
        if largest_need(cut.workload)[0] + device.baseline_bytes <= device.memory_limit_bytes:
            fitting.append(cut)
    best = max(fitting, key=lambda cut: (cut.largest_block_bytes, -len(cut.blocks)))
    return f"cut at {best.largest_block_bytes / 1e6:,.1f} MB a block at most (partition {best.partition}) it would fit"
