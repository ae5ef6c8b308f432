"""Rule 5 of execution: a memory limit that changes during a run, and another plan that is taken on the way.

Either changes which weights are retained. What was loaded ahead and what is still to be loaded follows from that: the
functions here decide it, and alter the schedule by `Schedule.give_up` and `Schedule.decide_anew` alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from cidl_sim.core.feasibility import check_block_fits, finish_without_clock
from cidl_sim.core.plan import Load, Plan
from cidl_sim.core.schedule import Release, Schedule
from cidl_sim.core.workload import Visit


def change_limit(schedule: Schedule, limit_bytes: int) -> list[Release]:
    """Go on under another limit; returns what has to leave memory for it now.

    What the limit lost against the plan's is given up in weights that the plan retains, so that the room for
    loading ahead stays as it was; what it gained goes to retaining others. More is given up where the rest of
    the run could not end otherwise. Then what was loaded ahead goes until the rest fits, what is needed last
    first; a load in flight that does not fit any more ends as waste.
    InfeasibleError names the block that does not even fit alone.
    """
    remaining = schedule.workload.visits[schedule.current :]
    check_block_fits(remaining, limit_bytes, schedule.baseline_bytes)
    schedule.memory_limit_bytes = limit_bytes
    candidates = _retainable(schedule, remaining)
    low, high = 0, len(candidates)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _can_finish_with(schedule, candidates[:middle]) else (low, middle - 1)
    return _retain_only(schedule, set(candidates[:low]))


def go_on_with(schedule: Schedule, plan: Plan) -> list[Release]:
    """Keep and load from now on as `plan` says, between two visits; returns what leaves memory for it now.

    Weights that are here stay, if the plan retains them now or as if they had been loaded ahead. Whether the rest
    of the run can end is the caller's to know: try it on a `settled_copy` first.
    """
    if schedule.is_running:
        raise RuntimeError("another plan can only be taken between visits")
    schedule.plan = plan
    visits = schedule.workload.visits
    return _retain_only(schedule, {visits[number].block.weights for number in plan.keep if number >= schedule.current})


def settled_copy(schedule: Schedule) -> Schedule:
    """A schedule of its own in which whatever was under way has just ended."""
    copied = schedule.copy()
    _settle(copied)
    return copied


def evenly_ordered(names: Sequence[str]) -> list[str]:
    """The same names so that any number of first ones is spread evenly: 0, 1/2, 1/4, 3/4, 1/8, ... of the way."""
    bits = max(1, (len(names) - 1).bit_length())
    places = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits))
    return [names[place] for place in places if place < len(names)]


def _settle(schedule: Schedule) -> None:
    for number in schedule.loading:
        schedule.finish_load(number)
    if schedule.is_running:
        schedule.finish_visit(schedule.workload.visits[schedule.current])


# What to retain


def _retainable(schedule: Schedule, remaining: Sequence[Visit]) -> list[str]:
    """Weights to retain, those of the plan first, each part evenly spread, within each group's budget."""
    planned = _planned_weights(schedule)
    revisited = {visit.block.weights: visit for visit in reversed(remaining) if _can_be_retained(schedule, visit)}
    ours = evenly_ordered([weights for weights in reversed(revisited) if weights in planned])
    others = evenly_ordered([weights for weights in reversed(revisited) if weights not in planned])
    change = _change_of_limit(schedule)
    if change == 0:
        return ours  # a set that moves on has more of them than fit at once
    budgets = {group: most + change for group, most in _most_retained_bytes(schedule).items()}
    for group in _groups_that_rotate(schedule):
        # What such a plan retains beside the running block, and that block as well, was counted.
        sizes = (visit.block.weight_bytes for visit in remaining if _group(schedule, visit) == group)
        budgets[group] -= max(sizes, default=0)
    chosen = []
    for weights in [*ours, *(others if change > 0 else ())]:
        visit = revisited[weights]
        group = _group(schedule, visit)
        budgets[group] = budgets.get(group, change) - visit.block.weight_bytes
        if budgets[group] >= 0:
            chosen.append(weights)
    return chosen


def _can_finish_with(schedule: Schedule, retained: Sequence[str]) -> bool:
    trial = schedule.copy()
    _retain_only(trial, set(retained))
    _settle(trial)
    return finish_without_clock(trial)


def _planned_weights(schedule: Schedule) -> set[str]:
    """The weights that the plan retains anywhere."""
    return {schedule.workload.visits[number].block.weights for number in schedule.plan.keep}


def _change_of_limit(schedule: Schedule) -> int:
    return schedule.memory_limit_bytes - schedule.plan.memory_limit_bytes


def _most_retained_bytes(schedule: Schedule) -> dict[str, int]:
    """For each group that the plan retains something of, the most bytes that it retains at once."""
    workload, keep = schedule.workload, set(schedule.plan.keep)
    held: dict[str, int] = {}
    most: dict[str, int] = {}
    for visit in workload.visits:
        group, size = _group(schedule, visit), visit.block.weight_bytes
        if workload.previous_same_weights[visit.number] in keep:
            held[group] = held.get(group, 0) - size
        if visit.number in keep:
            held[group] = held.get(group, 0) + size
            most[group] = max(most.get(group, 0), held[group])
    return most


def _groups_that_rotate(schedule: Schedule) -> set[str]:
    """Where the plan retains more in turns than at once: under another limit what is retained stays."""
    if _change_of_limit(schedule) == 0:
        return set()
    kept: dict[str, dict[str, int]] = {}
    for number in schedule.plan.keep:
        visit = schedule.workload.visits[number]
        kept.setdefault(_group(schedule, visit), {})[visit.block.weights] = visit.block.weight_bytes
    return {group for group, most in _most_retained_bytes(schedule).items() if sum(kept[group].values()) > most}


def _can_be_retained(schedule: Schedule, visit: Visit) -> bool:
    """Whether the plan keeps the weights after `visit`, or a later visit of the same group could use them."""
    workload = schedule.workload
    following = workload.next_same_weights[visit.number]
    if following is None:
        return False
    return visit.number in schedule.plan.keep or _group(schedule, workload.visits[following]) == _group(schedule, visit)


def _group(schedule: Schedule, visit: Visit) -> str:
    return schedule.workload.stages[visit.stage].group


# What follows from it


def _retain_only(schedule: Schedule, retained: set[str]) -> list[Release]:
    """Keep and load from now on so that of all weights `retained` alone stay between visits."""
    visits = schedule.workload.visits
    released: list[Release] = []
    for number in schedule.left_for:
        if visits[number].block.weights not in retained:
            released += schedule.give_up(number)
    keep = _keeps(schedule, retained)
    released += _give_up_ahead(schedule, keep)
    schedule.decide_anew(keep, _loads(schedule, keep))
    return released


def _keeps(schedule: Schedule, retained: set[str]) -> set[int]:
    """The visits to come after which weights stay: those of the plan, and all where it would not retain them so."""
    planned, rotating = _planned_weights(schedule), _groups_that_rotate(schedule)
    return {
        visit.number
        for visit in schedule.workload.visits[schedule.current :]
        if visit.block.weights in retained
        and (
            visit.number in schedule.plan.keep
            or visit.block.weights not in planned
            or _group(schedule, visit) in rotating
        )
        and _can_be_retained(schedule, visit)
    }


def _give_up_ahead(schedule: Schedule, keep: set[int]) -> list[Release]:
    """Let go of what is here too early: behind a visit whose weights are missing, or beyond the room there is."""
    visits, waiting, left = schedule.workload.visits, schedule.waiting, set(schedule.left_for)
    here, first = set(waiting), _first_to_start(schedule)
    missing = next((n for n in range(first, len(visits)) if n not in here and not _stays_for(schedule, n, keep)), first)
    released: list[Release] = []
    held = schedule.weights_held
    for number in reversed(waiting):
        blocks = number > missing and number not in left
        if blocks or held > schedule.room_for_weights(number):
            held -= visits[number].block.weight_bytes
            released += schedule.give_up(number)
    return released


def _loads(schedule: Schedule, keep: set[int]) -> list[Load]:
    """Loads for all visits to come whose weights neither are here nor stay, in order of execution."""
    gated = {load.visit: load for load in schedule.plan.loads}
    here = set(schedule.waiting)
    return [
        gated.get(visit.number, Load(visit=visit.number))
        for visit in schedule.workload.visits[_first_to_start(schedule) :]
        if visit.number not in here and not _stays_for(schedule, visit.number, keep)
    ]


def _first_to_start(schedule: Schedule) -> int:
    return schedule.current + schedule.is_running


def _stays_for(schedule: Schedule, visit: int, keep: set[int]) -> bool:
    """Whether an earlier visit that is still to end leaves the weights of this one in memory."""
    return schedule.workload.previous_same_weights[visit] in keep
