"""Styles of modules at lengths where it matters how they are written, and what PyTorch really allocates for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

TOKENS, WIDTH, HEADS = 1024, 512, 8
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Style:
    """A way of writing a module: `make` gives it, `inputs` what it is called with."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]


class Written(nn.Module):
    """A module that is one function of itself and its inputs."""

    def __init__(self, call: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.call = call
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *values: Tensor) -> Any:
        """Whatever the function takes and gives."""
        return self.call(self, *values)


def tokens(batch: int = 1, length: int = TOKENS, width: int = WIDTH) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(batch, length, width),)


def picture(channels: int = 64, side: int = 192) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(1, channels, side, side),)


def attention(attend: Attend, key_heads: int = HEADS) -> Callable[[], nn.Module]:
    """Projections around `attend(q, k, v)`, each (1, heads, tokens, width of a head)."""
    narrow = WIDTH * key_heads // HEADS

    def call(self: Any, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        parts = [p.unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for p in (q, k, v)]
        return self.out(attend(*parts).transpose(1, 2).reshape(x.shape))

    return lambda: Written(
        call,
        q=nn.Linear(WIDTH, WIDTH),
        k=nn.Linear(WIDTH, narrow),
        v=nn.Linear(WIDTH, narrow),
        out=nn.Linear(WIDTH, WIDTH),
    )


sdpa = F.scaled_dot_product_attention


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2) / 8, dim=-1) @ v


def in_fp32(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2)).float().softmax(-1).to(q.dtype) @ v


def einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1), v)


def in_slices(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = torch.empty_like(q)
    for head in range(q.shape[1]):
        out[:, head] = (q[:, head] @ k[:, head].transpose(-1, -2)).softmax(-1) @ v[:, head]
    return out


def in_chunks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.cat([sdpa(part, k, v) for part in q.chunk(4, dim=2)], dim=2)


def repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa(q, k.repeat_interleave(4, 1), v.repeat_interleave(4, 1))


ATTENTION = {
    "sdpa": attention(sdpa),
    "sdpa, causal": attention(lambda q, k, v: sdpa(q, k, v, is_causal=True)),
    "sdpa, mask of booleans": attention(
        lambda q, k, v: sdpa(q, k, v, attn_mask=torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril())
    ),
    "sdpa, mask of numbers": attention(
        lambda q, k, v: sdpa(q, k, v, attn_mask=torch.zeros(1, 1, TOKENS, TOKENS, dtype=q.dtype))
    ),
    "sdpa, mask of keys": attention(
        lambda q, k, v: sdpa(q, k, v, attn_mask=torch.ones(1, 1, 1, TOKENS, dtype=torch.bool))
    ),
    "sdpa, grouped": attention(lambda q, k, v: sdpa(q, k, v, enable_gqa=True), key_heads=2),
    "sdpa, keys repeated": attention(repeated, key_heads=2),
    "sdpa, three dimensions": attention(lambda q, k, v: sdpa(q[0], k[0], v[0])[None]),
    "sdpa, five dimensions": attention(lambda q, k, v: sdpa(q[None], k[None], v[None])[0]),
    "sdpa, wider values": attention(lambda q, k, v: sdpa(q[..., :32], k[..., :32], v)),
    "sdpa, in chunks": attention(in_chunks),
    "by hand": attention(by_hand),
    "by hand, softmax in fp32": attention(in_fp32),
    "einsum": attention(einsum),
    "head by head": attention(in_slices),
}


def _fused(**options: Any) -> Callable[[], nn.Module]:
    return lambda: Written(
        lambda self, x: self.layer(x, x, x, **options)[0], layer=nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    )


def _cross() -> nn.Module:
    layer = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    return Written(lambda self, x: self.layer(x, x[:, :77], x[:, :77], need_weights=False)[0], layer=layer)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))


def _gated(self: Any, x: Tensor) -> Tensor:
    value, gate = self.wide(x).chunk(2, dim=-1)
    return self.out(value * F.gelu(gate))


LAYERS = {
    "MultiheadAttention": _fused(need_weights=False),
    "MultiheadAttention with weights": _fused(),
    "MultiheadAttention on a text": _cross,
    "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, batch_first=True),
    "TransformerEncoderLayer, norm first": lambda: nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, batch_first=True, norm_first=True
    ),
    "feed-forward": _mlp,
    "feed-forward, in place": lambda: nn.Sequential(
        nn.Linear(WIDTH, 4 * WIDTH), nn.ReLU(inplace=True), nn.Linear(4 * WIDTH, WIDTH)
    ),
    "feed-forward, gated": lambda: Written(_gated, wide=nn.Linear(WIDTH, 8 * WIDTH), out=nn.Linear(4 * WIDTH, WIDTH)),
    "feed-forward, in chunks": lambda: Written(
        lambda self, x: torch.cat([self.mlp(part) for part in x.chunk(4, dim=1)], dim=1), mlp=_mlp()
    ),
    "feed-forward, checkpointed": lambda: Written(
        lambda self, x: torch.utils.checkpoint.checkpoint(self.mlp, x, use_reentrant=False), mlp=_mlp()
    ),
    "LayerNorm": lambda: nn.LayerNorm(WIDTH),
    "RMSNorm": lambda: nn.RMSNorm(WIDTH),
}

PICTURES = {
    "GroupNorm, SiLU, convolution": lambda: nn.Sequential(
        nn.GroupNorm(32, 64), nn.SiLU(), nn.Conv2d(64, 64, 3, padding=1)
    ),
    "convolution, BatchNorm, ReLU": lambda: nn.Sequential(
        nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()
    ),
    "convolution of one": lambda: nn.Conv2d(64, 128, 1),
    "convolution, stride": lambda: nn.Conv2d(64, 128, 3, stride=2, padding=1),
    "convolution, by channel": lambda: nn.Conv2d(64, 64, 3, padding=1, groups=64),
    "convolution, dilated": lambda: nn.Conv2d(64, 64, 3, padding=2, dilation=2),
    "convolution, transposed": lambda: nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
    "nearest, convolution": lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3, padding=1)),
    "bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "pixel shuffle": lambda: nn.Sequential(nn.Conv2d(64, 256, 3, padding=1), nn.PixelShuffle(2)),
}


def _causal(self: Any, x: Tensor) -> Tensor:
    return self.conv(F.pad(x, (1, 1, 1, 1, 2, 0)))


OTHERS = (
    Style("convolution in three", lambda: nn.Conv3d(32, 32, 3, padding=1), lambda: (torch.randn(1, 32, 8, 48, 48),)),
    Style(
        "convolution in three, causal",
        lambda: Written(_causal, conv=nn.Conv3d(32, 32, 3)),
        lambda: (torch.randn(1, 32, 8, 48, 48),),
    ),
    Style("convolution in one", lambda: nn.Conv1d(256, 256, 5, padding=2), lambda: (torch.randn(1, 256, 8192),)),
    Style(
        "convolution, channels last",
        lambda: nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        lambda: (torch.randn(1, 64, 192, 192).to(memory_format=torch.channels_last),),
    ),
    Style("embedding", lambda: nn.Embedding(1000, WIDTH), lambda: (torch.zeros(4, TOKENS, dtype=torch.int64),)),
)


def _diffusers_attention(processor: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from diffusers.models import attention_processor

        made = getattr(attention_processor, processor)
        options = {"slice_size": 2} if processor.startswith("Sliced") else {}
        return attention_processor.Attention(WIDTH, heads=HEADS, dim_head=WIDTH // HEADS, processor=made(**options))

    return make


def _diffusers_block() -> nn.Module:
    from diffusers.models.attention import BasicTransformerBlock

    block = BasicTransformerBlock(WIDTH, HEADS, WIDTH // HEADS, activation_fn="geglu")
    block.set_chunk_feed_forward(256, 1)
    return block


def _resnet() -> nn.Module:
    from diffusers.models.resnet import ResnetBlock2D

    block = ResnetBlock2D(in_channels=64, out_channels=64, temb_channels=None)
    return Written(lambda self, x: self.block(x, None), block=block)


def _decoder() -> nn.Module:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(32, 64, 64), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4, norm_num_groups=16,
    )  # fmt: skip
    return Written(lambda self, z: self.decoder(self.post(z)), decoder=vae.decoder, post=vae.post_quant_conv)


def _transformers(name: str, implementation: str, **figures: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        config = getattr(transformers, f"{name}Config")(**figures)
        config._attn_implementation = implementation
        kind = getattr(transformers, f"{name}Model")
        return Written(lambda self, ids: self.model(ids)[0], model=kind(config))

    return make


def _encoder_of_t5() -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(d_model=WIDTH, d_ff=1024, num_layers=2, num_heads=HEADS, d_kv=64, vocab_size=500)
    return Written(lambda self, ids: self.model(ids)[0], model=T5EncoderModel(config))


def _ids() -> tuple[Tensor, ...]:
    return (torch.ones(1, TOKENS, dtype=torch.int64),)


_LLAMA: dict[str, Any] = {
    "vocab_size": 500, "hidden_size": WIDTH, "intermediate_size": 1024, "num_hidden_layers": 2,
    "num_attention_heads": HEADS, "num_key_value_heads": 2, "use_cache": False,
}  # fmt: skip
_GPT: dict[str, Any] = {"vocab_size": 500, "n_positions": TOKENS, "n_embd": WIDTH, "n_layer": 2, "n_head": HEADS}
_BERT: dict[str, Any] = {
    "vocab_size": 500, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS,
    "intermediate_size": 1024, "max_position_embeddings": TOKENS,
}  # fmt: skip
LIBRARIES = (
    *(
        Style(f"diffusers, {name}", _diffusers_attention(name), tokens())
        for name in ("AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor")
    ),
    Style("diffusers, block with feed-forward in chunks", _diffusers_block, tokens()),
    Style("diffusers, residual block", _resnet, picture()),
    Style("diffusers, decoder", _decoder, lambda: (torch.randn(1, 4, 32, 32),)),
    Style("transformers, T5", _encoder_of_t5, _ids),
    *(
        Style(f"transformers, {name} ({how})", _transformers(name, how, **figures), _ids)
        for name, figures in (("Llama", _LLAMA), ("GPT2", {**_GPT, "use_cache": False}), ("Bert", _BERT))
        for how in ("sdpa", "eager")
    ),
)

STYLES: tuple[Style, ...] = (
    *(Style(name, make, tokens()) for name, make in (ATTENTION | LAYERS).items()),
    *(Style(name, make, picture()) for name, make in PICTURES.items()),
    *OTHERS,
    *LIBRARIES,
)


def in_type(style: Style, dtype: torch.dtype) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The style's module and inputs with their numbers in one type."""
    inputs = (tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in style.inputs())
    return style.make().eval().to(dtype), tuple(inputs)


def allocated_bytes(module: nn.Module, inputs: Sequence[Tensor]) -> int:
    """The most that PyTorch's allocator had given out at once during a call, what it is called with included."""
    with torch.no_grad():
        module(*inputs)  # what is made once and kept is no part of a call
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            kept = module(*inputs)
    del kept
    held = most = 0
    for event in recorded.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most + sum(tensor.nbytes for tensor in inputs)
