"""One part of a sweep, evaluated: what every worker does, in whatever process it is."""

from __future__ import annotations

from cidl_sim.sweep.evaluate import Evaluator, Inputs
from cidl_sim.sweep.results import encode_part


def evaluate_part(inputs: Inputs, identity: str, number: int, threads: int | None = 1) -> bytes:
    """A part as the bytes of its file: what a worker does."""
    evaluator = _evaluator(inputs, identity, threads)
    return encode_part(evaluator.part(number), part_identity(identity, number))


_evaluators: dict[tuple[str, int | None], Evaluator] = {}


def _evaluator(inputs: Inputs, identity: str, threads: int | None) -> Evaluator:
    """That of this process: what it worked out serves its next part."""
    key = identity, threads
    if key not in _evaluators:
        _evaluators.clear()
        _evaluators[key] = Evaluator(inputs, threads)
    return _evaluators[key]


def part_identity(identity: str, number: int) -> str:
    """What a part of a sweep is recognised by."""
    return f"{identity}/{number}"
