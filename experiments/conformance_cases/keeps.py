"""Rule 3 with keeps, and blocks that share weights."""

from __future__ import annotations

from conformance_cases.building import block, chain, device, draft, stage, stages

CASES = {
    "a_keep_saves_a_load": draft(
        "Rule 3: kept weights stay until the next visit of the same weights, which needs no load.",
        chain(block("a", 1, 2), block("b", 2, 1), rounds=2),
        device(3),
        keep=[0],
        by_hand="""First load 0 0-1, load 1 1-3, visit 0 1-3, visit 1 3-4; then a is held, and b leaves. So load 3 4-6
            fits beside visit 2 4-6, for which a was kept. Then a leaves. Last is visit 3 6-7.""",
    ),
    "a_keep_lasts_one_visit": draft(
        "Rule 3: a keep holds until the next visit; whether the weights stay after that one is its own keep.",
        chain(block("a", 2, 1), rounds=4),
        device(2),
        keep=[0, 2],
        by_hand="""One load for two visits each: load 0 0-2, visit 0 2-3, visit 1 3-4, load 2 4-6, visit 2 6-7, visit 3
            7-8.""",
    ),
    "kept_weights_take_room": draft(
        "Rules 2 and 3: what is kept is held, and later loads wait for the rest of the memory.",
        chain(block("a", 2, 1), block("b", 2, 2), block("c", 2, 1), rounds=2),
        device(4),
        keep=[0],
        by_hand="""Room for two blocks, one of them a: load 0 0-2, load 1 2-4, visit 0 2-3. Each later load waits until
            the block before it has left: visit 1 4-6, load 2 6-8, visit 2 8-9. In the second round load 4 9-11 comes
            beside visit 3 9-10, after which a leaves. So load 5 11-13 fits beside visit 4 11-13. Last is visit 5
            13-14.""",
    ),
    "keeps_that_take_turns": draft(
        "Rule 3: which weights stay may differ from round to round.",
        chain(block("a", 1, 1), block("b", 1, 1), rounds=3),
        device(2),
        keep=[0, 3],
        by_hand="""In the first round a is kept: load 0 0-1, load 1 1-2, visit 0 1-2, visit 1 2-3. In the second b,
            which had to be loaded: load 3 3-4, visit 2 3-4, visit 3 4-5. In the third a comes back: load 4 4-5, visit
            4 5-6, visit 5 6-7.""",
    ),
    "a_keep_crosses_stages": draft(
        "Rule 3: weights kept by a stage's last round serve another stage whose blocks share them (merged, then "
        "plain).",
        stages(
            stage(
                "merged", block("a.merged", 2, 1, weights="a"), block("b.merged", 2, 1, weights="b"), group="denoiser"
            ),
            stage("plain", block("a", 2, 3), block("b", 2, 2), group="denoiser"),
        ),
        device(4),
        keep=[0],
        by_hand="""The merged stage: load 0 0-2, load 1 2-4, visit 0 2-3, visit 1 4-5, with a kept and b released. The
            plain stage: visit 2 5-8 runs on what was loaded for visit 0; load 3 5-7, visit 3 8-10.""",
    ),
    "loads_run_ahead_across_stages": draft(
        "Rules 1 and 2: a stage's loads start while the stage before it still runs.",
        stages(stage("s", block("a", 1, 4)), stage("t", block("b", 2, 1), block("c", 1, 1), rounds=1)),
        device(4),
        by_hand="""All fits: load 0 0-1, load 1 1-3, load 2 3-4 are through before visit 0 1-5 ends. Then visit 1 5-6,
            visit 2 6-7.""",
    ),
    "weights_in_use_are_not_loaded_twice": draft(
        "Rule 2: a load waits while the same weights are held for an earlier visit, however much memory is free.",
        chain(block("w1", 2, 4, weights="w"), block("b", 1, 1), block("w2", 2, 1, weights="w")),
        device(10),
        by_hand="""Here load 0 0-2 and load 1 2-3 are through, and w is held for visit 0 2-6. When it has left it comes
            again: load 2 6-8 beside visit 1 6-7. Last is visit 2 8-9.""",
    ),
    "shared_weights_kept_within_a_round": draft(
        "Rule 3: a keep serves the next block that shares the weights, in the same round as well.",
        chain(block("w1", 2, 4, weights="w"), block("b", 1, 1), block("w2", 2, 1, weights="w")),
        device(10),
        keep=[0],
        by_hand="""Two loads, load 0 0-2 and load 1 2-3, for visit 0 2-6, visit 1 6-7 and visit 2 7-8.""",
    ),
    "shared_weights_in_flight": draft(
        "Rule 2: with two channels, a load of weights that are in flight waits, and so do the loads behind it.",
        chain(block("w1", 2, 4, weights="w"), block("b", 1, 1), block("w2", 2, 1, weights="w")),
        device(10, loader={"channels": 2}),
        loads=[0, 2, 1],
        by_hand="""The second channel has nothing to do during load 0 0-2 and visit 0 2-6: next is w again. From 6 s on
            both share the bandwidth. At half rate the one byte of b is load 1 6-8. The two bytes of w are one at half
            rate and one at full rate: load 2 6-9. After visit 1 8-9 comes visit 2 9-10.""",
    ),
}
