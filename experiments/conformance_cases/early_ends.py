"""Rule 4: a stage ends early."""

from __future__ import annotations

from conformance_cases.building import block, device, draft, end_of, stage, stages
from conformance_cases.records import EarlyEnd

CASES = {
    "an_early_end_cancels_loads": draft(
        "Rule 4: the remaining visits of the stage are skipped, what was loaded for them leaves, loads not started are "
        "cancelled.",
        stages(stage("s", block("a", 1, 1), block("b", 1, 3), rounds=3), stage("t", block("c", 1, 2))),
        device(2),
        early_ends=[EarlyEnd(after_visit=1, stage=0)],
        by_hand="""The first round: load 0 0-1, load 1 1-2, visit 0 1-2, visit 1 2-5. Ahead comes load 2 2-3. At 5 s a
            leaves without having been used again, and c is next: load 6 5-6, visit 6 6-8.""",
    ),
    "a_load_in_flight_ends_as_waste": draft(
        "Rule 4: a load in flight for a skipped visit goes on to its end, and its weights leave then.",
        stages(stage("s", block("a", 4, 1), block("b", 1, 2), rounds=2), stage("t", block("c", 1, 2))),
        device(5),
        early_ends=[EarlyEnd(after_visit=1, stage=0)],
        by_hand="""The first round: load 0 0-4, load 1 4-5, visit 0 4-5, visit 1 5-7. Ahead comes load 2 5-9. At 7 s it
            has become waste, but the one channel is busy until 9: load 4 9-10, visit 4 10-12.""",
    ),
    "waste_holds_its_memory": draft(
        "Rules 2 and 4: what finishes as waste counts until it has finished.",
        stages(stage("s", block("a", 4, 1), block("b", 1, 2), rounds=2), stage("t", block("c", 2, 2))),
        device(5, loader={"channels": 2}),
        early_ends=[EarlyEnd(after_visit=1, stage=0)],
        by_hand="""Both loads share: load 1 0-2, and a has three bytes left then: load 0 0-5, visit 0 5-6. Beside visit
            1 6-8 comes load 2 6-10 with 1 + 4 bytes. At 8 s c has a channel, but 4 + 2 = 6 do not fit. So load 4 10-12
            comes when the waste has left, then visit 4 12-14.""",
    ),
    "a_dropped_keep_becomes_a_load": draft(
        "Rule 4: keeps towards skipped visits are dropped; a later visit that counted on them gets a load.",
        stages(stage("s", block("a", 2, 1), rounds=3), stage("t", block("a", 2, 1))),
        device(2),
        keep=[0, 1, 2],
        early_ends=[EarlyEnd(after_visit=0, stage=0)],
        by_hand="""The plan has one load for four visits: load 0 0-2, visit 0 2-3. What was kept for visit number 1
            leaves at 3 s, so there is another: load 3 3-5, visit 3 5-6.""",
    ),
    "a_dropped_keep_loads_in_its_turn": draft(
        "Rule 4: the load for a dropped keep comes before the first remaining load for a later visit.",
        stages(
            stage("s", block("a", 1, 1), block("b", 1, 2), rounds=2), stage("t", block("a", 1, 1), block("c", 2, 1))
        ),
        device(2),
        keep=[0, 2],
        early_ends=[EarlyEnd(after_visit=1, stage=0)],
        by_hand="""The first round: load 0 0-1, load 1 1-2, visit 0 1-2, visit 1 2-4. a is kept, for a visit that is
            skipped. At 4 s a and b leave, and a is loaded for the next stage before c: load 4 4-5, visit 4 5-6. When
            it has left there is room for c: load 5 6-8, visit 5 8-9.""",
    ),
    "a_keep_beyond_the_stage_survives": draft(
        "Rule 4: weights that are held for a visit beyond the stage stay.",
        stages(stage("s", block("a", 2, 1)), stage("t", block("b", 1, 1), rounds=3), stage("u", block("a", 2, 1))),
        device(3),
        keep=[0],
        early_ends=[EarlyEnd(after_visit=1, stage=1)],
        by_hand="""Of three rounds there is one: load 0 0-2, load 1 2-3, visit 0 2-3, visit 1 3-4. Meanwhile a has
            stayed: visit 4 4-5.""",
    ),
    "the_last_stage_ends_early": draft(
        "Rule 4: the run ends with its last visit; a load in flight for a skipped one is not waited for.",
        stages(stage("s", block("a", 2, 1), block("b", 1, 1), rounds=2)),
        device(3),
        early_ends=[EarlyEnd(after_visit=1, stage=0)],
        by_hand="""One round is load 0 0-2, load 1 2-3, visit 0 2-3, visit 1 3-4. At 3 s a began to be loaded again, in
            vain.""",
    ),
    "a_stage_that_never_runs": draft(
        "Rule 4: a stage may end before it has begun, together with the visit before it.",
        stages(stage("s", block("a", 1, 1)), stage("t", block("b", 1, 1), rounds=2), stage("u", block("c", 1, 1))),
        device(1),
        early_ends=[EarlyEnd(after_visit=0, stage=1)],
        by_hand="""After load 0 0-1 and visit 0 1-2 all of t is left out: load 3 2-3, visit 3 3-4.""",
    ),
    "two_stages_end_early": draft(
        "Rule 4: each stage may end early on its own.",
        stages(
            stage("s", block("a", 1, 1), rounds=2),
            stage("t", block("b", 1, 1), rounds=3),
            stage("u", block("c", 1, 1)),
        ),
        device(1),
        early_ends=[EarlyEnd(after_visit=0, stage=0), EarlyEnd(after_visit=3, stage=1)],
        by_hand="""One round of s: load 0 0-1, visit 0 1-2. Two of t: load 2 2-3, visit 2 3-4, load 3 4-5, visit 3 5-6.
            Then load 5 6-7, visit 5 7-8.""",
    ),
    "a_gate_on_a_skipped_visit_is_open": draft(
        "Rules 2 and 4: a gate on a visit that was skipped counts as passed.",
        stages(stage("s", block("a", 1, 1), rounds=2), stage("t", block("c", 1, 1))),
        device(2),
        gates={2: end_of(1)},
        early_ends=[EarlyEnd(after_visit=0, stage=0)],
        by_hand="""After load 0 0-1 and visit 0 1-2 the gate is behind the run: load 2 2-3, visit 2 3-4.""",
    ),
}
