"""Plans that break a rule, and plans that can never finish."""

from __future__ import annotations

from dataclasses import replace

from conformance_cases.building import block, chain, device, draft, end_of, start_of

_TWICE = chain(block("a", 1, 1), block("b", 1, 1), rounds=2)
_SHARED = chain(block("w1", 1, 1, weights="w"), block("w2", 1, 1, weights="w"))
_OTHER = draft("Another workload's plan.", _SHARED, device(4)).plan

CASES = {
    "infeasible_weights": draft(
        "Rule 2: a block whose weights alone exceed the limit makes every plan infeasible.",
        chain(block("a", 1, 1), block("b", 5, 1)),
        device(4),
        by_hand="b has 5 bytes of weights, the limit is 4: refused at visit 1.",
    ),
    "infeasible_workspace": draft(
        "Rule 2: a block has to fit together with its workspace.",
        chain(block("a", 1, 1), block("b", 2, 1, 3), block("c", 1, 1)),
        device(4),
        by_hand="2 bytes of weights and 3 of workspace, the limit is 4: refused at visit 1.",
    ),
    "infeasible_baseline": draft(
        "Rule 2: a block has to fit beside the baseline.",
        chain(block("a", 1, 1), block("b", 3, 1)),
        device(4, baseline_bytes=2),
        by_hand="b has 3 bytes beside the baseline's 2, the limit is 4: refused at visit 1.",
    ),
    "infeasible_order_of_loads": draft(
        "Rule 2: a load for a later visit takes the room of an earlier one, for which the run waits for ever.",
        chain(block("a", 1, 1), block("b", 1, 1)),
        device(1),
        loads=[1, 0],
        by_hand="b fills the memory before a could be loaded: refused at visit 0.",
    ),
    "infeasible_keep": draft(
        "Rules 2 and 3: what is kept leaves too little room for a later block's weights.",
        chain(block("a", 2, 1), block("b", 2, 1), block("c", 3, 1), rounds=2),
        device(4),
        keep=[0],
        by_hand="With a kept there are 2 bytes for b, and too few for the 3 of c: refused at visit 2.",
    ),
    "infeasible_keep_beside_a_workspace": draft(
        "Rules 2 and 3: what is kept leaves too little room for a later visit's workspace.",
        chain(block("a", 2, 1), block("b", 1, 1, 2), rounds=2),
        device(4),
        keep=[0],
        by_hand="With a kept there are 2 bytes for the 1 + 2 of b: refused at visit 1.",
    ),
    "infeasible_keep_in_a_later_round": draft(
        "Rules 2 and 3: a keep that leaves too little room in a later round only stops the run there.",
        chain(block("a", 1, 1), block("b", 1, 1), block("c", 3, 1), rounds=3),
        device(4),
        keep=[0, 3, 4],
        by_hand="""Beside a there is room for c's 3 bytes in the first round; beside a and b there is not: refused at
            visit 5.""",
    ),
    "infeasible_gate_on_its_own_end": draft(
        "Rules 1 and 2: a load behind the end of its own visit waits for ever.",
        chain(block("a", 1, 1), block("b", 1, 1)),
        device(2),
        gates={1: end_of(1)},
        by_hand="b is not loaded before it has run: refused at visit 1.",
    ),
    "infeasible_gate_on_a_later_visit": draft(
        "Rules 1 and 2: a load behind the start of a later visit waits for ever.",
        chain(block("a", 1, 1), block("b", 1, 1)),
        device(2),
        gates={0: start_of(1)},
        by_hand="a is not loaded before b starts, which comes after a: refused at visit 0.",
    ),
    "infeasible_shared_weights": draft(
        "Rule 2: weights held for a later visit are not there for an earlier one of another block that shares them.",
        _SHARED,
        device(2),
        loads=[1, 0],
        by_hand="w is here for w2, and can not be loaded for w1 until w2 has run: refused at visit 0.",
    ),
    "invalid_loaded_twice": draft(
        "Plans: no visit has two loads.",
        chain(block("a", 1, 1), block("b", 1, 1)),
        device(2),
        loads=[0, 1, 1],
        by_hand="Loads are for 0, 1 and 1 again: refused at visit 1.",
    ),
    "invalid_neither_loaded_nor_kept": draft(
        "Plans: every visit has a load, or an earlier visit of the same weights keeps them.",
        _TWICE,
        device(2),
        loads=[0, 1, 3],
        by_hand="a leaves after visit 0, and has no load for the second round: refused at visit 2.",
    ),
    "invalid_loaded_and_kept": draft(
        "Plans: a visit for which weights are kept has no load.",
        _TWICE,
        device(2),
        loads=[0, 1, 2, 3],
        keep=[0],
        by_hand="a stays after visit 0, and is loaded for the second round as well: refused at visit 2.",
    ),
    "invalid_keep_without_next_visit": draft(
        "Plans: only weights that are visited again can be kept.",
        _TWICE,
        device(2),
        loads=[0, 1, 2, 3],
        keep=[2],
        by_hand="a is to stay after its last visit: refused at visit 2.",
    ),
    "invalid_load_beyond_the_last_visit": draft(
        "Plans: a load is for a visit that there is.",
        _TWICE,
        device(2),
        loads=[0, 1, 2, 3, 4],
        by_hand="There are visits 0 to 3: refused at visit 4.",
    ),
    "invalid_gate_beyond_the_last_visit": draft(
        "Plans: a gate is at a visit that there is.",
        _TWICE,
        device(2),
        gates={3: start_of(7)},
        by_hand="There are visits 0 to 3: refused at visit 7.",
    ),
    "invalid_plan_of_another_workload": replace(
        draft(
            "Plans: a plan is for the workload whose identity it carries.",
            _TWICE,
            device(4),
            by_hand="The plan would do, but was made for two blocks that share weights: refused as a whole.",
        ),
        plan=_OTHER,
    ),
}
