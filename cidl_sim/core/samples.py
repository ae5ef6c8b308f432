"""What a trace says about costs: each load and each execution with the time it would have taken undisturbed.

A trace's spans are durations under contention, the first load into some memory also has to touch it, and between
spans the driver needs time of its own: to wake a thread, to choose, to bind weights. The simulator knows neither gaps
nor stretched durations as input, so a sample is the span free of all that, and the gap before it, which costs that are
fitted include.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.trace import Operation, Span, Trace


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the spans of a trace contain beside costs; the figures of a device profile of the same names.

    A span of duration D of which O lay under work of the other side takes D - O + O/slowdown alone (the fluid model).
    The first `latency_s` of a load, and `launch_s` of an execution, pass at their own pace; the gap before the span is
    part of them, since whoever waits to be woken is slowed by nobody.
    """

    slowdown_while_executing: float = 1.0
    slowdown_while_loading: float = 1.0
    latency_s: float = 0.0
    launch_s: float = 0.0
    first_touch_bytes_per_s: float | None = None

    @classmethod
    def of(cls, device: DeviceProfile) -> Conditions:
        """Those that a device profile describes."""
        return cls(
            device.loader.slowdown_while_executing,
            device.executor.slowdown_while_loading,
            device.loader.latency_s,
            device.executor.launch_s,
            device.loader.first_touch_bytes_per_s,
        )


@dataclass(frozen=True, slots=True)
class CostSample:
    """One load or execution: seconds under no conditions, and seconds between being possible and starting.

    `exposed_s`: how much of the span, what passes at its own pace left out, work of the other side could have
    covered, and `overlap_s` how much it did. `fresh_bytes`: what a load took beyond all that weights had held at once
    until then.
    """

    operation: Operation
    kind: str
    visit: int
    bytes: int
    cold: bool
    seconds: float
    gap_s: float
    overlap_s: float
    exposed_s: float
    fresh_bytes: int

    @property
    def cost_s(self) -> float:
        """What a simulator without gaps has to count for it."""
        return self.seconds + self.gap_s


def kinds_of_visits(trace: Trace) -> list[str]:
    """The kind of every visit of the trace's workload, by visit number."""
    return [kind for o in trace.header.stages for _ in range(o.rounds) for kind in o.kinds]


def samples_of(trace: Trace, conditions: Conditions | None = None, *, all_touched: bool = False) -> list[CostSample]:
    """Every load and execution of a trace as a sample, free of `conditions`, if any are given.

    `all_touched`: all memory had been touched before the run, so that no load is fresh.
    """
    conditions = conditions or Conditions()
    kinds = kinds_of_visits(trace)
    fresh = {} if all_touched else trace.fresh_bytes
    touch_rate = conditions.first_touch_bytes_per_s
    loads, executions = trace.of("load"), trace.of("execute")
    ready = _Ready(loads, executions)
    result = []
    for spans, others, slowdown, fixed_s in (
        (loads, executions, conditions.slowdown_while_executing, conditions.latency_s),
        (executions, loads, conditions.slowdown_while_loading, conditions.launch_s),
    ):
        overlaps = _Overlaps(others)
        for span in spans:
            fresh_bytes = fresh.get(span.visit, 0) if span.operation == "load" else 0
            touch_s = fresh_bytes / touch_rate if touch_rate else 0.0
            gap_s = ready.gap_before(span)
            begin_s = min(span.start_s + max(0.0, fixed_s - gap_s) + touch_s, span.end_s)
            overlap = overlaps.between(begin_s, span.end_s)
            seconds = span.end_s - span.start_s - overlap * (1 - 1 / slowdown) - touch_s
            result.append(
                CostSample(
                    operation=span.operation,
                    kind=kinds[span.visit],
                    visit=span.visit,
                    bytes=span.bytes,
                    cold=span.cold,
                    seconds=max(0.0, seconds),
                    gap_s=gap_s,
                    overlap_s=overlap,
                    exposed_s=span.end_s - begin_s,
                    fresh_bytes=fresh_bytes,
                )
            )
    return result


def by_kind(samples: Iterable[CostSample], value: Callable[[CostSample], float]) -> dict[str, list[float]]:
    """A figure of the samples, by kind."""
    result: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        result[sample.kind].append(value(sample))
    return dict(result)


class _Overlaps:
    """The union of one side's spans, asked how much of some time it covers."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._intervals: list[tuple[float, float]] = []
        for start, end in sorted((s.start_s, s.end_s) for s in spans):
            if self._intervals and start <= self._intervals[-1][1]:
                self._intervals[-1] = (self._intervals[-1][0], max(self._intervals[-1][1], end))
            else:
                self._intervals.append((start, end))
        self._starts = [start for start, _ in self._intervals]

    def between(self, begin: float, finish: float) -> float:
        covered = 0.0
        i = max(0, bisect_right(self._starts, begin) - 1)
        while i < len(self._intervals) and self._intervals[i][0] < finish:
            start, end = self._intervals[i]
            covered += max(0.0, min(end, finish) - max(start, begin))
            i += 1
        return covered


class _Ready:
    """When a span could have started: after the last thing that can have made it possible."""

    def __init__(self, loads: Sequence[Span], executions: Sequence[Span]) -> None:
        self._load_end = {s.visit: s.end_s for s in loads}
        self._execution_ends = [s.end_s for s in executions]
        # A load becomes possible when a load or a visit ends, or when a visit starts (its gate).
        events = [s.end_s for s in loads] + [t for s in executions for t in (s.start_s, s.end_s)]
        self._events = sorted([0.0, *events])

    def gap_before(self, span: Span) -> float:
        if span.operation == "load":
            return span.start_s - self._events[bisect_right(self._events, span.start_s) - 1]
        before = bisect_right(self._execution_ends, span.start_s)
        previous = self._execution_ends[before - 1] if before else 0.0
        return max(0.0, span.start_s - max(previous, self._load_end.get(span.visit, 0.0)))
