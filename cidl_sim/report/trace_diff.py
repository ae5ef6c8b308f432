"""Two traces side by side: which spans moved, and where the difference in makespan comes from.

Differences are always second minus first, so exchanging the traces changes their sign and nothing else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cidl_sim.core.errors import TraceError
from cidl_sim.core.trace import Header, Place, Span, Trace

LARGEST = 10
# Below a nanosecond it is arithmetic, not time.
_SAME_S = 1e-9
_Key = tuple[str, Place, int]
_SHOWN_OF_HEADER = ("policy", "device_name", "origin", "memory_limit_bytes")


@dataclass(frozen=True)
class _Matched:
    """Loads and executions of two traces, by operation, place and how often that was done before."""

    both: dict[_Key, tuple[Span, Span]]
    only_a: dict[_Key, Span]
    only_b: dict[_Key, Span]

    def where(self, wanted: Callable[[_Key], bool]) -> _Matched:
        return _Matched(
            both={key: pair for key, pair in self.both.items() if wanted(key)},
            only_a={key: span for key, span in self.only_a.items() if wanted(key)},
            only_b={key: span for key, span in self.only_b.items() if wanted(key)},
        )

    def of(self, operation: str) -> _Matched:
        return self.where(lambda key: key[0] == operation)

    def of_stage(self, stage: int) -> _Matched:
        return self.where(lambda key: key[1].stage == stage)


def trace_difference(a: Trace, b: Trace) -> dict[str, Any]:
    """The figures of `cidl trace diff`; TraceError where the traces are of different workloads.

    `makespan` is a list of parts that add up to both makespans: executing what both ran (longer, shorter or as long
    in B), executing what only one ran, each cause for which the executor waits, and "other" where spans leave gaps.
    `loader` is the like for all of the loader's channels together. Loads and executions are matched by stage, round
    and block.
    """
    compared = _compared(a, b)
    matched = _matched(a, b)
    names = [name for name in Header.model_fields if getattr(a.header, name) != getattr(b.header, name)]
    loads = matched.of("load")
    return {
        "identical": (a.spans, a.events) == (b.spans, b.events),
        "compared": compared,
        "header_differences": names,
        "a": _identity(a),
        "b": _identity(b),
        "makespan_difference_s": b.makespan_s - a.makespan_s,
        "makespan": _makespan_parts(a, b, matched),
        "loader": _busy_parts("load", matched) + _wait_parts(_loader_idle_s(a), _loader_idle_s(b)),
        "stages": _stages(a, b, matched),
        "largest_by_duration": _largest(a, matched, "duration_difference_s"),
        "largest_by_start": _largest(a, matched, "start_difference_s"),
        "loads_only_in_a": [_described(a, key, span) for key, span in loads.only_a.items()],
        "loads_only_in_b": [_described(b, key, span) for key, span in loads.only_b.items()],
    }


# What may be compared


def _compared(a: Trace, b: Trace) -> str:
    """What is compared, in words. TraceError if that would make no sense."""
    if (a.header.workload_sha256, a.header.stages) == (b.header.workload_sha256, b.header.stages):
        return "all rounds"
    rounds = [
        f"{first.name} {first.rounds} and {second.rounds}"
        for first, second in zip(a.header.stages, b.header.stages, strict=False)
        if first.rounds != second.rounds
    ]
    if not rounds or _without_rounds(a) != _without_rounds(b) or not _bytes_agree(a, b):
        raise TraceError(
            f"the traces are of different workloads: {a.header.workload_name} ({a.header.workload_sha256[:12]}) and "
            f"{b.header.workload_name} ({b.header.workload_sha256[:12]}); only their numbers of rounds may differ"
        )
    return f"span by span the rounds that both workloads have (rounds of {', '.join(rounds)})"


def _without_rounds(trace: Trace) -> list[dict[str, Any]]:
    return [outline.model_dump(exclude={"rounds"}) for outline in trace.header.stages]


def _bytes_agree(a: Trace, b: Trace) -> bool:
    """Whether each block has the same weights and workspace wherever both traces show them."""
    sizes_a, sizes_b = _sizes(a), _sizes(b)
    return all(sizes_a[key] == sizes_b[key] for key in sizes_a.keys() & sizes_b.keys())


def _sizes(trace: Trace) -> dict[tuple[str, int, int], int]:
    places = ((span, trace.header.place_of(span.visit)) for span in trace.spans if span.operation != "wait")
    return {(span.operation, place.stage, place.position): span.bytes for span, place in places}


# Matching


def _matched(a: Trace, b: Trace) -> _Matched:
    spans_a, spans_b = _by_key(a), _by_key(b)
    return _Matched(
        both={key: (span, spans_b[key]) for key, span in spans_a.items() if key in spans_b},
        only_a={key: span for key, span in spans_a.items() if key not in spans_b},
        only_b={key: span for key, span in spans_b.items() if key not in spans_a},
    )


def _by_key(trace: Trace) -> dict[_Key, Span]:
    seen: Counter[tuple[str, Place]] = Counter()
    result: dict[_Key, Span] = {}
    for span in sorted(trace.of("load") + trace.of("execute"), key=lambda s: s.start_s):
        what = (span.operation, trace.header.place_of(span.visit))
        # Weights that were given up are loaded again for the same visit.
        result[*what, seen[what]] = span
        seen[what] += 1
    return result


def _has_moved(pair: tuple[Span, Span]) -> bool:
    return abs(_later_s(pair)) > _SAME_S or abs(_longer_s(pair)) > _SAME_S


def _later_s(pair: tuple[Span, Span]) -> float:
    return pair[1].start_s - pair[0].start_s


def _longer_s(pair: tuple[Span, Span]) -> float:
    return _length_s(pair[1]) - _length_s(pair[0])


def _length_s(span: Span) -> float:
    return span.end_s - span.start_s


# Figures


def _identity(trace: Trace) -> dict[str, Any]:
    return {**{name: getattr(trace.header, name) for name in _SHOWN_OF_HEADER}, "makespan_s": trace.makespan_s}


def _makespan_parts(a: Trace, b: Trace, matched: _Matched) -> list[dict[str, Any]]:
    parts = _busy_parts("execute", matched)
    parts += _wait_parts(a.idle_s.get("executor", {}), b.idle_s.get("executor", {}))
    rest_a = a.makespan_s - sum(part["a_s"] for part in parts)
    rest_b = b.makespan_s - sum(part["b_s"] for part in parts)
    return parts + ([_part("other", rest_a, rest_b)] if max(abs(rest_a), abs(rest_b)) > _SAME_S else [])


def _busy_parts(operation: str, matched: _Matched) -> list[dict[str, Any]]:
    """Seconds of one operation; a part that neither trace has is left out."""
    spans = matched.of(operation)
    pairs = spans.both.values()
    lengths = {
        "longer": [pair for pair in pairs if _longer_s(pair) > _SAME_S],
        "shorter": [pair for pair in pairs if _longer_s(pair) < -_SAME_S],
        "as long": [pair for pair in pairs if abs(_longer_s(pair)) <= _SAME_S],
    }
    parts = [
        _part(f"{operation}: {name}", sum(_length_s(p[0]) for p in chosen), sum(_length_s(p[1]) for p in chosen))
        for name, chosen in lengths.items()
        if chosen
    ]
    if spans.only_a or spans.only_b:
        alone_a, alone_b = (sum(map(_length_s, only.values())) for only in (spans.only_a, spans.only_b))
        parts.append(_part(f"{operation}: only in one", alone_a, alone_b))
    return parts


def _wait_parts(a: dict[str, float], b: dict[str, float]) -> list[dict[str, Any]]:
    return [_part(f"wait: {cause}", a.get(cause, 0.0), b.get(cause, 0.0)) for cause in sorted(a.keys() | b.keys())]


def _part(name: str, a_s: float, b_s: float) -> dict[str, Any]:
    return {"part": name, "a_s": a_s, "b_s": b_s, "difference_s": b_s - a_s}


def _loader_idle_s(trace: Trace) -> dict[str, float]:
    """Idle seconds by cause, of all channels together."""
    total: dict[str, float] = defaultdict(float)
    for worker, causes in trace.idle_s.items():
        for cause, seconds in causes.items() if worker != "executor" else ():
            total[cause] += seconds
    return dict(total)


def _stages(a: Trace, b: Trace, matched: _Matched) -> list[dict[str, Any]]:
    rows = []
    for stage, outline in enumerate(a.header.stages):
        times_a, times_b, spans = a.stages[stage], b.stages[stage], matched.of_stage(stage)
        loads = spans.of("load")
        rows.append(
            {
                "stage": outline.name,
                "group": outline.group,
                "elapsed_a_s": times_a["elapsed_s"],
                "elapsed_b_s": times_b["elapsed_s"],
                "elapsed_difference_s": times_b["elapsed_s"] - times_a["elapsed_s"],
                "executing_difference_s": times_b["executor_busy_s"] - times_a["executor_busy_s"],
                "loading_difference_s": times_b["loader_busy_s"] - times_a["loader_busy_s"],
                "spans_in_both": len(spans.both),
                "spans_moved": sum(map(_has_moved, spans.both.values())),
                "largest_start_difference_s": max(map(_later_s, spans.both.values()), key=abs, default=0.0),
                "loads_only_in_a": len(loads.only_a),
                "loads_only_in_b": len(loads.only_b),
            }
        )
    return rows


def _largest(a: Trace, matched: _Matched, by: str) -> list[dict[str, Any]]:
    """The spans with the largest differences of one sort, the largest first."""
    rows = [
        {
            **_named(a, key),
            "start_a_s": pair[0].start_s,
            "start_difference_s": _later_s(pair),
            "duration_a_s": _length_s(pair[0]),
            "duration_difference_s": _longer_s(pair),
        }
        for key, pair in matched.both.items()
    ]
    rows = [row for row in rows if abs(row[by]) > _SAME_S]
    return sorted(rows, key=lambda row: -abs(row[by]))[:LARGEST]


def _described(trace: Trace, key: _Key, span: Span) -> dict[str, Any]:
    return {**_named(trace, key), "start_s": span.start_s, "duration_s": _length_s(span), "bytes": span.bytes}


def _named(trace: Trace, key: _Key) -> dict[str, Any]:
    operation, place, _ = key
    outline = trace.header.stages[place.stage]
    block = outline.blocks[place.position]
    return {"operation": operation, "stage": outline.name, "round": place.round, "block": block}
