"""Published checkpoints of text-to-image models: other names of their tensors, and original files with all parts.

The original files name the UNet's blocks by one number through all levels, count the decoder's levels backwards, have
1x1 convolutions where the libraries have linear layers, and in v2 a text encoder of OpenCLIP's with one projection for
queries, keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import torch

from cidl_sim.models.autoencoder_kl import AutoencoderKL
from cidl_sim.models.sizes import VAESizes
from cidl_sim.models.unet_sizes import CLIPSizes, ImageDecoderSizes, UNetSizes
from cidl_sim.pipelines.checkpoint import View
from cidl_sim.pipelines.stable_diffusion.settings import SMALLEST, ImageSizes
from cidl_sim.pipelines.stable_diffusion.stages import networks_of

Shapes = dict[str, tuple[int, ...]]

_LEAVES = ("weight", "bias")
_TEXT = "text_model."
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = "model.diffusion_model."
_VAE = "first_stage_model."
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_ORIGINAL_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def other_names(sizes: ImageSizes, part: str) -> dict[str, str]:
    """By key the other name under which some files have it.

    The decoder's attention had others before diffusers 0.18; transformers 5 saves text encoders without the first word.
    """
    if part == "vae":
        at = "decoder.mid_block.attentions.0."
        return {f"{at}{new}.{leaf}": f"{at}{old}.{leaf}" for new, old in _OLD_ATTENTION.items() for leaf in _LEAVES}
    if not part.startswith("text_encoder"):
        return {}
    keys = (*_keys(sizes, part), *unused_keys(sizes, part))
    return {key: key.removeprefix(_TEXT) for key in keys if key.startswith(_TEXT)}


def unused_keys(sizes: ImageSizes, part: str) -> Shapes:
    """Keys of a published checkpoint, with their shapes, that the pipeline has no use for."""
    if part == "vae":
        return _encoder_keys(sizes.decoder)
    encoders = {"text_encoder": sizes.text_encoder, "text_encoder_2": sizes.text_encoder_2}
    encoder = encoders.get(part)
    return {} if encoder is None else _text_keys(encoder)


def _text_keys(sizes: CLIPSizes) -> Shapes:
    """Positions, which are their own numbers, and where states before the last layer are taken that layer and norm."""
    unused: Shapes = {"text_model.embeddings.position_ids": (1, sizes.tokens)}
    if sizes.given == 2 and not sizes.projected:
        at = f"text_model.encoder.layers.{sizes.layers - 1}."
        wide, inner = (sizes.width,), (sizes.inner,)
        unused |= {f"text_model.final_layer_norm.{leaf}": wide for leaf in _LEAVES}
        unused |= {f"{at}layer_norm{n}.{leaf}": wide for n in (1, 2) for leaf in _LEAVES}
        for name, width_in, width_out in (
            *((f"self_attn.{which}_proj", wide, wide) for which in ("q", "k", "v", "out")),
            ("mlp.fc1", wide, inner),
            ("mlp.fc2", inner, wide),
        ):
            unused |= {f"{at}{name}.weight": (*width_out, *width_in), f"{at}{name}.bias": width_out}
    return unused


def _encoder_keys(sizes: ImageDecoderSizes) -> Shapes:
    """The encoder half of the image autoencoder, under both names of its attention."""
    if len(sizes.channels) != 4 or sizes.latent_channels != 4:
        return {}
    own = VAESizes(spatial_channels=sizes.channels, spatial_layers=sizes.layers - 1, groups=sizes.groups)
    with torch.device("meta"):
        whole = {name: tuple(tensor.shape) for name, tensor in AutoencoderKL(own).state_dict().items()}
    unused = {name: shape for name, shape in whole.items() if name.startswith(("encoder.", "quant_conv."))}
    at = "encoder.mid_block.attentions.0."
    for new, old in _OLD_ATTENTION.items():
        unused |= {f"{at}{old}.{leaf}": unused[f"{at}{new}.{leaf}"] for leaf in _LEAVES}
    return unused


def _keys(sizes: ImageSizes, part: str) -> list[str]:
    """The keys of a part's tensors; none for a part that the model has not."""
    own = networks_of(sizes, SMALLEST)
    networks = {network.checkpoint: network for network in (*own.text_encoders, own.unet, *own.decoders.values())}
    return networks[part].keys() if part in networks else []


# Original files


def in_single_file(sizes: ImageSizes, part: str) -> tuple[dict[str, View], tuple[str, ...]] | None:
    """Where a part's tensors lie in an original file, by key, and what the names of all of its tensors begin with.

    Of the text encoders and the autoencoder an original file has more than is used, so these names are not given.
    None for a part that the model has not.
    """
    keys = _keys(sizes, part)
    if not keys:
        return None
    if part == "unet":
        blocks_by_prefix = dict(_unet_prefixes(sizes.unet))
        return {key: View(_UNET + _unet_name(key, blocks_by_prefix)) for key in keys}, (_UNET,)
    if part == "vae":
        return {key: _vae_view(key, len(sizes.decoder.channels)) for key in keys}, ()
    encoder = sizes.text_encoder_2 if part == "text_encoder_2" and sizes.text_encoder_2 else sizes.text_encoder
    if encoder.activation == "quick_gelu":
        at = "conditioner.embedders.0." if sizes.text_encoder_2 is not None else "cond_stage_model."
        return {key: View(f"{at}transformer.{key}") for key in keys}, ()
    at = "cond_stage_model.model." if part == "text_encoder" else "conditioner.embedders.1.model."
    return {key: _open_clip_view(at, key) for key in keys}, ()


def _unet_prefixes(sizes: UNetSizes) -> Iterator[tuple[str, str]]:
    """What the keys of a block begin with, and what they begin with in an original file."""
    yield "conv_in.", "input_blocks.0.0."
    yield from (("time_embedding.linear_1.", "time_embed.0."), ("time_embedding.linear_2.", "time_embed.2."))
    yield from (("add_embedding.linear_1.", "label_emb.0.0."), ("add_embedding.linear_2.", "label_emb.0.2."))
    yield from (("conv_norm_out.", "out.0."), ("conv_out.", "out.2."))
    number = 0
    for i, level in enumerate(sizes.levels):
        for j in range(len(level.down)):
            number += 1
            yield f"down_blocks.{i}.resnets.{j}.", f"input_blocks.{number}.0."
            yield f"down_blocks.{i}.attentions.{j}.", f"input_blocks.{number}.1."
        number += 1
        yield f"down_blocks.{i}.downsamplers.0.conv.", f"input_blocks.{number}.0.op."
    for j, place in enumerate((0, 2)):
        yield f"mid_block.resnets.{j}.", f"middle_block.{place}."
    yield "mid_block.attentions.0.", "middle_block.1."
    number = 0
    for i, level in enumerate(reversed(sizes.levels)):
        for j, layer in enumerate(level.up):
            yield f"up_blocks.{i}.resnets.{j}.", f"output_blocks.{number}.0."
            yield f"up_blocks.{i}.attentions.{j}.", f"output_blocks.{number}.1."
            if j == len(level.up) - 1:
                yield f"up_blocks.{i}.upsamplers.0.conv.", f"output_blocks.{number}.{2 if layer else 1}.conv."
            number += 1


def _unet_name(key: str, prefixes: dict[str, str]) -> str:
    prefix = next(prefix for prefix in prefixes if key.startswith(prefix))
    rest = key.removeprefix(prefix)
    if ".resnets." in f".{prefix}":
        layer, _, leaf = rest.rpartition(".")
        rest = f"{_RESNET[layer]}.{leaf}"
    return prefixes[prefix] + rest


def _vae_view(key: str, levels: int) -> View:
    layer, _, leaf = key.rpartition(".")
    words = layer.split(".")
    if words[0] == "post_quant_conv":
        return View(_VAE + key)
    at = f"{_VAE}decoder."
    if words[1] == "mid_block":
        if words[2] == "attentions":
            old = _ORIGINAL_ATTENTION[".".join(words[4:])]
            # 1x1 convolutions there, linear layers here.
            return View(f"{at}mid.attn_1.{old}.{leaf}", squeezed=leaf == "weight" and old != "norm")
        return View(f"{at}mid.block_{int(words[3]) + 1}.{_shortcut(words[4])}.{leaf}")
    if words[1] == "up_blocks":
        level = levels - 1 - int(words[2])
        if words[3] == "upsamplers":
            return View(f"{at}up.{level}.upsample.conv.{leaf}")
        return View(f"{at}up.{level}.block.{words[4]}.{_shortcut(words[5])}.{leaf}")
    name = "norm_out" if words[1] == "conv_norm_out" else words[1]
    return View(f"{at}{name}.{leaf}")


def _shortcut(layer: str) -> str:
    return "nin_shortcut" if layer == "conv_shortcut" else layer


def _open_clip_view(at: str, key: str) -> View:
    layer, _, leaf = key.removeprefix("text_model.").rpartition(".")
    if layer == "text_projection":
        return View(f"{at}text_projection", transposed=True)
    if layer == "embeddings.position_embedding":
        return View(f"{at}positional_embedding")
    if layer == "embeddings.token_embedding":
        return View(f"{at}token_embedding.{leaf}")
    if layer == "final_layer_norm":
        return View(f"{at}ln_final.{leaf}")
    number, _, name = layer.removeprefix("encoder.layers.").partition(".")
    block = f"{at}transformer.resblocks.{number}."
    if name in _OPEN_CLIP:
        return View(f"{block}{_OPEN_CLIP[name]}.{leaf}")
    third = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"].index(name)
    return View(f"{block}attn.in_proj_{leaf}", rows=(Fraction(third, 3), Fraction(third + 1, 3)))
