import json

import pytest

from cidl_sim.core.errors import WorkloadError
from cidl_sim.core.workload import Block, Stage, Workload, read_workload
from tests.conftest import uniform_workload


def two_stages() -> Workload:
    shared = [Block(name=f"m{i}", kind="merged", weights=f"w{i}", weight_bytes=10) for i in range(2)]
    plain = [Block(name=f"p{i}", kind="plain", weights=f"w{i}", weight_bytes=10) for i in range(2)]
    return Workload(
        name="two",
        stages=[
            Stage(name="merged", group="denoiser", rounds=2, blocks=shared),
            Stage(name="plain", group="denoiser", rounds=3, blocks=plain),
        ],
    )


def test_visits_count_through_stages_rounds_and_blocks():
    visits = two_stages().visits
    assert [v.number for v in visits] == list(range(10))
    assert [(v.stage, v.round, v.position) for v in visits[3:6]] == [(0, 1, 1), (1, 0, 0), (1, 0, 1)]


def test_the_label_of_a_visit_names_its_stage_round_and_block():
    workload = two_stages()
    assert workload.label(workload.visits[7]) == "visit 7 (plain, round 1, p1)"


def test_blocks_that_share_weights_follow_each_other_across_stages():
    workload = two_stages()
    assert workload.next_same_weights[2] == 4
    assert workload.previous_same_weights[4] == 2
    assert workload.previous_same_weights[0] is None
    assert workload.next_same_weights[9] is None


def test_shared_weights_count_once():
    assert two_stages().weights_bytes == 20


def test_group_and_weights_default_to_the_name():
    stage = Stage(name="s", blocks=[Block(name="b", kind="k", weight_bytes=1)])
    assert stage.group == "s"
    assert stage.blocks[0].weights == "b"


def test_a_workload_survives_its_file(tmp_path):
    workload = two_stages()
    workload.write(tmp_path / "w.json")
    assert read_workload(tmp_path / "w.json") == workload
    assert read_workload(tmp_path / "w.json").sha256 == workload.sha256


def test_any_change_of_a_block_changes_the_identity():
    assert uniform_workload(3, 2).sha256 != uniform_workload(3, 2, workspace_bytes=1).sha256


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": "cidl-workload/2"}, "format"),
        ({"stages": []}, "stages"),
        ({"surprise": 1}, "surprise"),
        ({"name": ""}, "name"),
    ],
)
def test_a_wrong_file_is_refused_with_its_field(tmp_path, change, complaint):
    data = {**json.loads(two_stages().to_json()), **change}
    (tmp_path / "w.json").write_text(json.dumps(data))
    with pytest.raises(WorkloadError, match=complaint) as caught:
        read_workload(tmp_path / "w.json")
    assert "w.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "nonsense", "\x00"])
def test_what_is_not_a_workload_is_refused(tmp_path, text):
    (tmp_path / "w.json").write_text(text)
    with pytest.raises(WorkloadError):
        read_workload(tmp_path / "w.json")


def test_duplicate_names_are_refused():
    block = Block(name="b", kind="k", weight_bytes=1)
    with pytest.raises(ValueError, match="duplicate block"):
        Stage(name="s", blocks=[block, block])
    stage = Stage(name="s", blocks=[block])
    with pytest.raises(ValueError, match="duplicate stage"):
        Workload(name="w", stages=[stage, stage])


def test_one_set_of_weights_has_one_size():
    blocks = [Block(name=f"b{i}", kind="k", weights="w", weight_bytes=i) for i in (1, 2)]
    with pytest.raises(ValueError, match="two sizes"):
        Workload(name="w", stages=[Stage(name="s", blocks=blocks)])


def test_negative_sizes_are_refused():
    with pytest.raises(ValueError, match="weight_bytes"):
        Block(name="b", kind="k", weight_bytes=-1)


def test_a_workload_of_absurd_length_is_refused():
    with pytest.raises(ValueError, match="visits"):
        uniform_workload(10, 10**9)


def test_a_changed_copy_carries_nothing_over_that_was_worked_out_from_the_original():
    workload = two_stages()
    before = (workload.sha256, len(workload.visits), workload.weights_bytes)
    changed = workload.model_copy(update={"stages": workload.stages[:1]})
    assert (len(changed.visits), changed.sha256) == (4, Workload.model_validate(changed.model_dump()).sha256)
    assert changed.sha256 != workload.sha256
    assert (workload.sha256, len(workload.visits), workload.weights_bytes) == before
