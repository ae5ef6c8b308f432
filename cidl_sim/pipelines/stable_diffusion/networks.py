"""The networks of text-to-image models as units and pieces that can be cut: text encoders, UNet, image decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import groupby

import torch
from torch import nn

from cidl_sim.blocks.cuts import Dtype
from cidl_sim.blocks.definition import TORCH_DTYPES, meta_tensor
from cidl_sim.blocks.pieces import Network, Piece, Unit
from cidl_sim.core.workload import widths
from cidl_sim.models import autoencoder_kl, clip, image_decoder, unet
from cidl_sim.models.unet_sizes import SIZE_NUMBERS, CLIPSizes, ImageDecoderSizes, UNetLevel, UNetSizes

_RESNET_EPS = 1e-5
_DECODER_EPS = 1e-6


@cache
def text_encoder(name: str, checkpoint: str, sizes: CLIPSizes, rows: int) -> Network:
    """A CLIP text encoder. `rows`: of its table of tokens a run reads at most so many.

    Where it gives the states before its last layer, that layer is left out, or pools the text.
    """
    wide = widths(sizes.width, sizes.heads, sizes.inner) + f".{sizes.activation}"
    table = widths(sizes.vocabulary, sizes.width)
    layers = sizes.layers + 1 - sizes.given
    units = [
        Unit(
            "embedding",
            f"clip.embedding.{table}",
            (
                Piece(
                    "",
                    f"clip.embedding.{table}",
                    partial(clip.TokenTable, sizes),
                    {"": "text_model.embeddings."},
                    rows=(sizes.vocabulary, min(sizes.vocabulary, rows)),
                ),
            ),
        ),
        _alone(
            "positions",
            f"clip.positions.{widths(sizes.tokens, sizes.width)}",
            partial(clip.Positions, sizes),
            "text_model.embeddings.",
        ),
    ]
    units += [
        _alone(f"{i:02}", f"clip.layer.{wide}", partial(clip.Layer, sizes), f"text_model.encoder.layers.{i}.")
        for i in range(layers)
    ]
    if sizes.given == 1:
        norm = f"clip.norm.{widths(sizes.width)}"
        units.append(_alone("norm", norm, partial(clip.FinalNorm, sizes), "text_model."))
    elif sizes.projected:
        published = {
            "layer.": f"text_model.encoder.layers.{layers}.",
            "final_layer_norm.": "text_model.final_layer_norm.",
            "text_projection.": "text_projection.",
        }
        kind = f"clip.pooled.{wide}.{widths(sizes.projected)}"
        pooled = Piece("", kind, partial(clip.Pooled, sizes), published, takes=("ends",), gives=("pooled",))
        units.append(Unit("pooled", kind, (pooled,)))
    inputs = {"": meta_tensor(1, sizes.tokens, dtype=torch.int64), "ends": meta_tensor(1, dtype=torch.int64)}
    outputs = ("pooled",) if sizes.projected else ()
    return Network(name, checkpoint, tuple(units), inputs, outputs)


@cache
def denoiser(sizes: UNetSizes, batch: int, height: int, width: int, tokens: int, dtype: Dtype) -> Network:
    """The UNet for `batch` latents of height x width at once, each with a text of so many tokens."""
    own = TORCH_DTYPES[dtype]
    inputs = {
        "": meta_tensor(batch, sizes.latent_channels, height, width, dtype=torch.float32),
        "t": meta_tensor(1, dtype=torch.float32),
        "text": meta_tensor(batch, tokens, sizes.context, dtype=own),
    }
    if sizes.pooled:
        inputs["pooled"] = meta_tensor(batch, sizes.pooled, dtype=own)
        inputs["image"] = meta_tensor(batch, SIZE_NUMBERS, dtype=torch.float32)
    return Network("unet", "unet", tuple(_UNetUnits(sizes, tokens).all()), inputs)


@cache
def decoder(sizes: ImageDecoderSizes, height: int, width: int) -> Network:
    """The image decoder for one latent, or tile, of height x width."""
    inputs = {"": meta_tensor(1, sizes.latent_channels, height, width, dtype=torch.float32)}
    return Network("vae", "vae", tuple(_decoder_units(sizes)), inputs)


# The UNet


class _UNetUnits:
    """The units of a UNet, in order. The widest layers are those that a finer cut sets apart."""

    def __init__(self, sizes: UNetSizes, tokens: int) -> None:
        self._sizes, self._tokens = sizes, tokens
        self._widest = max(level.channels for level in sizes.levels)
        self._width = sizes.levels[0].channels
        # Channels of what is put aside, the last one on top.
        self._skips = [self._width]

    def all(self) -> Iterator[Unit]:
        """Way in, levels down, middle, levels up, way out."""
        sizes, levels = self._sizes, self._sizes.levels
        yield self._entrance()
        for i, level in enumerate(levels):
            at = f"down_blocks.{i}"
            for j, layer in enumerate(level.down):
                sampler: tuple[Piece, ...] = ()
                if j == len(level.down) - 1 and i < len(levels) - 1:
                    down = partial(unet.Downsampler, level.channels)
                    sampler = (self._sampler("down", level.channels, down, f"{at}.downsamplers.0.", pushes=True),)
                yield from self._layer(f"down.{i}.{j}", level, layer, at, j, sampler, pushes=True)
                self._skips += [level.channels] * (1 + len(sampler))
        for j, layer in enumerate(sizes.middle):
            yield from self._layer(f"mid.{j}", levels[-1], layer, "mid_block", j, ())
        for i, level in enumerate(reversed(levels)):
            at = f"up_blocks.{i}"
            for j, layer in enumerate(level.up):
                sampler = ()
                if j == len(level.up) - 1 and i < len(levels) - 1:
                    up = partial(unet.Upsampler, level.channels)
                    sampler = (self._sampler("up", level.channels, up, f"{at}.upsamplers.0."),)
                yield from self._layer(f"up.{i}.{j}", level, layer, at, j, sampler, skip=self._skips.pop())
        kind = f"unet.out.{widths(self._width, sizes.latent_channels, sizes.groups)}"
        build = partial(unet.Exit, self._width, sizes.latent_channels, sizes.groups, _RESNET_EPS)
        yield _alone("out", kind, build, "")

    def _entrance(self) -> Unit:
        sizes = self._sizes
        names = ["conv_in.", "time_embedding."]
        takes: tuple[str, ...] = ("t",)
        if sizes.pooled:
            names.append("add_embedding.")
            takes = ("t", "pooled", "image")
        kind = f"unet.in.{widths(sizes.latent_channels, self._width, sizes.pooled)}"
        published = {name: name for name in names}
        piece = Piece("", kind, partial(unet.Entrance, sizes), published, takes=takes, gives=("time",), pushes=True)
        return Unit("in", kind, (piece,))

    def _layer(
        self,
        name: str,
        level: UNetLevel,
        layer: str,
        at: str,
        number: int,
        sampler: tuple[Piece, ...],
        *,
        skip: int = 0,
        pushes: bool = False,
    ) -> Iterator[Unit]:
        """A residual block, and the transformer after it; what changes the resolution belongs to the last of them."""
        fine = level.channels == self._widest
        alone = not layer
        kind, pieces = self._resnet(level, f"{at}.resnets.{number}.", skip, pushes=pushes and alone)
        yield _unit(f"{name}.resnet", kind, (*pieces, *(sampler if alone else ())), fine=fine)
        if layer:
            kind, pieces = self._transformer(level, layer, f"{at}.attentions.{number}.", pushes=pushes)
            yield _unit(f"{name}.transformer", kind, (*pieces, *sampler), fine=fine)
        self._width = level.channels

    def _resnet(self, level: UNetLevel, key: str, skip: int, *, pushes: bool) -> tuple[str, tuple[Piece, ...]]:
        sizes, channels, total = self._sizes, level.channels, self._width + skip
        form = ".separable" if level.separable else ""
        figures = f"{form}.{widths(self._width, skip, channels, sizes.time_width, sizes.groups)}"
        start = partial(
            unet.ResnetStart, total, channels, sizes.time_width, sizes.groups, _RESNET_EPS, separable=level.separable
        )
        end = partial(unet.ResnetEnd, total, channels, sizes.groups, _RESNET_EPS, separable=level.separable)
        pieces = (
            Piece("start", f"unet.resnet.start{figures}", start, {"": key}, ("time",), ("past",), pops=skip > 0),
            Piece("end", f"unet.resnet.end{figures}", end, {"": key}, ("past",), pushes=pushes),
        )
        return f"unet.resnet{figures}", pieces

    def _transformer(self, level: UNetLevel, layer: str, key: str, *, pushes: bool) -> tuple[str, tuple[Piece, ...]]:
        sizes, channels, heads = self._sizes, level.channels, level.heads
        form = f"{sizes.projection}.{sizes.gate}.{sizes.attention}{'.shared' if sizes.shared_keys else ''}"
        figures = f"{form}.{widths(channels, heads, sizes.context, sizes.inner(channels), self._tokens, sizes.groups)}"
        build = partial(unet.TransformerPiece, sizes, channels, heads)
        last = len(layer) - 1
        if last == 0:
            blocks = {0: layer}
            attention = partial(build, blocks, leaves=False, feeds=False)
            feeding = partial(build, blocks, enters=False, attends=False)
            kind = f"unet.{{}}.{layer}.{figures}"
            pieces = [
                Piece("attention", kind.format("attention"), attention, {"": key}, ("text",), ("past",)),
                Piece("feed_forward", kind.format("feed_forward"), feeding, {"": key}, ("past",), pushes=pushes),
            ]
        else:
            pieces = [
                Piece(
                    f"{i:02}",
                    f"unet.transformer{'.first' * (i == 0)}{'.last' * (i == last)}.{block}.{figures}",
                    partial(build, {i: block}, enters=i == 0, leaves=i == last),
                    {"": key},
                    ("text",) if i == 0 else ("text", "past"),
                    ("past",) if i == 0 else (),
                    pushes=pushes and i == last,
                )
                for i, block in enumerate(layer)
            ]
        return f"unet.transformer.{_written(layer)}.{figures}", tuple(pieces)

    @staticmethod
    def _sampler(name: str, channels: int, build: Callable[[], nn.Module], key: str, *, pushes: bool = False) -> Piece:
        return Piece(name, f"unet.{name}.{widths(channels)}", build, {"": key}, pushes=pushes)


# The image decoder


def _decoder_units(sizes: ImageDecoderSizes) -> Iterator[Unit]:
    groups, channels = sizes.groups, sizes.channels[::-1]
    width = channels[0]

    def resnet(name: str, channels_out: int, key: str, *more: Piece) -> Unit:
        figures = widths(width, channels_out, groups)
        pieces = (
            Piece(
                "start",
                f"image_decoder.resnet.start.{figures}",
                partial(unet.ResnetStart, width, channels_out, 0, groups, _DECODER_EPS),
                {"": key},
                gives=("past",),
            ),
            Piece(
                "end",
                f"image_decoder.resnet.end.{figures}",
                partial(unet.ResnetEnd, width, channels_out, groups, _DECODER_EPS),
                {"": key},
                takes=("past",),
            ),
        )
        return _unit(name, f"image_decoder.resnet.{figures}", (*pieces, *more))

    entrance = {"post_quant_conv.": "post_quant_conv.", "conv_in.": "decoder.conv_in."}
    kind = f"image_decoder.in.{widths(sizes.latent_channels, width)}"
    yield Unit("in", kind, (Piece("", kind, partial(image_decoder.Entrance, sizes), entrance),))
    yield resnet("mid.0", width, "decoder.mid_block.resnets.0.")
    yield _alone(
        "mid.attention",
        f"image_decoder.attention.{widths(width, groups)}",
        partial(autoencoder_kl.Attention, width, groups),
        "decoder.mid_block.attentions.0.",
    )
    yield resnet("mid.1", width, "decoder.mid_block.resnets.1.")
    for i, level in enumerate(channels):
        for j in range(sizes.layers):
            key = f"decoder.up_blocks.{i}."
            sampler: tuple[Piece, ...] = ()
            if j == sizes.layers - 1 and i < len(channels) - 1:
                up = partial(unet.Upsampler, level)
                sampler = (Piece("up", f"image_decoder.up.{widths(level)}", up, {"": f"{key}upsamplers.0."}),)
            yield resnet(f"up.{i}.{j}", level, f"{key}resnets.{j}.", *sampler)
            width = level
    build = partial(unet.Exit, width, 3, groups, _DECODER_EPS)
    yield _alone("out", f"image_decoder.out.{widths(width, groups)}", build, "decoder.")


def _alone(name: str, kind: str, build: Callable[[], nn.Module], key: str) -> Unit:
    """A unit of one piece."""
    return Unit(name, kind, (Piece("", kind, build, {"": key}),))


def _unit(name: str, kind: str, pieces: tuple[Piece, ...], *, fine: bool = False) -> Unit:
    """A unit whose kind says whether something that changes the resolution belongs to it."""
    last = pieces[-1].name
    return Unit(name, f"{kind}.{last}" if last in ("down", "up") else kind, pieces, fine)


def _written(layer: str) -> str:
    """The blocks of a transformer, runs of equal ones with their number: "10f"."""
    return "".join(f"{len(list(run))}{kind}" for kind, run in groupby(layer))
