"""FVD and CLIP similarity with networks that the user has: nothing is downloaded, none comes with the package.

The folder holds one or both of

- `i3d_torchscript.pt`: I3D trained on Kinetics-400 as TorchScript, as FVD is usually computed with in PyTorch; called
  with videos (B, 3, frames, height, width) in 0..255 and `rescale`, `resize`, `return_features`;
- `clip/`: a CLIP model and its tokenizer as the transformers library saves them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cidl_sim.core.errors import InputError
from cidl_sim.quality.shapes import Frames

I3D_FILE = "i3d_torchscript.pt"
CLIP_FOLDER = "clip"
# I3D's last pooling spans what is left of the frames; shorter videos leave it nothing.
LEAST_FRAMES = 9


@dataclass(frozen=True)
class ClipScorer:
    """CLIP: how much the frames of a video look like what a prompt says."""

    model: Any
    tokenizer: Any
    processor: Any

    @torch.no_grad()
    def similarity(self, video: Frames, prompt: str) -> float:
        """Mean cosine between the prompt's embedding and those of the frames (frames, height, width, 3), 8-bit RGB."""
        pixels = self.processor(list(video), return_tensors="pt").pixel_values
        images = self.model.get_image_features(pixel_values=pixels)
        tokens = self.tokenizer([prompt], return_tensors="pt", truncation=True)
        words = self.model.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return float(F.cosine_similarity(_embedding(images), _embedding(words), dim=-1).mean())


@dataclass(frozen=True)
class Networks:
    """What a user's folder holds."""

    i3d: Any | None = None
    clip: ClipScorer | None = None


def find_networks(folder: Path) -> Networks:
    """The networks of the folder. InputError if it holds none, or one that cannot be read."""
    found = Networks(find_i3d(folder), find_clip(folder))
    if found == Networks():
        raise InputError(f"{folder}: neither {I3D_FILE} nor {CLIP_FOLDER}/ is there")
    return found


def find_i3d(folder: Path) -> Any | None:
    """The I3D network of the folder, None if it holds none. InputError if it cannot be read."""
    file = folder / I3D_FILE
    if not file.is_file():
        return None
    try:
        return torch.jit.load(file, map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except RuntimeError as problem:
        raise InputError(f"{file}: not a TorchScript module ({str(problem).splitlines()[0]})") from None


def find_clip(folder: Path) -> ClipScorer | None:
    """The CLIP model of the folder, None if it holds none. InputError if it cannot be read."""
    if not (folder / CLIP_FOLDER).is_dir():
        return None
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    try:
        model = CLIPModel.from_pretrained(folder / CLIP_FOLDER, local_files_only=True)
        tokenizer = CLIPTokenizer.from_pretrained(folder / CLIP_FOLDER, local_files_only=True)
    except (OSError, ValueError) as problem:
        raise InputError(f"{folder / CLIP_FOLDER}: not a CLIP model ({str(problem).splitlines()[0]})") from None
    side = model.config.vision_config.image_size
    processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return ClipScorer(model.eval(), tokenizer, processor)


@torch.no_grad()
def i3d_features(videos: Sequence[Frames], i3d: Any) -> NDArray[np.float64]:
    """Features of videos (frames, height, width, 3) in 8-bit RGB: (number, 400).

    ValueError below 9 frames, and for a network that is not called as I3D is.
    """
    rows = []
    for video in videos:
        if len(video) < LEAST_FRAMES:
            raise ValueError(f"I3D needs {LEAST_FRAMES} frames, the video has {len(video)}")
        clip = torch.from_numpy(video).float().permute(3, 0, 1, 2)[None]
        try:
            features: Tensor = i3d(clip, rescale=True, resize=True, return_features=True)
        except (RuntimeError, TypeError) as problem:
            raise ValueError(f"{I3D_FILE} cannot be called as I3D is: {str(problem).strip().splitlines()[0]}") from None
        rows.append(features.flatten(1))
    return torch.cat(rows).double().numpy()


def _embedding(output: Any) -> Tensor:
    """Newer versions of the library wrap the embedding."""
    embedding: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return embedding
