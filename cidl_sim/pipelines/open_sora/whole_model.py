"""Many videos at once with whole modules in memory: the arithmetic of the block pipeline, for measuring quality.

One full run of the sampler gives every leap of LPL, since a leap at step n only needs the latent and the drift there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cidl_sim.executor.store import TOKENIZER_MODELS
from cidl_sim.models.sizes import T5Sizes
from cidl_sim.models.stdit3 import Geometry, STDiT3
from cidl_sim.models.vae import VideoVAE
from cidl_sim.pipelines.checkpoint import Checkpoint
from cidl_sim.pipelines.open_sora.prompt import encode_prompt
from cidl_sim.pipelines.open_sora.settings import FRAMES_PER_SECOND, OpenSoraSizes, VideoSettings
from cidl_sim.sampling import rectified_flow as flow
from cidl_sim.sampling.latents import guided_batch, initial_noise

Frames = NDArray[np.uint8]  # (frames, height, width, 3)
MergedPairs = Callable[[int], Collection[int]]


def no_pairs(step: int) -> Collection[int]:
    """Merge tokens nowhere."""
    return ()


@dataclass(frozen=True)
class Trajectory:
    """A run of the sampler for B videos: before each step its time (0..1000), latents and guided drifts.

    Latents and drifts are (B, 4, T, H, W), text embeddings (B, L, d_model).
    """

    texts: Tensor
    times: list[float]
    latents: list[Tensor]
    drifts: list[Tensor]

    def after(self, steps: int) -> Tensor:
        """The latents after so many steps, noise and all where that is not the end."""
        if steps < len(self.latents):
            return self.latents[steps]
        last = len(self.times) - 1
        return flow.moved(self.latents[last], self.drifts[last], flow.step_length(self.times, last))

    def leap(self, step: int) -> Tensor:
        """The latents of static LPL at `step` (steps count from 0): one step of the whole remaining length."""
        return flow.moved(self.latents[step], self.drifts[step], self.times[step])


class WholeModel:
    """Text encoder, denoiser and VAE of one checkpoint, in fp32."""

    def __init__(self, sizes: OpenSoraSizes, folders: dict[str, Path]) -> None:
        """`folders`: "t5", "stdit" and "vae", each with a published checkpoint.

        Without a tokenizer beside T5's weights prompts are taken as bytes, as in the pipeline.
        """
        self.sizes = sizes
        has_tokenizer = any((folders["t5"] / name).is_file() for name in TOKENIZER_MODELS)
        self._tokenizer = folders["t5"] if has_tokenizer else None
        self._text_encoder = library_text_encoder(sizes.t5)
        self.denoiser = STDiT3(sizes.stdit, sizes.t5.d_model, Geometry((1, 2, 2), 256))
        self._vae = VideoVAE(sizes.vae)
        for part, module in (("t5", self._text_encoder), ("stdit", self.denoiser), ("vae", self._vae)):
            checkpoint = Checkpoint(folders[part])
            state = {key: checkpoint.tensor(key).float() for key in checkpoint.shapes}
            if part == "t5":
                state["encoder.embed_tokens.weight"] = state["shared.weight"]
            module.load_state_dict(state)
            module.eval().requires_grad_(False)

    def text(self, prompt: str) -> Tensor:
        """The text embedding of a prompt, (1, L, d_model), without padding. PromptError if it cannot be taken."""
        ids, mask = encode_prompt(prompt, self.sizes.text_encoder_tokens, self._tokenizer)
        hidden: Tensor = self._text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return hidden[:, : int(mask.sum())]

    def trajectory(
        self,
        texts: Tensor,
        seeds: Sequence[int],
        settings: VideoSettings,
        merged: MergedPairs = no_pairs,
        *,
        ratio: float | None = None,
    ) -> Trajectory:
        """All steps of the sampler. texts: (B, L, d_model); `merged(step)`: the pairs that merge tokens then.

        `ratio`: of the timestep transform, to see the times of another size; that of the settings by default.
        """
        shape = (1, self.sizes.stdit.in_channels, *settings.latent_shape)
        z = torch.cat([initial_noise(shape, seed) for seed in seeds])
        ratio = ratio or flow.time_ratio(settings.height, settings.width, settings.frames)
        times = flow.timesteps(settings.steps, ratio)
        latents, drifts = [], []
        for step, t in enumerate(times):
            drift = self.guided_drift(z, t, texts, settings, merged(step))
            latents.append(z)
            drifts.append(drift)
            z = flow.moved(z, drift, flow.step_length(times, step))
        return Trajectory(texts, times, latents, drifts)

    def guided_drift(
        self, z: Tensor, t: float, texts: Tensor, settings: VideoSettings, merged: Collection[int] = ()
    ) -> Tensor:
        """The drift with classifier-free guidance of latents (B, 4, T, H, W) at time `t` (0..1000)."""
        null = self.denoiser.null_text(texts.shape[1]).expand(len(texts), -1, -1)
        fps = torch.tensor([float(FRAMES_PER_SECOND)])
        drift = self.denoiser.drift_of_batch(
            z.repeat(2, 1, 1, 1, 1),
            torch.full((2 * len(texts),), t),
            fps,
            torch.cat([texts, null]),
            settings.height * settings.width,
            merged=merged,
        )
        return guided_batch(drift, self.sizes.guidance)

    def decode(self, z: Tensor, frames: int) -> list[Frames]:
        """Latents (B, 4, T, H, W) -> B videos (frames, 8 H, 8 W, 3) in 8-bit RGB."""
        videos = (self._vae.decode(one[None], frames) for one in z)
        return [
            ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy() for video in videos
        ]


def library_text_encoder(sizes: T5Sizes) -> nn.Module:
    """The transformers library's, not the blocks that are compared with it."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=sizes.vocabulary,
        d_model=sizes.d_model,
        d_kv=sizes.d_kv,
        d_ff=sizes.d_ff,
        num_layers=sizes.layers,
        num_heads=sizes.heads,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        attn_implementation="eager",
    )
    encoder: nn.Module = T5EncoderModel(config)
    return encoder
