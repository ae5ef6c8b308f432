"""What runs say of a machine: costs by kind, contention, noise, drift, by one robust estimate over all of them."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cidl_sim.calibration.robust import Fit, Floats, Interval, Numbers, fit_costs, lost_to_overlap
from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.estimates import load_line, spread_of
from cidl_sim.core.samples import Conditions, CostSample, samples_of
from cidl_sim.core.trace import Operation, Trace
from cidl_sim.core.workload import Workload

# Rates are taken to be constant for so long, or for so many visits; a longer run is several stretches.
STRETCH_S, STRETCH_VISITS = 20.0, 40
# A cold load counts as its own cost only where it differs clearly: most kinds have few cold loads.
CLEARLY_COLD = 1.1
_GOING_ROUND = 100

Key = tuple[str, bool]  # a kind, or one kind of several that read the same files; whether the load is a cold one


@dataclass(frozen=True)
class Seen:
    """A run: its workload and trace, and by how much its rates count for those that are expected next.

    `unsettled`: visits that say nothing, since what they share the machine with had just changed.
    """

    workload: Workload
    trace: Trace
    weight: float = 1.0
    unsettled: frozenset[int] = frozenset()


@dataclass(frozen=True)
class MachineCosts:
    """Costs of loads and executions that have the machine to themselves, the driver's own time before each included.

    `loads`: by kind the warm and the cold one (None: not seen, or no slower). Slowdowns are None where no run shows
    them. `samples`: executions by kind; `spreads`: of loads and of executions, by kind.
    """

    loads: dict[str, tuple[float | None, float | None]]
    executions: dict[str, float]
    latency_s: float
    bandwidth_bytes_per_s: float
    first_touch_bytes_per_s: float | None
    launch_s: float
    load_slowdown: Interval | None
    execution_slowdown: Interval | None
    load_fit: Fit
    execution_fit: Fit
    samples: dict[str, int]
    load_spreads: dict[str, float | None]
    execution_spreads: dict[str, float | None]


def fit_machine(runs: Sequence[Seen], prior: DeviceProfile | None = None, prior_weight: float = 0.0) -> MachineCosts:
    """The costs that `runs` show; they are given in their order in time.

    `prior`: what was known of this machine before. A kind that no run has keeps its cost at the rate of now; what no
    run shows of latency, first touch and contention stays. `prior_weight`: by how much its rates count.
    """
    return _Fitting(runs, prior, prior_weight).result()


class _Fitting:
    """Goes round until latency, first touch and costs agree: contention begins only when the first two are over."""

    def __init__(self, runs: Sequence[Seen], prior: DeviceProfile | None, prior_weight: float) -> None:
        self._runs = runs
        self._prior = prior
        self._group_of = _groups(runs)
        self._stretches: list[_Run] = []
        weights: list[float] = []
        for seen in runs:
            cuts = _cuts_s(seen.trace)
            starts_s = {(span.operation, span.visit): span.start_s for span in seen.trace.spans}
            self._stretches.append(_Run(cuts, len(weights), starts_s))
            weights += [seen.weight / (len(cuts) + 1)] * (len(cuts) + 1)
        self._weights = [*weights, prior_weight]
        conditions = Conditions() if prior is None else Conditions.of(prior)
        self._conditions = replace(conditions, slowdown_while_executing=1.0, slowdown_while_loading=1.0)

    def result(self) -> MachineCosts:
        for _ in range(_GOING_ROUND):
            loads, executions = self._tables()
            lost, load_slowdown = self._contention(loads, "load")
            load_fit = loads.fit(lost, self._weights)
            latency_s, bandwidth = self._line(loads, load_fit)
            touch_rate = loads.first_touch(lost, load_fit, self._conditions.first_touch_bytes_per_s)
            before = self._conditions
            self._conditions = replace(before, latency_s=latency_s, first_touch_bytes_per_s=touch_rate)
            if _agree(before, self._conditions):
                break
        execution_lost, execution_slowdown = self._contention(executions, "execute")
        execution_fit = executions.fit(execution_lost, self._weights)
        cost = {key: float(load_fit.costs[i]) for key, i in loads.keys.items() if not np.isnan(load_fit.costs[i])}
        load_spreads = loads.spreads(lost, load_fit)
        return MachineCosts(
            loads={kind: self._load_of(group, cost) for kind, group in self._kinds().items()},
            executions={kind: float(execution_fit.costs[i]) for (kind, _), i in executions.keys.items()},
            latency_s=latency_s,
            bandwidth_bytes_per_s=bandwidth,
            first_touch_bytes_per_s=touch_rate,
            launch_s=statistics.median(s.gap_s for s in executions.samples),
            load_slowdown=load_slowdown,
            execution_slowdown=execution_slowdown,
            load_fit=load_fit,
            execution_fit=execution_fit,
            samples=dict(Counter(s.kind for s in executions.samples)),
            load_spreads={kind: load_spreads.get(group) for kind, group in self._kinds().items()},
            execution_spreads=executions.spreads(execution_lost, execution_fit),
        )

    def _tables(self) -> tuple[_Table, _Table]:
        """Loads and executions of all runs."""
        found: dict[Operation, tuple[list[CostSample], list[int]]] = {"load": ([], []), "execute": ([], [])}
        for seen, cut in zip(self._runs, self._stretches, strict=True):
            for sample in samples_of(seen.trace, self._conditions):
                if sample.visit in seen.unsettled:
                    continue
                samples, stretches = found[sample.operation]
                samples.append(sample)
                stretches.append(cut.stretch_at(cut.starts_s[sample.operation, sample.visit]))
        return self._table("load", *found["load"]), self._table("execute", *found["execute"])

    def _table(self, operation: Operation, samples: list[CostSample], stretches: list[int]) -> _Table:
        groups = self._group_of if operation == "load" else {}
        keys = [(groups.get(s.kind, s.kind), s.cold) for s in samples]
        return _Table(samples, stretches, keys, self._prior_costs(operation))

    def _prior_costs(self, operation: Operation) -> dict[Key, float]:
        found: dict[Key, float] = {}
        for kind, measured in (self._prior.measured if self._prior else {}).items():
            if operation == "execute" and measured.exec_s:
                found[kind, False] = measured.exec_s
            if operation == "load" and measured.load_s:
                found[self._group_of.get(kind, kind), False] = measured.load_s
                if measured.cold_load_s:
                    found[self._group_of.get(kind, kind), True] = measured.cold_load_s
        return found

    def _contention(self, table: _Table, operation: Operation) -> tuple[float, Interval | None]:
        """The share of an overlap that is lost, and the slowdown that it means, if the runs show one."""
        found = table.lost_to_overlap()
        if self._prior is None:
            return (0.0, None) if found is None else (found.value, _slowdown(found))
        known = Conditions.of(self._prior)
        slowdown = known.slowdown_while_executing if operation == "load" else known.slowdown_while_loading
        before = 1 - 1 / slowdown
        if found is None:
            return before, None
        # Costs are worked out with what will be said of contention: else a run that shows much of it would leave
        # cheap executions and, mixed with what was known before, little contention.
        share = 1 - self._weights[-1] / sum(self._weights)
        mixed = found.changed(lambda lost: share * lost + (1 - share) * before)
        return mixed.value, _slowdown(mixed)

    def _line(self, loads: _Table, fit: Fit) -> tuple[float, float]:
        """Latency and bandwidth of the line through the costs of all loads, each as often as it was seen."""
        points = [(s.bytes, float(fit.costs[k])) for s, k in zip(loads.samples, loads.key, strict=False)]
        points = [(size, cost_s) for size, cost_s in points if size and not math.isnan(cost_s)]
        if self._prior is None:
            return load_line(points)
        # A few runs have few sizes: the line goes through the latency that is known.
        latency_s = self._prior.loader.latency_s
        transfer_s = sum(max(0.0, cost_s - latency_s) for _, cost_s in points)
        known = self._prior.loader.bandwidth_bytes_per_s or math.inf
        return latency_s, sum(size for size, _ in points) / transfer_s if transfer_s else known

    def _kinds(self) -> dict[str, str]:
        """The group of each kind that anything is known of."""
        kinds = {v.block.kind for seen in self._runs for v in seen.workload.visits}
        kinds |= set(self._prior.measured if self._prior else ())
        return {kind: self._group_of.get(kind, kind) for kind in sorted(kinds)}

    def _load_of(self, group: str, cost: dict[Key, float]) -> tuple[float | None, float | None]:
        warm, cold = cost.get((group, False)), cost.get((group, True))
        # A kind whose weights are loaded once in a run has only cold loads: those are its loads, then.
        return (warm, cold) if warm is not None else (cold, None)


class _Table:
    """Samples of one operation as columns, in order of time within each run."""

    def __init__(
        self,
        samples: Sequence[CostSample],
        stretches: Sequence[int],
        keys: Sequence[Key],
        prior: dict[Key, float],
    ) -> None:
        """`prior`: costs from before."""
        self.samples = samples
        self.keys = {key: i for i, key in enumerate(dict.fromkeys([*keys, *prior]))}
        self.key: Numbers = np.array([self.keys[key] for key in keys], int)
        self.stretch: Numbers = np.array(stretches, int)
        self._seconds: Floats = np.array([s.seconds for s in samples], float)
        self._overlap: Floats = np.array([s.overlap_s for s in samples], float)
        self._exposed: Floats = np.array([s.exposed_s for s in samples], float)
        self._gap: Floats = np.array([s.gap_s for s in samples], float)
        self._fresh: Floats = np.array([s.fresh_bytes for s in samples], float)
        self._prior = prior
        self._warm_of = {
            i: self.keys[g, False] for (g, cold), i in self.keys.items() if cold and (g, False) in self.keys
        }
        touched = set(self.key[self._fresh == 0])
        self._count_as_warm({i for i in self._warm_of if i not in touched})
        # Of what was only ever loaded into new memory there is no other cost.
        self._only_fresh = np.array([key not in touched for key in self.key], bool)

    def _count_as_warm(self, cold: set[int]) -> None:
        self.key = np.array([self._warm_of[i] if i in cold else i for i in self.key], int)

    def lost_to_overlap(self) -> Interval | None:
        """See `robust`; None if no neighbours differ in their overlap."""
        use = self._fresh == 0
        columns = (self._seconds, self._overlap, self._exposed, self.key, self.stretch)
        return lost_to_overlap(*(column[use] for column in columns))

    def alone(self, lost: float) -> Floats:
        """What each sample would have taken alone, the time before it included."""
        return np.maximum(0.0, self._seconds - lost * self._overlap) + self._gap

    def fit(self, lost: float, weights: Sequence[float]) -> Fit:
        """Costs by key and rates by stretch, of what found its memory touched; of cold loads only those that differ."""
        fit = self._fit(lost, weights)
        plain = {i for i, warm in self._warm_of.items() if fit.costs[i] <= CLEARLY_COLD * fit.costs[warm]}
        if plain:
            self._count_as_warm(plain)
            fit = self._fit(lost, weights, without=plain)
        return fit

    def _fit(self, lost: float, weights: Sequence[float], without: Collection[int] = ()) -> Fit:
        use = (self._fresh == 0) | self._only_fresh
        prior = np.full(len(self.keys), np.nan)
        for key, cost_s in self._prior.items():
            if self.keys[key] not in without:
                prior[self.keys[key]] = cost_s
        return fit_costs(self.alone(lost)[use], self.key[use], self.stretch[use], weights, prior)

    def first_touch(self, lost: float, fit: Fit, rate: float | None) -> float | None:
        """Bytes a second at which memory is touched first: the median, by bytes, over loads that did.

        What a load took beyond its cost at the rate of its stretch, or of the nearest that has one. None where fresh
        memory costs nothing that shows; without any fresh load what it was.
        """
        known = np.flatnonzero(~np.isnan(fit.rates[:-1]))
        each: list[tuple[float, float]] = []
        for i in np.flatnonzero((self._fresh > 0) & ~self._only_fresh):
            key = self.key[i]
            if not len(known):
                continue
            nearest = known[np.argmin(abs(known - self.stretch[i]))]
            touched_s = self._fresh[i] / rate if rate else 0.0
            over_s = self.alone(lost)[i] + touched_s - fit.costs[key] * fit.rates[nearest]
            each.append((over_s / self._fresh[i], self._fresh[i]))
        if not each:
            return rate
        each.sort()
        reached = np.cumsum([fresh for _, fresh in each])
        seconds_a_byte = each[int(np.searchsorted(reached, reached[-1] / 2))][0]
        return 1 / seconds_a_byte if seconds_a_byte > 0 else None

    def spreads(self, lost: float, fit: Fit) -> dict[str, float | None]:
        """The relative standard deviation of each kind's samples, what drifted from stretch to stretch left out."""
        rates = np.nan_to_num(fit.rates, nan=1.0)
        values: dict[str, list[float]] = defaultdict(list)
        names = {i: kind for (kind, cold), i in self.keys.items() if not cold}
        for i in np.flatnonzero(self._fresh == 0):
            if int(self.key[i]) in names:
                values[names[int(self.key[i])]].append(float(self.alone(lost)[i] / rates[self.stretch[i]]))
        return {kind: spread_of(found) for kind, found in values.items()}


@dataclass(frozen=True)
class _Run:
    """How a run is cut: the times of the cuts, the number of its first stretch, and when each of its spans began."""

    cuts_s: list[float]
    first: int
    starts_s: dict[tuple[Operation, int], float]

    def stretch_at(self, at_s: float) -> int:
        return self.first + bisect_right(self.cuts_s, at_s)


def _cuts_s(trace: Trace) -> list[float]:
    pieces = max(1, min(round(trace.makespan_s / STRETCH_S), len(trace.of("execute")) // STRETCH_VISITS))
    return [trace.makespan_s * i / pieces for i in range(1, pieces)]


def _groups(runs: Sequence[Seen]) -> dict[str, str]:
    """For each kind the first of all kinds that have the same weights: their loads read the same files.

    So a block at one resolution and at another, merged or not, has one load cost.
    """
    weights: dict[str, set[str]] = defaultdict(set)
    for seen in runs:
        for visit in seen.workload.visits:
            weights[visit.block.kind].add(visit.block.weights)
    first: dict[frozenset[str], str] = {}
    return {kind: first.setdefault(frozenset(found), kind) for kind, found in weights.items()}


def _slowdown(lost: Interval) -> Interval:
    """By how much longer something takes of which this share of the time is lost."""
    return lost.changed(lambda share: 1 / (1 - share))


def _agree(a: Conditions, b: Conditions) -> bool:
    figures = [(a.latency_s, b.latency_s), (a.first_touch_bytes_per_s or 0.0, b.first_touch_bytes_per_s or 0.0)]
    return all(math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-12) for x, y in figures)
