"""The training scripts of the small model: short runs learn, go on where they stopped, and are published whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import train_classifier
import train_flow
import train_vae
from data import Captions, load_clips, make_spatial_latents
from publish import publish
from tokenizer import train_tokenizer

from cidl_sim.diffusion.model_store import import_checkpoints
from cidl_sim.diffusion.prompt import encode_prompt
from cidl_sim.models.config import OPENSORA_TINY, VideoSettings
from cidl_sim.quality.generate import WholeModel
from cidl_sim.quality.shapes import caption

SIZES = OPENSORA_TINY  # the scripts' own are ten times as slow


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
    train_tokenizer(out / "tokenizer")
    losses = {"spatial": [train_vae.train_spatial(out, steps, 4, 0, SIZES.vae) for steps in (5, 40)]}
    make_spatial_latents(out, 40, 0, SIZES.vae)
    losses["temporal"] = [train_vae.train_temporal(out, steps, 4, 0, SIZES.vae) for steps in (5, 40)]
    losses["flow"] = [train_flow.train_flow(out, steps, 8, 0, SIZES) for steps in (5, 60)]
    return out, losses


@pytest.mark.parametrize("part", ["spatial", "temporal", "flow"])
def test_the_loss_falls(trained, part):
    first, last = trained[1][part]
    assert last < first


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
