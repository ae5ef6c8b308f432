"""Rule 5: the memory limit changes, or an online policy takes another plan, while the run goes on."""

from __future__ import annotations

from conformance_cases.building import block, chain, device, draft, stage, stages
from conformance_cases.records import Replan

_SWEEP = chain(block("a", 1, 2), block("b", 1, 2), block("c", 1, 2), rounds=3)

CASES = {
    "a_limit_that_shrinks_takes_what_is_kept": draft(
        "Rule 5: what the limit lost is given up in weights that the plan keeps; what was loaded ahead of a visit "
        "whose weights are now missing goes as well.",
        _SWEEP,
        device(3),
        keep=[0, 3],
        limit_changes=[(5.5, 2)],
        by_hand="""The plan keeps a: load 0 0-1, load 1 1-2, load 2 2-3, visit 0 1-3, visit 1 3-5; b again is load 4
            5-6. At 5.5 s the one byte less is a, which leaves. So a is missing, and b, in flight for a later visit, is
            waste. Now every visit has a load again, in order, with room for two blocks. Beside visit 2 5-7 comes load
            3 6-7. Beside visit 3 7-9 comes load 4 7-8, beside visit 4 9-11 load 5 9-10, beside visit 5 11-13 load 6
            11-12. Beside visit 6 13-15 comes load 7 13-14, beside visit 7 15-17 load 8 15-16. Then visit 8 17-19.""",
    ),
    "a_limit_that_grows_keeps_more": draft(
        "Rule 5: what the limit gained goes to keeping more weights, evenly spread, the first one first.",
        _SWEEP,
        device(2),
        limit_changes=[(1.5, 3)],
        by_hand="""The plan keeps nothing: load 0 0-1, load 1 1-2. At 1.5 s a byte is gained, enough for one block: a.
            So visit 0 1-3 leaves a behind, and load 2 2-3 fits beside a and b. Next is visit 1 3-5. From then on b and
            c take turns in the other two bytes, each when the one before it has left. With load 4 5-6 comes visit 2
            5-7, with load 5 7-8 visit 3 7-9, then visit 4 9-11. With load 7 11-12 comes visit 5 11-13, with load 8
            13-14 visit 6 13-15. The rest is visit 7 15-17, visit 8 17-19.""",
    ),
    "a_limit_that_grows_leaves_room_for_the_rest": draft(
        "Rule 5: only as much is kept as leaves the rest of the run able to end, though each group's budget has more.",
        stages(
            stage("s", block("a", 1, 1), group="outer"),
            stage("t", block("c", 3, 1), block("b", 1, 1), rounds=2),
            stage("u", block("a", 1, 1), group="outer"),
        ),
        device(3),
        limit_changes=[(0.5, 4)],
        by_hand="""In load 0 0-1 a byte is gained, enough for a in its group, and for b in the other one. But beside
            both c does not fit, so only a is kept after visit 0 1-2. Room for a and 3 bytes: load 1 1-4, visit 1 4-5,
            load 2 5-6, visit 2 6-7, load 3 7-10, visit 3 10-11, load 4 11-12, visit 4 12-13. With what was kept: visit
            5 13-14.""",
    ),
    "keeps_that_take_turns_settle": draft(
        "Rule 5: where a plan keeps weights in turns, under another limit the same ones are kept in every round.",
        _SWEEP,
        device(2),
        keep=[0, 4],
        limit_changes=[(1.5, 3)],
        by_hand="""The plan keeps a after the first round, b after the second: load 0 0-1, load 1 1-2. At 1.5 s two
            bytes could be kept, less the largest block: a alone, after every round. So visit 0 1-3 and visit 3 7-9
            leave a behind, and load 2 2-3 fits beside a and b. b and c take turns: visit 1 3-5, load 4 5-6, visit 2
            5-7, load 5 7-8, visit 4 9-11, load 7 11-12, visit 5 11-13, load 8 13-14. The rest is visit 6 13-15, visit
            7 15-17, visit 8 17-19.""",
    ),
    "keeps_that_take_turns_go_on": draft(
        "Rule 5: under the plan's own limit keeps take turns again, all of the plan's.",
        _SWEEP,
        device(2),
        keep=[0, 4],
        limit_changes=[(1.5, 3), (7.5, 2)],
        by_hand="""As with a limit that stays at 3 until 7.5 s: load 0 0-1, load 1 1-2, visit 0 1-3, load 2 2-3, visit
            1 3-5, load 4 5-6, visit 2 5-7, load 5 7-8 in visit 3 7-9. Then it is the plan's turn to keep b. a, b and c
            are one too many: c is waste, and load 5 9-10 comes again when a has left, not kept. After visit 4 9-11 b
            stays, so a fits when c has left after visit 5 11-13: load 6 13-14, visit 6 14-16. Last are load 8 16-17,
            visit 7 16-18 with what was kept, and visit 8 18-20.""",
    ),
    "a_limit_that_comes_back_restores_the_plan": draft(
        "Rule 5: under the plan's own limit the plan's keeps hold again, from the next visits on.",
        _SWEEP,
        device(3),
        keep=[0, 3],
        limit_changes=[(1.5, 2), (7.5, 3)],
        by_hand="""With load 0 0-1 and load 1 1-2 under way, the limit of 2 takes the keep of a: it leaves after visit
            0 1-3. Two blocks at a time: visit 1 3-5 with load 2 3-4, visit 2 5-7 with load 3 5-6, then load 4 7-8. At
            7.5 s, in visit 3 7-9, the limit is 3 again, and the plan keeps a after it: load 5 8-9 is next. Then come
            visit 4 9-11, visit 5 11-13 with load 7 11-12, visit 6 13-15 with load 8 13-14. The rest is visit 7 15-17
            and visit 8 17-19.""",
    ),
    "a_limit_that_shrinks_takes_what_was_loaded_ahead": draft(
        "Rule 5: where nothing is kept, what was loaded ahead goes until the rest fits, what is needed last first.",
        chain(block("a", 1, 4), block("b", 1, 2), block("c", 1, 2), block("d", 1, 1), rounds=2),
        device(4),
        limit_changes=[(15.5, 2)],
        by_hand="""There is room for all four: load 0 0-1, load 1 1-2, load 2 2-3, load 3 3-4, visit 0 1-5. Each comes
            back when it has left: load 4 5-6, visit 1 5-7, load 5 7-8, visit 2 7-9, load 6 9-10, visit 3 9-10. The
            last is load 7 10-11. Then visit 4 10-14 and visit 5 14-16 run. At 15.5 s there are b, c and d, one too
            many: d leaves, and comes again when b has left: load 7 16-17. The rest is visit 6 16-18, visit 7 18-19.""",
    ),
    "a_load_that_fits_no_more_is_waste": draft(
        "Rule 5: a load in flight that does not fit any more ends as waste, and is made again when it fits.",
        chain(block("a", 1, 2), block("b", 4, 2), rounds=2),
        device(5),
        limit_changes=[(8.5, 4)],
        by_hand="""The first round: load 0 0-1, load 1 1-5, visit 0 1-3, visit 1 5-7. Ahead come load 2 5-6 and load 3
            7-11. At 8.5 s, in visit 2 7-9, a and b have 5 bytes, one too many: b leaves as soon as it has arrived.
            Then it fits: load 3 11-15, visit 3 15-17.""",
    ),
    "a_visit_waits_for_its_workspace": draft(
        "Rules 1 and 5: a visit whose weights are here waits until its workspace fits beside what is held, waste "
        "included.",
        chain(block("a", 1, 1, 1), block("b", 4, 1), block("c", 1, 4), rounds=2),
        device(7),
        limit_changes=[(9.5, 5)],
        by_hand="""The first round: load 0 0-1, load 1 1-5, visit 0 1-2, load 2 5-6, visit 1 5-6, visit 2 6-10. Ahead
            come load 3 6-7 and load 4 7-11: c, a and b have 6 bytes, and a's workspace is the seventh. At 9.5 s b
            becomes waste. At 10 s a is here, but 1 + 4 + 1 do not fit in 5 until the waste leaves: visit 3 11-12.
            Beside a and its workspace b does not fit: load 4 12-16, visit 4 16-17. The rest is load 5 16-17, visit 5
            17-21.""",
    ),
    "a_limit_that_changes_leaves_channels_alone": draft(
        "Rule 5: loads in flight that still fit go on at their pace.",
        chain(block("a", 2, 4), block("b", 2, 1), block("c", 2, 1)),
        device(6, loader={"channels": 2}),
        limit_changes=[(1.5, 4)],
        by_hand="""Two at half rate go on: load 0 0-4, load 1 0-4. With 4 bytes for two blocks c waits for the end of
            visit 0 4-8. Then load 2 8-10 beside visit 1 8-9, and visit 2 10-11.""",
    ),
    "a_limit_below_a_block": draft(
        "Rule 5: under a limit in which a remaining block does not fit alone the run stops; the block is named.",
        chain(block("a", 1, 2), block("b", 3, 2)),
        device(4),
        limit_changes=[(1.5, 2)],
        by_hand="b has 3 bytes, the limit is 2 from 1.5 s on: refused at visit 1.",
    ),
    "a_policy_keeps_more": draft(
        "Rule 5: an online policy may take another plan after a visit; what is here stays, and remaining visits whose "
        "weights neither are here nor will be kept are loaded in order.",
        _SWEEP,
        device(3),
        replans=[Replan(after_visit=2, keep=(3,))],
        by_hand="""Nothing is kept at first: load 0 0-1, load 1 1-2, load 2 2-3, visit 0 1-3, visit 1 3-5, visit 2 5-7.
            Ahead come load 3 3-4 and load 4 5-6. At 7 s the policy decides to keep a after its next visit. So c comes
            again, load 5 7-8, but a does not: visit 3 7-9, visit 4 9-11, load 7 11-12, visit 5 11-13. The rest is load
            8 13-14, visit 6 13-15, visit 7 15-17, visit 8 17-19.""",
    ),
    "a_policy_drops_what_was_kept": draft(
        "Rule 5: weights that the other plan does not keep leave at once, and are loaded again.",
        chain(block("a", 1, 2), block("b", 1, 2), rounds=2),
        device(2),
        keep=[0],
        replans=[Replan(after_visit=0, keep=())],
        by_hand="""The plan keeps a after visit 0 1-3, the policy does not: with load 0 0-1 and load 1 1-2 comes load 2
            3-4. The rest is visit 1 3-5, load 3 5-6, visit 2 5-7, visit 3 7-9.""",
    ),
}
