"""What loads and executions cost: formulas, measured kinds, sizes, cold loads, first touch."""

from __future__ import annotations

from cidl_sim.core.device import Measured
from conformance_cases.building import block, chain, device, draft

CASES = {
    "a_load_is_latency_and_bytes_over_bandwidth": draft(
        "Costs: load = latency_s + weight_bytes / bandwidth_bytes_per_s.",
        chain(block("a", 6, 2), block("b", 2, 1)),
        device(8, loader={"latency_s": 0.5, "bandwidth_bytes_per_s": 4.0}),
        by_hand="""Six bytes take 0.5 + 1.5: load 0 0-2. Two take 0.5 + 0.5: load 1 2-3. Executions are visit 0 2-4 and
            visit 1 4-5.""",
    ),
    "an_execution_is_launch_and_arithmetic": draft(
        "Costs: execute = launch_s + flops / (flops_per_s * efficiency).",
        chain(block("a", 1, 3), block("b", 1, 6)),
        device(2, executor={"launch_s": 0.25, "flops_per_s": 4.0, "efficiency": 0.5}),
        by_hand="""Two operations a second are left of four: after load 0 0-1 comes visit 0 1-2.75, 0.25 + 1.5. With
            load 1 1-2 long ended comes visit 1 2.75-6, 0.25 + 3.""",
    ),
    "an_execution_is_bound_by_memory_traffic": draft(
        "Costs: the longer of arithmetic and bytes_moved / memory_bandwidth_bytes_per_s counts.",
        chain(block("a", 1, 2, bytes_moved=30), block("b", 1, 4, bytes_moved=30)),
        device(2, executor={"memory_bandwidth_bytes_per_s": 10.0}),
        by_hand="""Thirty bytes take 3 s, longer than two operations: load 0 0-1, visit 0 1-4. They are shorter than
            four operations: load 1 1-2, visit 1 4-8.""",
    ),
    "a_measured_kind_replaces_the_formula": draft(
        "Costs: where the kind is measured, its seconds count, launch and latency included.",
        chain(block("a", 2, 2), block("b", 2, 2)),
        device(
            4,
            loader={"latency_s": 1.0},
            executor={"launch_s": 1.0},
            measured={"a": Measured(load_s=5, exec_s=4)},
        ),
        by_hand="""For a the measurement: load 0 0-5, visit 0 5-9. For b the formula, 1 + 2 s each: load 1 5-8, visit 1
            9-12.""",
    ),
    "half_a_measurement": draft(
        "Costs: a kind of which only one cost is measured takes the other one from the formula.",
        chain(block("a", 2, 2), block("b", 2, 2)),
        device(4, measured={"a": Measured(exec_s=5), "b": Measured(load_s=3)}),
        by_hand="""Of a only the execution is measured: load 0 0-2, visit 0 2-7. Of b only the load: load 1 2-5, visit
            1 7-9.""",
    ),
    "the_nearest_measured_ancestor": draft(
        "Costs: kinds are dotted paths; the nearest ancestor that was measured stands in for a kind that was not.",
        chain(
            block("a", 1, 1, kind="net.pair.fp32.16"),
            block("b", 1, 1, kind="net.single.fp32"),
            block("c", 1, 1, kind="net.pair"),
        ),
        device(3, measured={"net": Measured(load_s=3, exec_s=3), "net.pair": Measured(load_s=2, exec_s=1)}),
        by_hand="""For net.pair.fp32.16 stands net.pair: load 0 0-2, visit 0 2-3. For net.single.fp32 stands net: load
            1 2-5, visit 1 5-8. Of net.pair itself are load 2 5-7 and visit 2 8-9.""",
    ),
    "an_ancestor_is_a_path_not_a_beginning": draft(
        "Costs: net.pair is no ancestor of net.pairs, nor net.pair.fp32 of net.pair.",
        chain(block("a", 1, 1, kind="net.pairs"), block("b", 1, 1, kind="net.pair")),
        device(2, measured={"net.pair.fp32": Measured(load_s=9, exec_s=9), "net.pai": Measured(load_s=9, exec_s=9)}),
        by_hand="""Neither is measured, so bytes and operations count: load 0 0-1, visit 0 1-2, load 1 1-2, visit 1
            2-3.""",
    ),
    "a_measured_load_scales_with_bytes": draft(
        "Costs: a block of another size scales its kind's load by the ratio of latency_s + bytes / bandwidth.",
        chain(block("a", 4, 1, kind="k"), block("b", 8, 1, kind="k")),
        device(
            12,
            loader={"latency_s": 1.0, "bandwidth_bytes_per_s": 2.0},
            measured={"k": Measured(load_s=6, exec_s=1, weight_bytes=4)},
        ),
        by_hand="""Measured at four bytes: load 0 0-6. The formula gives 1 + 4 / 2 = 3 for it and 1 + 8 / 2 = 5 for
            eight. So eight take 6 * 5 / 3 = 10: load 1 6-16. Then visit 0 6-7, visit 1 16-17.""",
    ),
    "a_measured_execution_scales_with_flops": draft(
        "Costs: a block with other arithmetic scales its kind's execution by flops, the launch with it.",
        chain(block("a", 1, 4, kind="k"), block("b", 1, 1, kind="k"), block("c", 1, 0, kind="k")),
        device(3, executor={"launch_s": 0.5}, measured={"k": Measured(load_s=1, exec_s=3, flops=2)}),
        by_hand="""Measured at two operations, four take 6 s: load 0 0-1, visit 0 1-7. One takes 1.5 s: load 1 1-2,
            visit 1 7-8.5. A block that says nothing of its arithmetic takes what was measured: load 2 2-3, visit 2
            8.5-11.5.""",
    ),
    "a_measured_execution_scales_with_bytes_moved_and_flops": draft(
        "Costs: of a measured execution what its bytes take by the bandwidth scales by bytes, the rest by flops.",
        chain(
            block("a", 1, 4, kind="k", bytes_moved=10),
            block("b", 1, 2, kind="k", bytes_moved=30),
            block("c", 1, 4, kind="k"),
        ),
        device(
            3,
            executor={"memory_bandwidth_bytes_per_s": 10.0},
            measured={"k": Measured(load_s=1, exec_s=4, flops=2, bytes_moved=20)},
        ),
        by_hand="""Twenty bytes take 2 of the 4 s. Half the bytes and twice the operations take 1 + 4: load 0 0-1, visit
            0 1-6. Half as many bytes again and as many operations take 3 + 2: load 1 1-2, visit 1 6-11. A block that
            says nothing of its bytes scales by operations alone, 8 s: load 2 2-3, visit 2 11-19.""",
    ),
    "a_measurement_without_sizes_does_not_scale": draft(
        "Costs: without the size that it was measured at a cost holds for every block of the kind.",
        chain(block("a", 1, 1, kind="k"), block("b", 4, 9, kind="k")),
        device(5, measured={"k": Measured(load_s=2, exec_s=3)}),
        by_hand="""Four bytes take as long as one: load 0 0-2, load 1 2-4, visit 0 2-5, visit 1 5-8.""",
    ),
    "the_first_load_is_cold": draft(
        "Costs: the load for the first visit of its weights takes cold_load_s, later ones load_s.",
        chain(block("a", 1, 1), rounds=3),
        device(1, measured={"a": Measured(load_s=1, cold_load_s=5, exec_s=1)}),
        by_hand="""Cold is load 0 0-5, then visit 0 5-6. Warm are load 1 6-7 and, after visit 1 7-8, load 2 8-9. Last
            is visit 2 9-10.""",
    ),
    "a_cold_load_belongs_to_the_weights": draft(
        "Costs: a block that shares weights with an earlier one finds them warm.",
        chain(block("w1", 1, 1, weights="w", kind="k"), block("w2", 1, 1, weights="w", kind="k")),
        device(1, measured={"k": Measured(load_s=1, cold_load_s=5, exec_s=1)}),
        by_hand="""Cold is load 0 0-5, before visit 0 5-6; warm is load 1 6-7, before visit 1 7-8.""",
    ),
    "the_cold_difference_scales_with_bytes": draft(
        "Costs: a block of another size scales the difference of cold_load_s and load_s as it scales load_s.",
        chain(block("a", 4, 1, kind="k"), rounds=2),
        device(4, measured={"k": Measured(load_s=1, cold_load_s=3, exec_s=1, weight_bytes=2)}),
        by_hand="""Twice the bytes: warm 2 * 1, cold 2 * 1 + 2 * (3 - 1) = 6. So load 0 0-6, visit 0 6-7, load 1 7-9,
            visit 1 9-10.""",
    ),
    "a_cold_load_without_a_warm_one": draft(
        "Costs: where only cold_load_s is measured a cold load takes that, or the formula if it takes longer.",
        chain(block("a", 2, 1), block("b", 4, 1), rounds=2),
        device(4, measured={"a": Measured(cold_load_s=3), "b": Measured(cold_load_s=3)}),
        by_hand="""Of a the cold load is load 0 0-3, before visit 0 3-4. Of b the formula is longer: load 1 4-8, when a
            has left; visit 1 8-9. Warm loads are what the formula says: load 2 9-11, visit 2 11-12, load 3 12-16,
            visit 3 16-17.""",
    ),
    "a_block_that_is_like_others": draft(
        "Costs: without a measurement of its own a joined block takes those of the blocks that it is like, latency and "
        "launch counted once, the rest scaled by bytes and by arithmetic.",
        chain(
            block("whole", 4, 4, like=(block("x", 2, 2), block("y", 2, 2))),
            block("half", 2, 2, like=(block("x", 2, 2), block("y", 2, 2))),
        ),
        device(
            6,
            loader={"latency_s": 1.0},
            executor={"launch_s": 0.5},
            measured={"x": Measured(load_s=2, exec_s=2), "y": Measured(load_s=3, exec_s=4)},
        ),
        by_hand="""Beside 1 s of latency x loads for 1 s and y for 2 s, beside 0.5 s of launch they run for 1.5 s and
            3.5 s. All of both: 1 + 3 is load 0 0-4, 0.5 + 5 is visit 0 4-9.5. Half of both: 1 + 1.5 is load 1 4-6.5,
            0.5 + 2.5 is visit 1 9.5-12.5.""",
    ),
    "memory_is_touched_once": draft(
        "Costs: a load that takes weights beyond what they ever held waits for the new bytes, at "
        "first_touch_bytes_per_s.",
        chain(block("a", 3, 2), block("b", 2, 4), block("c", 4, 1), block("d", 1, 3)),
        device(7, loader={"first_touch_bytes_per_s": 2.0}),
        by_hand="""Three new bytes take 1.5 s more: load 0 0-4.5. Two beside them take 1 s more: load 1 4.5-7.5. When
            visit 0 4.5-6.5 has ended b and c hold 6 bytes, one more than before: load 2 7.5-12. After visit 1 7.5-11.5
            nothing new is needed for load 3 12-13. The rest is visit 2 12-13, visit 3 13-16.""",
    ),
    "memory_for_a_workspace_is_touched_again": draft(
        "Costs: where a visit's workspace leaves less room for weights than was touched, the rest is touched anew "
        "later.",
        chain(block("a", 4, 1), block("b", 1, 1, 6), block("c", 4, 1)),
        device(8, loader={"first_touch_bytes_per_s": 2.0}),
        by_hand="""Four new bytes take 2 s more: load 0 0-6, visit 0 6-7. Until b has run weights may take 8 - 6 = 2
            bytes: two go back, and load 1 7-8 finds its one byte touched. After visit 1 8-9 c needs two that are new
            again: load 2 9-14. Last is visit 2 14-15.""",
    ),
    "durations_of_zero": draft(
        "Costs: a load and an execution may take no time at all; whatever they make possible starts at the same "
        "instant.",
        chain(block("a", 0, 0), block("b", 0, 2), block("c", 1, 0)),
        device(1),
        by_hand="""At once come load 0 0-0, load 1 0-0 and visit 0 0-0. Then load 2 0-1 beside visit 1 0-2, and visit 2
            2-2.""",
    ),
    "a_kind_without_a_cost": draft(
        "Costs: a kind that is not measured, on a device without the figures of the formula, is refused by its name.",
        chain(block("a", 1, 1), block("b", 1, 1)),
        device(2, executor={"flops_per_s": None}, measured={"a": Measured(exec_s=1)}),
        by_hand="a was measured; of b nothing says how long its operation takes: refused at block b.",
    ),
}
