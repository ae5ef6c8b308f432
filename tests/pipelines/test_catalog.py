import pytest

from cidl_sim.core.errors import WorkloadError
from cidl_sim.models.sizes import spatial_chunks, temporal_chunks
from cidl_sim.pipelines.catalog import (
    canonical_name,
    find_workload,
    measure_workload,
    models,
    parse_name,
    pipelines,
    shipped,
)
from cidl_sim.pipelines.open_sora.family import OPEN_SORA
from cidl_sim.pipelines.open_sora.settings import VideoSettings


@pytest.mark.parametrize("name", shipped())
def test_the_shipped_files_are_what_the_models_give(name):
    # If this fails: .venv/bin/python experiments/write_generated_files.py
    assert find_workload(name) == measure_workload(*parse_name(name))


def test_names_and_settings_are_two_ways_to_say_the_same():
    sizes, settings = parse_name("opensora-v1.2-192x256-17f-20s-bf16-lpl9-tdtm5")
    assert sizes.name == "opensora-v1.2"
    expected = VideoSettings(height=192, width=256, frames=17, steps=20, dtype="bf16", lpl="9", tdtm=5)
    assert settings == expected
    assert canonical_name(sizes, settings) == "opensora-v1.2-192x256-17f-20s-bf16-lpl9-tdtm5"


def test_parts_of_a_name_may_be_left_out():
    assert parse_name("opensora-v1.2")[1] == VideoSettings()
    assert parse_name("opensora-v1.2-lpldynamic")[1].lpl == "dynamic"


@pytest.mark.parametrize(
    "name",
    [
        "nonsense",
        "opensora-v1.2-",
        "opensora-v1.2-256",
        "opensora-v1.2-17f-17f",
        "opensora-v1.2-8x100",
        "opensora-v1.2-0f",
        "opensora-v1.2-30s-lpl30",
        "opensora-v1.2-tdtm31",
        "opensora-v1.2x",
    ],
)
def test_a_name_that_makes_no_sense_is_refused_in_one_line(name):
    with pytest.raises(WorkloadError) as caught:
        find_workload(name)
    assert "\n" not in str(caught.value)


def test_the_sizes_are_the_published_ones():
    workload = find_workload("opensora-v1.2-256x256-68f")
    text_encoder, denoiser, temporal, spatial = workload.stages
    # Of the token embedding a run reads the rows of one prompt.
    unread = (32_128 - 300) * 4096
    assert sum(b.weight_bytes for b in text_encoder.blocks) == 4 * (4_762_310_656 - unread)
    assert text_encoder.blocks[0].weight_bytes == 4 * 300 * 4096
    assert sum(b.weight_bytes for b in denoiser.blocks) == 4 * 1_208_872_772
    scale_and_shift = 8
    decoder = sum(b.weight_bytes for stage in (temporal, spatial) for b in stage.blocks)
    assert decoder == 4 * (214_756_143 + scale_and_shift)
    assert text_encoder.blocks[5].weight_bytes == 771_784_704
    assert denoiser.blocks[5].weight_bytes == 170_045_568


def test_the_block_boundaries_are_those_of_the_reference_app():
    workload = find_workload("opensora-v1.2-256x256-68f")
    assert [(len(s.blocks), s.rounds) for s in workload.stages] == [(26, 1), (30, 30), (9, 4), (9, 17)]
    assert sum(len(s.blocks) * s.rounds for s in workload.stages if s.group == "decoder") == 189


@pytest.mark.parametrize(
    ("name", "group", "tera"),
    [
        ("opensora-v1.2-256x256-68f", "denoiser", 21.85),
        ("opensora-v1.2-192x192-68f", "denoiser", 12.21),
        ("opensora-v1.2-256x256-68f", "text_encoder", 2.81),
    ],
)
def test_the_arithmetic_of_a_round_is_the_published_one(name, group, tera):
    stage = next(s for s in find_workload(name).stages if s.group == group)
    assert sum(b.flops for b in stage.blocks) / 1e12 == pytest.approx(tera, rel=0.01)


def test_merging_tokens_saves_what_the_literature_derives():
    workload = find_workload("opensora-v1.2-256x256-68f-lpl15-tdtm10")
    merged, plain = (s for s in workload.stages if s.group == "denoiser")
    ratio = sum(b.flops for b in plain.blocks) / sum(b.flops for b in merged.blocks)
    assert 1.27 <= ratio <= 1.30
    assert [b.weights for b in merged.blocks] == [b.weights for b in plain.blocks]
    assert (merged.rounds, plain.rounds) == (10, 6)


def test_half_the_bytes_in_bf16():
    full, half = find_workload("opensora-v1.2-256x256-68f"), find_workload("opensora-v1.2-256x256-68f-bf16")
    assert full.weights_bytes == 2 * half.weights_bytes


@pytest.mark.parametrize("frames", range(1, 75))
def test_every_number_of_frames_is_cut_into_pieces_that_add_up(frames):
    temporal, spatial = temporal_chunks(frames), spatial_chunks(frames)
    assert sum(c.frames * c.rounds for c in temporal) == frames
    assert sum(c.frames * c.rounds for c in spatial) == frames
    latent_frames = VideoSettings(frames=frames).latent_shape[0]
    assert sum(c.latent_frames * c.rounds for c in temporal) == latent_frames
    assert all(c.latent_frames * 4 >= c.frames for c in temporal)


def test_the_small_model_suits_the_main_job():
    workload = find_workload("opensora-small-48x48-lpl15-tdtm8")
    blocks = {b.weights: b.weight_bytes for s in workload.stages for b in s.blocks}
    assert workload.weights_bytes >= 400e6
    assert len(blocks) >= 20
    assert max(blocks.values()) <= 0.15 * workload.weights_bytes
    assert set(OPEN_SORA.models) == {"opensora-v1.2", "opensora-small", "opensora-shapes", "opensora-tiny"}
    assert set(models()) == {name for pipeline in pipelines().values() for name in pipeline.models}
