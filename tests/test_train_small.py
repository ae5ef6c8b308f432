"""The training scripts of the small model: short runs learn, go on where they stopped, and are published whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import train_classifier
import train_flow
import train_vae
from data import Captions, batches, load_clips, make_spatial_latents
from maps import CHANNELS, WORD_CHANNELS, token_maps, word_maps
from network import TextToLatent
from publish import publish
from tokenizer import train_tokenizer

from cidl_sim.pipelines.model_store import import_checkpoints
from cidl_sim.pipelines.open_sora.prompt import encode_prompt
from cidl_sim.pipelines.open_sora.settings import OPENSORA_TINY, VideoSettings
from cidl_sim.pipelines.open_sora.whole_model import WholeModel
from cidl_sim.quality.shapes import BACKGROUNDS, caption, random_scene, render, seen_combinations

pytestmark = pytest.mark.slow

# The scripts' own are ten times as slow, and each pair more is more matrices to make orthogonal in every step.
SIZES = OPENSORA_TINY.model_copy(update={"stdit": OPENSORA_TINY.stdit.model_copy(update={"depth": 1})})


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Blocks this small only lose by threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(one_thread, tmp_path_factory) -> tuple[Path, dict[str, list[float]]]:
    """A folder after a few steps of everything, and the first and last losses."""
    out = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    train_tokenizer(out / "tokenizer", scenes_of_each=200)
    losses = {"spatial": [train_vae.train_spatial(out, steps, 4, 0, SIZES.vae) for steps in (5, 15)]}
    make_spatial_latents(out, 20, 0, SIZES.vae)
    losses["temporal"] = [train_vae.train_temporal(out, steps, 4, 0, SIZES.vae) for steps in (5, 15)]
    losses["flow"] = [train_flow.train_flow(out, steps, 4, 0, SIZES) for steps in (5, 50)]  # a figure is logged then
    return out, losses


@pytest.mark.parametrize("part", ["spatial", "temporal", "flow"])
def test_the_loss_falls(trained, part):
    first, last = trained[1][part]
    assert last < 0.9 * first


def test_the_text_encoder_learns_which_words_go_together(trained):
    out, _ = trained
    clips, tokens = load_clips(out, 0, SIZES.vae), Captions(out / "tokenizer")
    torch.manual_seed(1)
    model = TextToLatent(SIZES)
    first = train_flow.train_text(model, batches(clips, tokens, 8, 1), 1)
    assert train_flow.train_text(model, batches(clips, tokens, 8, 1), 80) < first / 2


def test_the_classifier_learns(tmp_path):
    first = train_classifier.train_classifier(tmp_path, 5, 4, 0)
    assert train_classifier.train_classifier(tmp_path, 30, 4, 0) < first - 0.01


def test_a_run_goes_on_where_it_stopped(tmp_path):
    train_classifier.train_classifier(tmp_path, 3, 2, 0)
    before = torch.load(tmp_path / "classifier.pt", weights_only=True)
    train_classifier.train_classifier(tmp_path, 3, 2, 0)  # nothing is left to do
    same = torch.load(tmp_path / "classifier.pt", weights_only=True)
    assert all(torch.equal(tensor, same["module"][name]) for name, tensor in before["module"].items())
    train_classifier.train_classifier(tmp_path, 5, 2, 0)
    assert torch.load(tmp_path / "classifier.pt", weights_only=True)["step"] == 5


def test_captions_are_tokenized_as_the_pipeline_does(trained):
    out, _ = trained
    captions = Captions(out / "tokenizer")
    for clips in load_clips(out, 0, SIZES.vae):
        for template in ((True, True, True), (False, True, True), (False, False, False)):
            ids = captions.ids(clips.scenes[:3], template)
            for scene, fast in zip(clips.scenes, ids, strict=False):
                size, speed, background = template
                prompt = caption(scene, size=size, speed=speed, background=background)
                slow, mask = encode_prompt(prompt, SIZES.text_encoder_tokens, out / "tokenizer")
                assert slow[0, : int(mask.sum())].tolist() == fast.tolist()


def test_what_is_published_is_read_by_the_pipeline_and_by_the_evaluation(trained, tmp_path):
    out, _ = trained
    publish(out, tmp_path / "published", 0, SIZES)
    folders = {part: tmp_path / "published" / part for part in ("t5", "stdit", "vae")}
    store = import_checkpoints(tmp_path / "store", SIZES, "fp16", folders)
    assert store.index.name == SIZES.name
    model = WholeModel(SIZES, folders)
    text = model.text("a small red circle moves left slowly on a black background")
    settings = VideoSettings(height=48, width=48, frames=17, steps=2)
    run = model.trajectory(text, [1], settings)
    video = model.decode(run.after(2), 17)[0]
    assert video.shape == (17, 48, 48, 3)


@pytest.mark.parametrize(("side", "objects"), [(48, 1), (64, 2)])
def test_maps_say_which_tokens_objects_cover(side, objects):
    random = np.random.default_rng(0)
    scenes = [random_scene(random, objects, seen_combinations()) for _ in range(20)]
    cells = side // 16
    maps = token_maps(scenes, side).float()
    assert maps.shape == (len(scenes), 5 * cells * cells, CHANNELS)
    for scene, rows in zip(scenes, maps, strict=True):
        first = render(scene, height=side, width=side)[0].astype(float)
        drawn = np.abs(first - np.array(BACKGROUNDS[scene.background])).sum(axis=-1) > 60
        part = drawn.reshape(cells, 16, cells, 16).mean(axis=(1, 3)).ravel()
        said = rows[: cells * cells, 0].numpy()
        # Discs stand for all shapes; a cross covers two thirds of one.
        assert np.corrcoef(part, said)[0, 1] > 0.85
        # What is not covered is background, and each object has one of five kinds of attributes.
        torch.testing.assert_close(rows[:, 1:-4].sum(dim=1), 5 * rows[:, 0], atol=0.02, rtol=0)
        torch.testing.assert_close(rows[:, -4:].sum(dim=1), 1 - rows[:, 0], atol=0.01, rtol=0)


def test_words_are_asked_for_what_their_phrase_says():
    maps = word_maps(["a red circle moves up and a blue cross moves down on a gray background"])[0]
    assert maps.shape == (15, WORD_CHANNELS)
    first, second, ground = maps[:5], maps[5:11], maps[11:]
    for part, words in ((first, 3), (second, 3), (ground, 1)):
        assert (part == part[0]).all()
        assert part[0].sum() == words + 1
    assert not (first[0] * second[0]).any()
    assert not (second[0] * ground[0]).any()


def test_a_caption_without_background_has_no_part_for_it():
    maps = word_maps(["a red circle moves up"])[0]
    assert (maps == maps[0]).all()
    assert maps[0].sum() == 4
