"""The trained weights that the package ships: whole, small, and they show what a prompt says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors import safe_open

from cidl_sim.core.errors import MachineError
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.model_store import build_random_store, import_checkpoints
from cidl_sim.pipelines.open_sora import pretrained
from cidl_sim.pipelines.open_sora.pretrained import CLASSIFIER, FOLDER, pretrained_folders
from cidl_sim.pipelines.open_sora.settings import OPENSORA_SHAPES, VideoSettings
from cidl_sim.pipelines.open_sora.whole_model import WholeModel
from cidl_sim.quality.attributes import attribute_scores, measure_clip
from cidl_sim.quality.frechet import as_clips, labels_of, load_classifier
from cidl_sim.quality.shapes import caption, random_scene, render, seen_combinations
from tests.test_cli import answer_of

SETTINGS = VideoSettings(height=48, width=48, frames=17, steps=30)


def test_all_files_together_are_at_most_20_mb():
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 20e6


def test_weights_are_in_fp16():
    for file in FOLDER.rglob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            assert {tensors.get_tensor(name).dtype for name in tensors.keys()} == {torch.float16}  # noqa: SIM118


def test_a_missing_model_is_the_environments_fault(monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    with pytest.raises(MachineError, match="the trained model is not installed"):
        pretrained_folders()


@torch.no_grad()
def test_videos_show_most_of_what_their_prompts_say():
    random = np.random.default_rng(5)
    scenes = [random_scene(random, 1, seen_combinations()) for _ in range(8)]
    model = WholeModel(OPENSORA_SHAPES, pretrained_folders())
    texts = torch.cat([model.text(caption(scene)) for scene in scenes])
    run = model.trajectory(texts, range(len(scenes)), SETTINGS)
    videos = model.decode(run.after(SETTINGS.steps), SETTINGS.frames)
    right = [attribute_scores(scene, measure_clip(video)) for scene, video in zip(scenes, videos, strict=True)]
    # By chance a quarter. experiments/results/quality_accuracy.md has the figures of many prompts.
    assert np.mean([[row[name] for name in ("colour", "shape", "background")] for row in right]) > 0.85


@torch.no_grad()
def test_the_classifier_knows_drawn_clips():
    random = np.random.default_rng(6)
    scenes = [random_scene(random, 1 + i % 2, seen_combinations()) for i in range(16)]
    classifier = load_classifier(FOLDER / CLASSIFIER)
    clips = as_clips(np.stack([render(scene) for scene in scenes]))
    labels = torch.stack([labels_of(scene) for scene in scenes])
    assert ((classifier(clips) > 0) == labels.bool()).float().mean() > 0.9


def test_a_build_of_this_size_has_the_trained_weights_unless_random_ones_are_asked_for(tmp_path):
    trained = import_checkpoints(tmp_path / "imported", OPENSORA_SHAPES, "fp32", pretrained_folders())
    random = build_random_store(tmp_path / "random", OPENSORA_SHAPES, "fp32", seed=0)
    answer_of("model", "build", "--store", tmp_path / "built", "--size", "shapes")
    answer_of("model", "build", "--store", tmp_path / "asked", "--size", "shapes", "--random", "0")
    assert BlockStore.open(tmp_path / "built").index.blocks == trained.index.blocks
    assert BlockStore.open(tmp_path / "asked").index.blocks == random.index.blocks
