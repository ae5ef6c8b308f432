"""The small model's text encoder and denoiser as training needs them: batches, and gradients through both."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from data import Batch
from maps import CHANNELS, WORD_CHANNELS
from torch import Tensor, nn

from cidl_sim.models.autoencoder_kl import LATENT_CHANNELS
from cidl_sim.models.stdit3 import Geometry, STDiT3, rotary_frequencies
from cidl_sim.models.t5 import T5FirstBlock
from cidl_sim.pipelines.model_store import distinct_blocks
from cidl_sim.pipelines.open_sora.settings import FRAMES_PER_SECOND, OpenSoraSizes
from cidl_sim.sampling.rectified_flow import TIMESTEPS


class TextEncoder(nn.Module):
    """The blocks of the T5 encoder that the pipeline runs, one after the other."""

    def __init__(self, sizes: OpenSoraSizes) -> None:
        super().__init__()
        self._definitions = [block for block in distinct_blocks(sizes, "fp32") if block.checkpoint == "t5"]
        self.blocks = nn.ModuleList(block.build() for block in self._definitions)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (B, L) without padding -> text embedding (B, L, d_model)."""
        embedding, first, *later, norm = self.blocks
        mask = torch.zeros(1, 1, 1, ids.shape[1])
        assert isinstance(first, T5FirstBlock)
        hidden, bias = first(embedding(ids), mask)
        for block in later:
            hidden = block(hidden, mask, bias)
        return norm(hidden)

    def published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state of this module by the keys of a published T5 checkpoint."""
        return {
            definition.published_key(name): state[f"blocks.{i}.{name}"]
            for i, (definition, block) in enumerate(zip(self._definitions, self.blocks, strict=True))
            for name in block.state_dict()
        }


class MapHead(nn.Module):
    """Reads from tokens what they are about (maps.py); only for training."""

    def __init__(self, hidden: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(hidden), nn.Linear(hidden, 2 * hidden), nn.SiLU(), nn.Linear(2 * hidden, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, hidden) -> (B, tokens, channels)."""
        maps: Tensor = self.layers(x)
        return maps


class TextToLatent(nn.Module):
    """Text encoder and denoiser, trained together."""

    def __init__(self, sizes: OpenSoraSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.text_encoder = TextEncoder(sizes)
        # The geometry only matters in forward passes of the whole network, which are not used here.
        self.denoiser = STDiT3(sizes.stdit, sizes.t5.d_model, Geometry((5, 6, 6), 48 * 48))
        _initialise(self.denoiser)
        _initialise_text(self.text_encoder, sizes)
        self.map_head = MapHead(sizes.stdit.hidden, CHANNELS)
        self.word_head = MapHead(sizes.t5.d_model, WORD_CHANNELS)
        # What the last forward pass read; of words logits.
        self.maps, self.words = torch.empty(0), torch.empty(0)
        middle = self.denoiser.temporal_blocks[(sizes.stdit.depth - 1) // 2]
        middle.register_forward_hook(lambda _, __, x: self._read(x))

    def _read(self, x: Tensor) -> None:
        self.maps = self.map_head(x)

    def drift(self, z: Tensor, t: Tensor, ids: Tensor, dropped: Tensor, pixels: int) -> Tensor:
        """Latents (B, 4, T, H, W), times (B,) in 0..1, ids (B, L) -> drift (B, 4, T, H, W).

        `dropped` (B,): whose text is replaced by the null text, for classifier-free guidance. `pixels`: height times
        width of the video.
        """
        null = self.denoiser.null_text(ids.shape[1])
        encoded = self.text_encoder(ids)
        self.words = self.word_head(encoded)
        text = torch.where(dropped[:, None, None], null, encoded)
        fps = torch.full((1,), float(FRAMES_PER_SECOND))
        return self.denoiser.drift_of_batch(z, t * TIMESTEPS, fps, text, pixels)


def _initialise(model: STDiT3) -> None:
    """As Open-Sora begins: linear layers Xavier, residual branches small, the last layer zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    hidden = model.sizes.hidden
    for block in (*model.spatial_blocks, *model.temporal_blocks):
        nn.init.normal_(block.scale_shift_table, std=1 / math.sqrt(hidden))
        nn.init.zeros_(block.cross_attn.proj.weight)
    nn.init.normal_(model.final_layer.scale_shift_table, std=1 / math.sqrt(hidden))
    nn.init.zeros_(model.final_layer.linear.weight)
    nn.init.xavier_uniform_(model.x_embedder.proj.weight.view(hidden, -1))
    for embedder in (model.t_embedder, model.fps_embedder):
        for i in (0, 2):
            nn.init.normal_(embedder.mlp[i].weight, std=0.02)
    nn.init.normal_(model.t_block[1].weight, std=0.02)
    nn.init.normal_(model.y_embedder.y_embedding, std=1 / math.sqrt(model.y_embedder.y_embedding.shape[1]))
    model.rope.freqs.data.copy_(rotary_frequencies(2 * model.rope.freqs.shape[0]))
    model.rope.freqs.requires_grad_(False)


def _initialise_text(encoder: TextEncoder, sizes: OpenSoraSizes) -> None:
    """Scores of about unit size: T5's attention does not divide by the root of the width."""
    for name, weight in encoder.named_parameters():
        if name.endswith("SelfAttention.q.weight"):
            nn.init.normal_(weight, std=1 / math.sqrt(sizes.t5.d_model * sizes.t5.d_kv))
        elif name.endswith("shared.weight"):
            nn.init.normal_(weight, std=1.0)
        elif weight.dim() == 2 and "relative" not in name:
            nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1]))


def flow_loss(model: TextToLatent, batch: Batch, latents: Tensor, t: Tensor, noise: Tensor, dropped: Tensor) -> Tensor:
    """Rectified flow: mean square of drift - (latents - noise) at (1 - t) latents + t noise, one for each sample.

    `latents`: the batch's, normalised. Leaves what the heads read in `model.maps` and `model.words`.
    """
    assert latents.shape[1] == LATENT_CHANNELS
    at = t[:, None, None, None, None]
    drift = model.drift((1 - at) * latents + at * noise, t, batch.ids, dropped, batch.side**2)
    return F.mse_loss(drift, latents - noise, reduction="none").mean(dim=(1, 2, 3, 4))
