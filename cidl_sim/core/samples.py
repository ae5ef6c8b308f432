"""What a trace says about costs: each load and each execution with the time it would have taken undisturbed.

A trace's spans are durations under contention, and between them the driver needs time of its own: to wake
a thread, to choose, to bind weights. The simulator knows neither gaps nor stretched durations as input, so
a sample is the span free of contention, and the gap before it, which costs that are fitted include.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cidl_sim.core.trace import Operation, Span, Trace

Slowdowns = tuple[float, float]  # of loads while executing, of executions while loading
NO_CONTENTION: Slowdowns = (1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Sample:
    """One load or execution: seconds free of contention, and seconds between being possible and starting."""

    operation: Operation
    kind: str
    visit: int
    bytes: int
    cold: bool
    seconds: float
    gap_s: float
    overlap_s: float

    @property
    def cost_s(self) -> float:
        """What a simulator without gaps has to count for it."""
        return self.seconds + self.gap_s


def kinds_of_visits(trace: Trace) -> list[str]:
    """The kind of every visit of the trace's workload, by visit number."""
    return [kind for o in trace.header.stages for _ in range(o.rounds) for kind in o.kinds]


def samples_of(trace: Trace, slowdowns: Slowdowns = NO_CONTENTION, latency_s: float = 0.0) -> list[Sample]:
    """Every load and execution of a trace as a sample, under the fluid model of contention.

    `slowdowns`: by how much loads and executions slow down while the other side works. A span of duration D of
    which O lay under work of the other side takes D - O + O/s alone. The first `latency_s` of a load passes
    at its own pace.
    """
    kinds = kinds_of_visits(trace)
    loads, executions = trace.of("load"), trace.of("execute")
    ready = _Ready(loads, executions)
    result = []
    for spans, others, slowdown, fixed_s in (
        (loads, executions, slowdowns[0], latency_s),
        (executions, loads, slowdowns[1], 0.0),
    ):
        overlaps = _Overlaps(others)
        for span in spans:
            overlap = overlaps.between(min(span.start_s + fixed_s, span.end_s), span.end_s)
            result.append(
                Sample(
                    operation=span.operation,
                    kind=kinds[span.visit],
                    visit=span.visit,
                    bytes=span.bytes,
                    cold=span.cold,
                    seconds=span.end_s - span.start_s - overlap * (1 - 1 / slowdown),
                    gap_s=ready.gap_before(span),
                    overlap_s=overlap,
                )
            )
    return result


def by_kind(samples: Iterable[Sample], value: Callable[[Sample], float]) -> dict[str, list[float]]:
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
