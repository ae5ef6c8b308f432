"""The leap: when it comes, and that it skips nothing but work."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cidl_sim.sampling.linear_proportional_leap import (
    STOPPING_RULES,
    DynamicLeap,
    StoppingRule,
    drift_similarity,
    stopping_rule,
)
from tests.executor.tiny_runs import SETTINGS, run_control, run_policy


def drifts(similarities: Sequence[float]) -> list[Tensor]:
    """(1, 1, 1, 3, 2) drifts of which each has the given cosine to the one before it; the first has none."""
    angle, result = 0.0, [torch.tensor([1.0, 0.0]).expand(1, 1, 1, 3, 2)]
    for similarity in similarities:
        angle += math.acos(similarity)
        result.append(torch.tensor([math.cos(angle), math.sin(angle)]).expand(1, 1, 1, 3, 2) * (1 + angle))
    return result


def leaps_at(rule: StoppingRule, similarities: Sequence[float]) -> int | None:
    """The step at which the rule says to leap; `similarities` begin at step 1."""
    leap = DynamicLeap(rule)
    for step, drift in enumerate(drifts(similarities)):
        _, leaps = leap.observe(step, drift)
        if leaps:
            return step
    return None


def test_the_similarity_is_the_cosine_along_rows_averaged_over_the_first_frame_of_the_first_channel():
    previous, drift = torch.zeros(1, 2, 2, 2, 2), torch.zeros(1, 2, 2, 2, 2)
    previous[0, 0, 0] = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    drift[0, 0, 0] = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    drift[0, 1], drift[0, 0, 1] = 9.0, 9.0
    assert drift_similarity(drift, previous) == pytest.approx(0.5)


def test_nothing_is_known_at_the_first_step_and_the_similarity_after_it():
    leap = DynamicLeap(StoppingRule(minimum_steps=0, tolerance=0.0, patience=1))
    first, second = drifts([0.25])
    assert leap.observe(0, first) == (None, False)
    similarity, leaps = leap.observe(1, second)
    assert similarity == pytest.approx(0.25)
    assert not leaps


def test_the_leap_comes_after_as_many_failures_as_the_patience():
    rule = StoppingRule(minimum_steps=1, tolerance=0.01, patience=3)
    # Step 1 sets the mark; steps 2, 3 and 4 fail to raise it.
    assert leaps_at(rule, [0.5] * 10) == 4


def test_an_improvement_gives_all_the_patience_back():
    rule = StoppingRule(minimum_steps=1, tolerance=0.01, patience=3)
    assert leaps_at(rule, [0.5, 0.5, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6]) == 7


def test_an_improvement_within_the_tolerance_is_none():
    rule = StoppingRule(minimum_steps=1, tolerance=0.1, patience=2)
    assert leaps_at(rule, [0.5, 0.55, 0.59]) == 3
    # The mark stays at 0.5, so that many small improvements count together.
    assert leaps_at(rule, [0.5, 0.55, 0.61, 0.6]) is None


def test_nothing_is_judged_before_the_minimum_of_steps():
    rule = StoppingRule(minimum_steps=5, tolerance=0.01, patience=2)
    assert leaps_at(rule, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]) == 7
    # What was seen before does not even set the mark: step 5 does.
    assert leaps_at(rule, [0.9, 0.9, 0.9, 0.9, 0.5, 0.6, 0.7]) is None


def test_a_drift_that_turns_ever_less_is_never_leapt_over():
    rule = StoppingRule(minimum_steps=1, tolerance=0.01, patience=1)
    assert leaps_at(rule, [i / 10 for i in range(1, 10)]) is None


@settings(deadline=None)
@given(
    st.lists(st.integers(-9, 9).map(lambda n: n / 10), max_size=25),
    st.integers(0, 12),
    st.integers(1, 4),
)
def test_the_leap_is_the_first_step_whose_last_improvement_lies_the_patience_back(similarities, minimum, patience):
    rule = StoppingRule(minimum_steps=minimum, tolerance=0.05, patience=patience)
    # With steps of 0.1 and a tolerance of 0.05 an improvement is a new maximum above zero.
    judged = {step: s for step, s in enumerate(similarities, 1) if step >= minimum}
    expected = None
    for step in judged:
        window = [s for earlier, s in judged.items() if step - patience < earlier <= step]
        before = [s for earlier, s in judged.items() if earlier <= step - patience]
        if len(window) == patience and max(window) <= max([0.0, *before]):
            expected = step
            break
    assert leaps_at(rule, similarities) == expected


@pytest.mark.parametrize(("steps", "minimum"), [(30, 15), (15, 8), (1, 1)])
def test_the_rule_of_the_paper_waits_for_at_least_half_of_the_steps(steps, minimum):
    assert stopping_rule("paper", steps) == StoppingRule(minimum_steps=minimum, tolerance=1e-4, patience=3)


def test_the_rules_of_the_reference_sources_go_by_name():
    assert stopping_rule("reference-python", 30) == StoppingRule(minimum_steps=14, tolerance=1e-3, patience=3)
    assert stopping_rule("reference-app", 30) == StoppingRule(minimum_steps=15, tolerance=1e-4, patience=5)
    assert [stopping_rule(name, 30) for name in STOPPING_RULES]


# In a run


@pytest.mark.parametrize("leap", [0, 1, 3])
def test_a_static_leap_at_step_n_takes_n_plus_one_evaluations(tiny_store, leap):
    settings = SETTINGS.model_copy(update={"steps": 4, "lpl": str(leap)})
    program, _ = run_policy(tiny_store, "lru", settings)
    assert program.evaluations == leap + 1
    assert sum(block == "stdit.part2" for block, _ in program.results) == leap + 1


def test_a_leap_at_the_last_step_is_the_full_run(tiny_store):
    full, leap = (SETTINGS.model_copy(update={"lpl": lpl}) for lpl in ("off", str(SETTINGS.steps - 1)))
    assert torch.equal(run_control(tiny_store, leap).frames, run_control(tiny_store, full).frames)


def test_an_earlier_leap_is_another_video(tiny_store):
    full, leap = (SETTINGS.model_copy(update={"lpl": lpl}) for lpl in ("off", "0"))
    assert not torch.equal(run_control(tiny_store, leap).frames, run_control(tiny_store, full).frames)


def test_a_dynamic_run_that_never_leaps_is_the_full_run(tiny_store):
    # With three steps the patience of the paper's rule cannot be used up.
    full, dynamic = (SETTINGS.model_copy(update={"lpl": lpl}) for lpl in ("off", "dynamic"))
    program, trace = run_policy(tiny_store, "next_block", dynamic)
    assert program.evaluations == SETTINGS.steps
    assert [(event.kind, event.values["step"]) for event in trace.events] == [
        ("drift_similarity", 1),
        ("drift_similarity", 2),
    ]
    assert torch.equal(program.frames, run_control(tiny_store, full).frames)
