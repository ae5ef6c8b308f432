"""FVD and CLIP with networks from a user's folder; here small random ones stand for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cidl_sim.core.errors import InputError
from cidl_sim.quality.networks import CLIP_FOLDER, I3D_FILE, find_clip, find_i3d, find_networks, i3d_features

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 16,
}


class MeanColours(torch.nn.Module):
    """Called as I3D is; its features are the mean colours."""

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert rescale
        assert resize
        assert return_features
        return (x / 255 * 2 - 1).mean(dim=(2, 3, 4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("networks")
    torch.jit.script(MeanColours()).save(str(root / I3D_FILE))
    torch.manual_seed(0)
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        text_config={**SMALL, "vocab_size": 30, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        vision_config={**SMALL, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    clip = root / CLIP_FOLDER
    CLIPModel(config).save_pretrained(clip)
    pieces = ["<|startoftext|>", "<|endoftext|>", *"abcdefghijklm", *(f"{c}</w>" for c in "abcdefghijklm")]
    (clip / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (clip / "merges.txt").write_text("#version: 0.2\n")
    (clip / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    return root


def video(colour: tuple[int, int, int], frames: int = 9, height: int = 20, width: int = 28) -> np.ndarray:
    return np.full((frames, height, width, 3), colour, dtype=np.uint8)


def test_i3d_is_called_with_videos_in_0_to_255(folder):
    features = i3d_features([video((255, 0, 0)), video((0, 255, 0))], find_i3d(folder))
    np.testing.assert_allclose(features, [[1, -1, -1], [-1, 1, -1]], atol=1e-6)


def test_i3d_needs_nine_frames(folder):
    with pytest.raises(ValueError, match="9 frames, the video has 8"):
        i3d_features([video((0, 0, 0), frames=8)], find_i3d(folder))


class NotI3D(torch.nn.Module):
    """Takes a video only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3, 4))


def test_a_network_that_is_not_called_as_i3d_is_told(tmp_path):
    torch.jit.script(NotI3D()).save(str(tmp_path / I3D_FILE))
    with pytest.raises(ValueError, match="cannot be called as I3D is"):
        i3d_features([video((0, 0, 0))], find_i3d(tmp_path))


def test_clip_similarity_is_a_cosine_that_depends_on_both(folder):
    clip = find_clip(folder)
    assert clip is not None
    one = clip.similarity(video((255, 0, 0)), "a bad face")
    assert -1 <= one <= 1
    assert one == pytest.approx(clip.similarity(video((255, 0, 0), frames=12), "a bad face"), abs=1e-5)
    assert one != pytest.approx(clip.similarity(video((0, 0, 255)), "a bad face"), abs=1e-5)
    assert one != pytest.approx(clip.similarity(video((255, 0, 0)), "hid"), abs=1e-5)


def test_an_empty_folder_holds_no_network(tmp_path):
    assert find_i3d(tmp_path) is None
    assert find_clip(tmp_path) is None


def test_a_folder_without_any_network_is_an_error(folder, tmp_path):
    with pytest.raises(InputError, match=r"neither i3d_torchscript\.pt nor clip/ is there"):
        find_networks(tmp_path)
    assert find_networks(folder).i3d is not None
    assert find_networks(folder).clip is not None


def test_damaged_networks_are_one_clear_line(tmp_path):
    (tmp_path / I3D_FILE).write_bytes(b"nothing")
    (tmp_path / CLIP_FOLDER).mkdir()
    with pytest.raises(InputError, match="not a TorchScript module"):
        find_i3d(tmp_path)
    with pytest.raises(InputError, match="not a CLIP model"):
        find_clip(tmp_path)
