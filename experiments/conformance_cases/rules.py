"""Rules 1 to 3: visits in order, loads in the plan's order behind their gates, memory, release at once."""

from __future__ import annotations

from conformance_cases.building import block, chain, device, draft, end_of, start_of

CASES = {
    "one_block": draft(
        "Rule 1: a visit starts when its weights are loaded.",
        chain(block("a", 2, 3)),
        device(2),
        by_hand="""Nothing is in the way of load 0 0-2. With its weights here comes visit 0 2-5, and the run ends.""",
    ),
    "visits_run_one_at_a_time": draft(
        "Rule 1: visits run in order, one at a time, however much is loaded.",
        chain(block("a", 1, 3), block("b", 1, 3), block("c", 1, 1)),
        device(3),
        by_hand="""There is room for everything: load 0 0-1, load 1 1-2, load 2 2-3. The executor is the bottleneck:
            visit 0 1-4, visit 1 4-7, visit 2 7-8.""",
    ),
    "a_visit_waits_for_its_load": draft(
        "Rule 1: a visit does not start before the load of its weights has ended.",
        chain(block("a", 1, 1), block("b", 4, 1)),
        device(5),
        by_hand="""The one channel is never idle: load 0 0-1, load 1 1-5. After visit 0 1-2 the executor waits 3 s for
            visit 1 5-6.""",
    ),
    "loads_start_in_plan_order": draft(
        "Rule 2: loads start in the plan's order, which need not be that of the visits.",
        chain(block("a", 1, 1), block("b", 1, 1), block("c", 3, 1)),
        device(5),
        loads=[0, 2, 1],
        by_hand="""The plan has c before b: load 0 0-1, load 2 1-4, load 1 4-5. So b comes late: visit 0 1-2, visit 1
            5-6, visit 2 6-7. At 1 s a and c are held, 4 bytes; at 4 s c and b, 4 again.""",
    ),
    "no_load_overtakes": draft(
        "Rule 2: a load that does not fit holds up those behind it, also one that would fit.",
        chain(block("a", 2, 4), block("b", 4, 1), block("c", 1, 1)),
        device(5),
        by_hand="""After load 0 0-2 b would need 2 + 4 = 6 bytes until the end of visit 0 2-6; c would need 3, but
            waits. Then load 1 6-10 and load 2 10-11 follow, with 4 + 1 = 5 bytes. The rest is visit 1 10-11, visit 2
            11-12.""",
    ),
    "the_gate_at_a_visits_start": draft(
        "Rule 2: a load behind the start of a visit starts together with it at the earliest.",
        chain(block("a", 1, 2), block("b", 1, 3), block("c", 1, 1)),
        device(3),
        gates={2: start_of(1)},
        by_hand="""Without gates come load 0 0-1 and load 1 1-2. After visit 0 1-3 comes visit 1 3-6, and opens that of
            load 2 3-4. Last is visit 2 6-7.""",
    ),
    "the_gate_at_a_visits_end": draft(
        "Rule 2: a load behind the end of a visit starts when that has ended, and those behind the load wait with it.",
        chain(block("a", 1, 2), block("b", 1, 3), block("c", 1, 1)),
        device(3),
        gates={1: end_of(0)},
        by_hand="""Then load 0 0-1 and visit 0 1-3, whose end opens the gate of load 1 3-4. Without a gate of its own
            load 2 4-5 comes behind it all the same. The rest is visit 1 4-7, visit 2 7-8.""",
    ),
    "a_gate_long_passed_is_open": draft(
        "Rule 2: a gate that was passed before the load's turn came holds nothing up.",
        chain(block("a", 1, 1), block("b", 3, 1), block("c", 1, 1)),
        device(5),
        gates={2: end_of(0)},
        by_hand="""With load 0 0-1, load 1 1-4 and visit 0 1-2 the gate is open from 2 s on, and the channel is free at
            4 s. So there are load 2 4-5, visit 1 4-5, visit 2 5-6.""",
    ),
    "gates_without_prefetch": draft(
        "Rules 1 to 3: every load behind the end of the visit before its own, so nothing overlaps.",
        chain(block("a", 1, 2), block("b", 2, 1), block("c", 1, 1)),
        device(4),
        gates={1: end_of(0), 2: end_of(1)},
        by_hand="""One after the other: load 0 0-1, visit 0 1-3, load 1 3-5, visit 1 5-6, load 2 6-7, visit 2 7-8. One
            block is held at a time, so the peak is that of b.""",
    ),
    "the_largest_workspace_until_the_visit": draft(
        "Rule 2: the largest workspace among the visits from the current one to the load's has to fit beside the load.",
        chain(block("a", 1, 5), block("b", 1, 2, 4), block("c", 1, 1)),
        device(6),
        by_hand="""At 1 s load 0 0-1 has ended, and load 1 1-2 needs 1 + 1 + the 4 of b's workspace: 6, just so. The
            load of c would need 2 + 1 + 4 = 7, although neither a nor c has a workspace: it waits for visit 0 1-6.
            Then it needs 1 + 1 + 4: load 2 6-7 beside visit 1 6-8, with 6 bytes; visit 2 8-9.""",
    ),
    "a_workspace_of_the_past_does_not_count": draft(
        "Rule 2: the workspace of a visit that has ended takes no room.",
        chain(block("a", 1, 1, 4), block("b", 1, 2), block("c", 1, 1)),
        device(6),
        by_hand="""With load 0 0-1 and load 1 1-2 two bytes are held beside the 4 of a's workspace. So load 2 2-3 waits
            for the end of visit 0 1-2: 2 + 1 + 4 = 7. Then visit 1 2-4 and visit 2 4-5.""",
    ),
    "a_workspace_beyond_the_visit_does_not_count": draft(
        "Rule 2: a load for a visit does not leave room for the workspaces of later visits.",
        chain(block("a", 1, 2), block("b", 2, 2), block("c", 1, 1, 5)),
        device(6),
        by_hand="""Neither load 0 0-1 nor load 1 1-3 (1 + 2 bytes) cares about the 5 bytes of c's workspace. The load
            of c needs 2 + 1 + 5 = 8 until visit 0 1-3 and visit 1 3-5 have ended. Then load 2 5-6 and visit 2 6-7,
            with all 6 bytes.""",
    ),
    "bytes_count_from_the_start_of_the_load": draft(
        "Rule 2: weights in flight take their bytes from the start of the load, not from its end.",
        chain(block("a", 3, 1), block("b", 3, 1), block("c", 1, 1)),
        device(6, loader={"channels": 3}),
        by_hand="""Sharing the bandwidth, load 0 0-6 and load 1 0-6 hold 6 bytes from 0 s on: the third channel waits
            for memory. After visit 0 6-7 the bytes of a are free for load 2 7-8, during visit 1 7-8. Last is visit 2
            8-9.""",
    ),
    "the_baseline_counts": draft(
        "Rule 2: the baseline is taken from the limit, and part of the peak.",
        chain(block("a", 2, 1), block("b", 2, 1)),
        device(5, baseline_bytes=2),
        by_hand="""With load 0 0-2 there are 4 of 5 bytes, 2 too many for b until visit 0 2-3 has ended. Then load 1
            3-5 and visit 1 5-6; the peak is 2 + 2.""",
    ),
    "weights_are_released_at_once": draft(
        "Rule 3: what is not kept leaves memory after its visit, even if the next visit needs it again.",
        chain(block("a", 1, 1), rounds=3),
        device(10),
        by_hand="""Each time anew: load 0 0-1, visit 0 1-2, load 1 2-3, visit 1 3-4, load 2 4-5, visit 2 5-6.""",
    ),
    "loads_run_ahead_across_rounds": draft(
        "Rules 2 and 3: loads of the next round start while this one runs, but not before the same weights have left.",
        chain(block("a", 1, 2), block("b", 1, 2), rounds=2),
        device(3),
        by_hand="""After load 0 0-1 and load 1 1-2 the next is a again, which is held for visit 0 1-3, though there is
            room. So load 2 3-4 runs beside visit 1 3-5, and b again is load 3 5-6 beside visit 2 5-7. Last is visit 3
            7-9.""",
    ),
    "the_worked_example": draft(
        "Rules 1 to 3 together: two rounds of five blocks, a gate, a keep, a baseline and a limit that binds.",
        chain(block("A", 2, 3), block("B", 3, 2, 1), block("C", 1, 4, 2), block("D", 4, 2), block("E", 2, 3), rounds=2),
        device(9, baseline_bytes=1),
        keep=[0],
        gates={3: start_of(2)},
        by_hand="""A limit of 9 less the baseline is 8 bytes of room. Nothing is in the way of load 0 0-2. During visit
            0 2-5 comes load 1 2-5: 2 + 3 + 1 for B's workspace. A stays for visit 5. During visit 1 5-7 comes load 2
            5-6: 5 + 1 + 2 for C's workspace, just so. D waits for its gate until 7. During visit 2 7-11 that is open,
            but 3 + 4 + 2 = 9 do not fit until C has left: load 3 11-15. During visit 3 15-17 comes load 4 15-17: 6 + 2
            = 8. During visit 4 17-20 comes load 6 17-20: 4 + 3 + 1 = 8, across the border of the round. During visit 5
            20-23 comes load 7 20-21: 5 + 1 + 2; A leaves for good. During visit 6 23-25 D would need 4 + 4 + 2 = 10,
            so it waits for visit 7 25-29: load 8 25-29. Then visit 8 29-31 beside load 9 29-31, and visit 9 31-34.""",
    ),
}
