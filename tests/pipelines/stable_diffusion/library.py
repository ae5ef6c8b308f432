"""The diffusers and transformers libraries' networks of the same sizes, to compare with."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from cidl_sim.models.unet_sizes import CLIPSizes, ImageDecoderSizes, UNetSizes


def library_unet(sizes: UNetSizes) -> nn.Module:
    """Of an architecture that the library has: every level's layers alike, softmax, gelu."""
    levels = sizes.levels
    depths = [len(level.down[0]) for level in levels]
    has = [bool(depth) for depth in depths]
    pooled = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": sizes.pooled + 6 * 256,
    }
    return UNet2DConditionModel(
        in_channels=sizes.latent_channels,
        out_channels=sizes.latent_channels,
        block_out_channels=tuple(level.channels for level in levels),
        layers_per_block=tuple(len(level.down) for level in levels),
        down_block_types=tuple("CrossAttnDownBlock2D" if h else "DownBlock2D" for h in has),
        up_block_types=tuple("CrossAttnUpBlock2D" if h else "UpBlock2D" for h in reversed(has)),
        transformer_layers_per_block=(*(max(1, d) for d in depths[:-1]), len(sizes.middle[0])),
        attention_head_dim=tuple(level.heads for level in levels),
        cross_attention_dim=sizes.context,
        use_linear_projection=sizes.projection == "linear",
        norm_num_groups=sizes.groups,
        **(pooled if sizes.pooled else {}),
    ).eval()


def library_text_encoder(sizes: CLIPSizes) -> nn.Module:
    config = CLIPTextConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        intermediate_size=sizes.inner,
        projection_dim=sizes.projected or 512,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        max_position_embeddings=sizes.tokens,
        hidden_act=sizes.activation,
        eos_token_id=sizes.vocabulary - 1,
        bos_token_id=sizes.vocabulary - 2,
    )
    return (CLIPTextModelWithProjection if sizes.projected else CLIPTextModel)(config).eval()


def library_autoencoder(sizes: ImageDecoderSizes) -> nn.Module:
    count = len(sizes.channels)
    return AutoencoderKL(
        block_out_channels=sizes.channels,
        layers_per_block=sizes.layers - 1,
        latent_channels=sizes.latent_channels,
        norm_num_groups=sizes.groups,
        down_block_types=("DownEncoderBlock2D",) * count,
        up_block_types=("UpDecoderBlock2D",) * count,
        scaling_factor=sizes.scale,
        sample_size=64 * sizes.factor,
    ).eval()


def randomised(module: nn.Module, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Every tensor random, norms and biases too, so that none can be left out unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            size = 1.0 if tensor.dim() == 1 and name.endswith("weight") else 0.0
            tensor.copy_(size + torch.randn(tensor.shape, generator=generator) * 0.15)
    return module.to(dtype)
