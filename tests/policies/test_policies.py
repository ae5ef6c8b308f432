"""Every policy against the reference table, its own rule, and the invariants of plans."""

from __future__ import annotations

import pytest
from hypothesis import given

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.feasibility import check_plan
from cidl_sim.core.plan import Gate, Load, Plan
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.devices.catalog import find_device
from cidl_sim.pipelines.catalog import find_workload
from cidl_sim.policies.catalog import POLICIES, STREAMING, PolicyError, make_plan
from cidl_sim.policies.on_device_sora import repeated_body, retained_blocks
from cidl_sim.policies.retained import even_positions
from cidl_sim.simulator.engine import makespan_s, simulate
from tests.conftest import analytic_device, uniform_device, uniform_workload
from tests.core.strategies import cases

# Blocks, rounds, slots, load, execute -> nothing kept, best prefix, best even spread.
REFERENCE = [
    ((8, 4, 4, 10, 5), (325, 265, 265)),
    ((8, 4, 4, 10, 10), (330, 330, 330)),
    ((10, 4, 5, 12, 8), (488, 412, 380)),
    ((12, 4, 6, 12, 8), (584, 484, 440)),
    ((28, 30, 10, 12, 8), (10088, 8348, 7304)),
    ((28, 30, 16, 12, 8), (10088, 7068, 6840)),
]


@pytest.mark.parametrize(("case", "expected"), REFERENCE)
def test_the_reference_table_of_uniform_cases(case, expected):
    blocks, rounds, slots, load_s, exec_s = case
    workload, device = uniform_workload(blocks, rounds), uniform_device(slots, load_s, exec_s)
    made = [makespan_s(workload, device, make_plan(p, workload, device)) for p in ("prefix:0", "prefix", "spread")]
    assert made == list(expected)


def test_the_best_prefix_of_the_last_case_keeps_nine():
    workload, device = uniform_workload(28, 30), uniform_device(16, 12, 8)
    assert make_plan("prefix", workload, device).policy == "prefix:9"
    assert makespan_s(workload, device, make_plan("prefix:14", workload, device)) == 8184


@given(cases())
def test_every_policy_gives_a_plan_that_fits(case):
    workload, device, _ = case
    for policy in POLICIES:
        try:
            plan = make_plan(policy, workload, device)
        except InfeasibleError:
            # The app's rule looks at the repeated blocks only; parts that need more would get it killed.
            # Nor need a whole network fit.
            assert policy in ("on_device_sora", "whole_model")
            continue
        check_plan(workload, device, plan)
        assert plan.workload_sha256 == workload.sha256


@given(cases(plain=True))
def test_the_best_retained_sets_are_never_worse_than_keeping_nothing(case):
    workload, device, _ = case
    nothing = makespan_s(workload, device, make_plan("prefix:0", workload, device))
    for policy in ("prefix", "spread", "rotating"):
        assert makespan_s(workload, device, make_plan(policy, workload, device)) <= nothing


def test_sequential_never_overlaps():
    workload, device = uniform_workload(4, 3), uniform_device(4, 2, 3)
    trace = simulate(workload, device, make_plan("sequential", workload, device))
    assert trace.overlap_s == 0
    assert trace.makespan_s == 4 * 3 * 5


def test_next_block_holds_two_blocks_at_the_most():
    workload, device = uniform_workload(4, 3), uniform_device(4, 1, 3)
    trace = simulate(workload, device, make_plan("next_block", workload, device))
    assert trace.peak_resident_bytes == 2
    assert trace.makespan_s == 1 + 4 * 3 * 3


def test_spread_keeps_blocks_at_even_distances():
    assert even_positions(4, 28) == {0, 7, 14, 21}
    assert even_positions(40, 5) == {0, 1, 2, 3, 4}
    assert even_positions(0, 5) == set()


@pytest.mark.parametrize(("blocks", "kept"), [(28, 18), (28, 8), (9, 3), (5, 4), (5, 9), (4, 0)])
def test_a_rotating_set_holds_as_many_blocks_at_any_time_with_fewer_loads_than_a_fixed_one(blocks, kept):
    rounds = 30
    workload = uniform_workload(blocks, rounds)
    keep = set(make_plan(f"rotating:{kept}", workload, uniform_device(blocks, 1, 1)).keep)
    # Beside visit v lie the blocks that were visited within the n - 1 visits before it and are kept.
    beside = [sum(1 for v in range(now - blocks + 1, now) if v in keep) for now in range(blocks, len(workload.visits))]
    assert max(beside) <= kept
    loads = blocks * rounds - len(keep)
    assert loads == pytest.approx(blocks + (rounds - 1) * blocks * max(0, blocks - 1 - kept) / (blocks - 1), abs=1)


def test_a_rotating_set_beats_every_fixed_one_where_loads_are_long():
    workload, device = uniform_workload(28, 30), uniform_device(20, 24, 8)
    found = {policy: makespan_s(workload, device, make_plan(policy, workload, device)) for policy in STREAMING}
    assert found["rotating"] == min(found.values()) == 7176
    assert found["spread"] == 7640


def test_lru_on_a_cyclic_sweep_has_no_hits():
    workload, device = uniform_workload(8, 4), uniform_device(7, 1, 1)
    assert make_plan("lru", workload, device).keep == ()


def test_lru_keeps_everything_that_fits():
    workload, device = uniform_workload(8, 4), uniform_device(8, 1, 1)
    assert len(make_plan("lru", workload, device).loads) == 8


def test_lru_keeps_what_is_used_again_soon():
    blocks = [Block(name=n, kind="b", weight_bytes=1, flops=1) for n in "abc"]
    stages = [Stage(name="often", rounds=3, blocks=blocks[:1]), Stage(name="once", blocks=blocks)]
    workload = Workload(name="w", stages=stages)
    plan = make_plan("lru", workload, analytic_device(2))
    assert plan.keep == (0, 1, 2)


# The reference app


def loads_by_visit(plan: Plan) -> dict[int, Load]:
    return {load.visit: load for load in plan.loads}


def app_workload(rounds: int = 3, merged: int = 0) -> Workload:
    """T5 with 2 blocks, STDiT with 4 pairs between two parts, a decoder of 2 parts in 2 rounds."""

    def blocks(*kinds: str) -> list[Block]:
        return [
            Block(name=f"{i}", kind=kind, weights=f"{kind.split('!')[0]}{i}", weight_bytes=10, flops=1)
            for i, kind in enumerate(kinds)
        ]

    stages = [Stage(name="text_encoder", blocks=blocks("emb", "t5", "t5", "norm"))]
    if merged:
        kinds = ("part1", *["pair!merged"] * 4, "part2")
        stages.append(Stage(name="merged", group="denoiser", rounds=merged, blocks=blocks(*kinds)))
    stages.append(Stage(name="denoiser", rounds=rounds, blocks=blocks("part1", *["pair"] * 4, "part2")))
    stages.append(Stage(name="decoder", rounds=2, blocks=blocks("v1", "v2")))
    return Workload(name="app", stages=stages)


def test_the_app_prefetches_the_next_text_block_and_keeps_none():
    plan = make_plan("on_device_sora", app_workload(), analytic_device(30))
    loads = loads_by_visit(plan)
    assert loads[0].gate is None
    assert [loads[v].gate for v in (1, 2, 3)] == [Gate(visit=v - 1, edge="start") for v in (1, 2, 3)]


def test_the_app_overlaps_nothing_in_the_first_denoising_step():
    loads = loads_by_visit(make_plan("on_device_sora", app_workload(), analytic_device(30)))
    assert all(loads[v].gate == Gate(visit=v - 1, edge="end") for v in range(4, 10))


def test_the_app_prefetches_pairs_from_the_second_step_on_but_never_the_parts():
    loads = loads_by_visit(make_plan("on_device_sora", app_workload(), analytic_device(30)))
    edges = [loads[v].gate.edge for v in range(10, 16)]
    # part 1, first pair (part 1 runs alone), three prefetched pairs, part 2
    assert edges == ["end", "end", "start", "start", "start", "end"]


def test_the_app_keeps_a_prefix_of_the_pairs_within_a_stage():
    # need = 10, so d = ceil((limit - 10 - 20) / 10) - 1 = 2 at a limit of 55.
    plan = make_plan("on_device_sora", app_workload(), analytic_device(55))
    assert plan.keep == (5, 6, 11, 12)
    trace = simulate(app_workload(), analytic_device(55), plan)
    assert trace.peak_resident_bytes <= 55


def test_the_app_drops_everything_at_the_switch_from_merged_to_plain_blocks():
    workload = app_workload(rounds=2, merged=2)
    plan = make_plan("on_device_sora", workload, analytic_device(55))
    assert plan.keep == (5, 6, 17, 18)
    loads = loads_by_visit(plan)
    assert loads[17].gate == Gate(visit=16, edge="end")
    # The plain stage's first step is not the first denoising step: its pairs are prefetched.
    assert loads[18].gate == Gate(visit=17, edge="start")


def test_the_app_loads_the_decoder_part_by_part():
    loads = loads_by_visit(make_plan("on_device_sora", app_workload(), analytic_device(55)))
    decoder = range(22, 26)
    assert all(loads[v].gate == Gate(visit=v - 1, edge="end") for v in decoder)


@pytest.mark.parametrize(
    ("room", "expected"),
    [(30, 0), (40, 0), (41, 1), (50, 1), (51, 2), (1000, 28)],
)
def test_the_reserve_rule_is_strict(room, expected):
    # available = room, need = 10: retained while remaining - 10 > 10 + 20.
    block = Block(name="b", kind="b", weight_bytes=10)
    assert retained_blocks(analytic_device(room), [block] * 28) == expected
    remaining, d = room, 0
    while d < 28 and remaining - 10 > 10 + 20:
        remaining, d = remaining - 10, d + 1
    assert d == expected


def test_parts_of_their_own_kind_are_not_part_of_the_body():
    assert repeated_body(app_workload().stages[1]) == range(1, 5)
    assert repeated_body(uniform_workload(5, 2).stages[0]) == range(5)
    distinct = Stage(name="s", blocks=[Block(name=n, kind=n, weight_bytes=1) for n in "abc"])
    assert repeated_body(distinct) == range(3)


def test_a_uniform_sweep_by_the_app_takes_what_the_reference_says():
    # 28 blocks, 30 rounds, 12 and 8 s: 8680 with 14 kept and no prefetch in the first round.
    workload, device = uniform_workload(28, 30), uniform_device(18, 12, 8)
    plan = make_plan("on_device_sora", workload, device)
    assert len(plan.keep) == 14 * 29
    assert makespan_s(workload, device, plan) == 8680


# The registry


@pytest.mark.parametrize(
    "policy", ["", "nonsense", "lru:3", "prefix:x", "prefix:-1", "spread:a=b", "prefix:denoiser=-1"]
)
def test_a_policy_that_makes_no_sense_is_refused(policy):
    with pytest.raises(PolicyError) as caught:
        make_plan(policy, uniform_workload(2, 2), uniform_device(2, 1, 1))
    assert "\n" not in str(caught.value)


def test_a_number_that_does_not_fit_says_so():
    with pytest.raises(InfeasibleError, match="prefix:3 does not fit"):
        make_plan("prefix:3", uniform_workload(4, 2), uniform_device(3, 1, 1))


def test_numbers_can_be_given_by_group():
    workload = app_workload()
    plan = make_plan("prefix:denoiser=1,decoder=2", workload, analytic_device(100))
    assert plan.policy == "prefix:denoiser=1,decoder=2"
    assert plan.keep == (4, 10, 22, 23)
    with pytest.raises(InfeasibleError, match="nothing to retain in text_encoder"):
        make_plan("prefix:text_encoder=1", workload, analytic_device(100))


@pytest.mark.parametrize("policy", STREAMING)
def test_every_policy_plans_open_sora_for_a_phone(policy):
    workload, device = find_workload("opensora-v1.2-256x256-68f-lpl15-tdtm10"), find_device("iphone-15-pro")
    trace = simulate(workload, device, make_plan(policy, workload, device))
    assert trace.peak_resident_bytes <= device.memory_limit_bytes


def test_a_device_smaller_than_a_block_is_refused_by_every_policy():
    device = DeviceProfile(name="d", memory_limit_bytes=4)
    for policy in POLICIES:
        with pytest.raises(InfeasibleError, match="too small for any plan"):
            make_plan(policy, uniform_workload(2, 2, weight_bytes=5), device)


def networks() -> Workload:
    """Two networks; the first runs in two stages that share weights."""

    def block(name: str, weights: str = "") -> Block:
        return Block(name=name, kind=name, weights=weights or name, weight_bytes=5, workspace_bytes=2)

    return Workload(
        name="networks",
        stages=(
            Stage(name="merged", group="g", rounds=2, blocks=(block("a1", "a"), block("b1", "b"))),
            Stage(name="plain", group="g", rounds=2, blocks=(block("a"), block("b"))),
            Stage(name="decoder", group="h", rounds=3, blocks=(block("c"), block("d"), block("e"))),
        ),
    )


def test_whole_model_loads_a_network_once_the_one_before_it_is_done_with():
    workload, device = networks(), analytic_device(30)
    plan = make_plan("whole_model", workload, device)
    assert [(load.visit, load.gate and (load.gate.visit, load.gate.edge)) for load in plan.loads] == [
        (0, None),
        (1, None),
        (8, (7, "end")),
        (9, (7, "end")),
        (10, (7, "end")),
    ]
    assert plan.keep == (0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13)
    trace = simulate(workload, device, plan)
    assert trace.peak_resident_bytes == 3 * 5 + 2


def test_whole_model_does_not_fit_where_a_network_does_not():
    with pytest.raises(InfeasibleError):
        make_plan("whole_model", networks(), analytic_device(16))
    assert make_plan("next_block", networks(), analytic_device(16)).policy == "next_block"
