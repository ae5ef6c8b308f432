"""Channels that share the bandwidth, loads and executions that slow each other, heat."""

from __future__ import annotations

from cidl_sim.core.device import ThermalStep
from conformance_cases.building import block, chain, device, draft, start_of

_BOTH_SLOW = {"loader": {"slowdown_while_executing": 2.0}, "executor": {"slowdown_while_loading": 2.0}}

CASES = {
    "two_channels_share_the_bandwidth": draft(
        "Rule 2 and costs: as many loads as there are channels run at a time, and share the bandwidth equally.",
        chain(block("a", 4, 1), block("b", 2, 1)),
        device(6, loader={"channels": 2}),
        by_hand="""At half rate the two bytes of b are load 1 0-4. By then a has two of four, and has the rest alone:
            load 0 0-6. Visits keep their order: visit 0 6-7, visit 1 7-8.""",
    ),
    "a_third_load_waits_for_a_channel": draft(
        "Rule 2: no more loads are in flight than there are channels.",
        chain(block("a", 2, 1), block("b", 2, 1), block("c", 2, 1)),
        device(6, loader={"channels": 2}),
        by_hand="""Two at half rate: load 0 0-4, load 1 0-4. The third is alone: load 2 4-6, beside visit 0 4-5. The
            rest is visit 1 5-6, visit 2 6-7.""",
    ),
    "latency_is_not_shared": draft(
        "Costs: a load's latency passes at its own pace, and leaves the bandwidth to others meanwhile.",
        chain(block("a", 1, 1), block("b", 4, 1), block("c", 1, 1)),
        device(6, loader={"channels": 2, "latency_s": 1.0}),
        by_hand="""Both have their latency until 1 s and share until a has its byte: load 0 0-3. Then b lacks three
            bytes. In the latency of c, until 4 s, b gets one of them alone; then they share: load 2 3-6, and b lacks
            one. That it gets alone: load 1 0-7. The visits are visit 0 3-4, visit 1 7-8, visit 2 8-9.""",
    ),
    "contention_slows_both_sides": draft(
        "Costs: while a visit runs a load's rate is divided by slowdown_while_executing, while any load is in flight "
        "the execution's by slowdown_while_loading.",
        chain(block("a", 1, 4), block("b", 4, 1)),
        device(5, **_BOTH_SLOW),
        by_hand="""Alone is load 0 0-1. Four seconds each, at half rate side by side: visit 0 1-9, load 1 1-9. Alone
            again is visit 1 9-10.""",
    ),
    "contention_ends_with_the_load": draft(
        "Costs: only the part that overlaps is slowed.",
        chain(block("a", 1, 6), block("b", 2, 1)),
        device(3, **_BOTH_SLOW),
        by_hand="""Alone is load 0 0-1. At half rate load 1 1-5 takes twice its two seconds. By then two of the six
            seconds of a are done; four are left at full rate: visit 0 1-9. Then visit 1 9-10.""",
    ),
    "only_loads_are_slowed": draft(
        "Costs: slowdown_while_executing alone; what is left of a load after the visit goes on at full rate.",
        chain(block("a", 1, 2), block("b", 3, 1)),
        device(4, loader={"slowdown_while_executing": 2.0}),
        by_hand="""After load 0 0-1 comes visit 0 1-3, during which b gets one of its three bytes. The others take 2 s:
            load 1 1-5, then visit 1 5-6.""",
    ),
    "only_executions_are_slowed": draft(
        "Costs: slowdown_while_loading alone; what is left of a visit after the load goes on at full rate.",
        chain(block("a", 1, 3), block("b", 2, 1)),
        device(3, executor={"slowdown_while_loading": 2.0}),
        by_hand="""After load 0 0-1 comes load 1 1-3, during which one of a's three seconds is done. The others follow:
            visit 0 1-5, then visit 1 5-6.""",
    ),
    "latency_slows_and_is_not_slowed": draft(
        "Costs: a load in its latency slows the execution beside it, but is not slowed itself.",
        chain(block("a", 1, 5), block("b", 2, 1)),
        device(3, loader={"latency_s": 2.0, "slowdown_while_executing": 2.0}, executor={"slowdown_while_loading": 2.0}),
        by_hand="""Alone is load 0 0-3. Then b has its latency until 5 s, and two bytes at half rate: load 1 3-9. All
            that time a runs at half rate and does 3 of its 5 s; the rest follows: visit 0 3-11. Then visit 1 11-12.""",
    ),
    "a_launch_is_not_slowed": draft(
        "Costs: a visit's launch slows the load beside it, but is not slowed itself.",
        chain(block("a", 1, 2), block("b", 4, 1)),
        device(5, executor={"launch_s": 2.0, "slowdown_while_loading": 2.0}, loader={"slowdown_while_executing": 2.0}),
        by_hand="""Alone is load 0 0-1. Then a has its launch until 3 s, and two seconds at half rate: visit 0 1-7. All
            that time b has half the rate, three of its four bytes, and the last alone: load 1 1-8. Then launch and
            execution of b, visit 1 8-11.""",
    ),
    "sharing_and_contention_multiply": draft(
        "Costs: two loads beside a visit have half of what the visit leaves to one.",
        chain(block("a", 2, 10), block("b", 1, 1), block("c", 1, 1)),
        device(4, loader={"channels": 2, "slowdown_while_executing": 2.0}),
        gates={1: start_of(0), 2: start_of(0)},
        by_hand="""Alone is load 0 0-2. Its visit opens both gates; a quarter of the rate is left to each: load 1 2-6,
            load 2 2-6. The execution is not slowed: visit 0 2-12, visit 1 12-13, visit 2 13-14.""",
    ),
    "heat_slows_executions": draft(
        "Costs: from each thermal step on the executor's rate is multiplied by its factor, in the middle of a visit "
        "too.",
        chain(block("a", 1, 10), block("b", 8, 1)),
        device(9, thermal=(ThermalStep(after_s=6.0, factor=0.5), ThermalStep(after_s=10.0, factor=0.25))),
        by_hand="""Loads do not get hot: load 0 0-1, load 1 1-9. Of ten seconds a has five done at 6 s and two more, at
            half rate, at 10 s; three at a quarter: visit 0 1-22. One at a quarter is visit 1 22-26.""",
    ),
    "heat_and_contention_multiply": draft(
        "Costs: a hot executor beside a load has the product of both factors.",
        chain(block("a", 1, 2), block("b", 4, 1)),
        device(5, executor={"slowdown_while_loading": 2.0}, thermal=(ThermalStep(after_s=3.0, factor=0.5),)),
        by_hand="""After load 0 0-1 comes load 1 1-5. Of two seconds a does one at half rate until 3 s. At a quarter it
            does half a second until 5 s, and at half rate the rest: visit 0 1-6. Hot is visit 1 6-8.""",
    ),
}
