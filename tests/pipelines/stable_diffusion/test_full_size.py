"""Networks at their published widths, block by block against whole ones: gigabytes and minutes.

.venv/bin/python -m pytest -m full_size tests/pipelines/stable_diffusion/test_full_size.py
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cidl_sim.blocks.definition import TORCH_DTYPES
from cidl_sim.pipelines.stable_diffusion import networks
from cidl_sim.pipelines.stable_diffusion.architectures import MODELS
from tests.pipelines.stable_diffusion.library import library_autoencoder, library_text_encoder, library_unet
from tests.pipelines.stable_diffusion.test_networks import block_by_block, text_keys

pytestmark = pytest.mark.full_size

CUTS = {"reference": 1, "fine": 0, "chunks2": -2, "whole": -1}


def filled(state: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Random values of a size that activations survive, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in state.values():
            tensor.normal_(std=0.02, generator=generator).add_(1.0 if tensor.dim() == 1 else 0.0)
    return state


def inputs(name: str, dtype: str) -> tuple[Tensor, dict[str, Tensor]]:
    sizes, own = MODELS[name].unet, TORCH_DTYPES[dtype]
    generator = torch.Generator().manual_seed(1)
    given = {
        "t": torch.tensor([261.0]),
        "text": torch.randn(2, 77, sizes.context, generator=generator).to(own),
    }
    if sizes.pooled:
        given["pooled"] = torch.randn(2, sizes.pooled, generator=generator).to(own)
        given["image"] = torch.tensor([[1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]]).repeat(2, 1)
    return torch.randn(2, sizes.latent_channels, 8, 8, generator=generator), given


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["sd-v1.5", "sd-v2.1", "sdxl"])
def test_a_unet_is_the_librarys(name: str, dtype: str) -> None:
    sizes, own = MODELS[name].unet, TORCH_DTYPES[dtype]
    with torch.device("meta"):
        whole = library_unet(sizes).to(own)
    whole = whole.to_empty(device="cpu")
    weights = filled(whole.state_dict())
    z, given = inputs(name, dtype)
    added = {"text_embeds": given["pooled"], "time_ids": given["image"]} if sizes.pooled else None
    with torch.no_grad():
        expected = whole(z.to(own), given["t"][0], given["text"], added_cond_kwargs=added).sample
    network = networks.denoiser(sizes, 2, 8, 8, 77, dtype)  # type: ignore[arg-type]
    for cut in CUTS.values():
        assert torch.equal(block_by_block(network, cut, dtype, weights, z, **given)[0], expected)
    assert expected.isfinite().all()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["snapfusion", "mobile-diffusion", "mobile-diffusion-lite"])
def test_an_architecture_of_our_own_is_the_same_in_every_cut(name: str, dtype: str) -> None:
    network = networks.denoiser(MODELS[name].unet, 2, 8, 8, 77, dtype)  # type: ignore[arg-type]
    (block,) = network.blocks(-1, dtype)
    with torch.device("meta"):
        whole = block.build().to(TORCH_DTYPES[dtype])
    state = filled(whole.to_empty(device="cpu").state_dict())
    weights = {block.published_key(key): tensor for key, tensor in state.items()}
    z, given = inputs(name, dtype)
    results = [block_by_block(network, cut, dtype, weights, z, **given)[0] for cut in CUTS.values()]
    assert all(torch.equal(result, results[0]) for result in results)
    assert results[0].isfinite().all()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "vae"])
def test_sdxls_other_networks_are_the_libraries(part: str, dtype: str) -> None:
    model, own = MODELS["sdxl"], TORCH_DTYPES[dtype]
    encoder = {"text_encoder": model.text_encoder, "text_encoder_2": model.text_encoder_2}.get(part)
    with torch.device("meta"):
        whole = library_text_encoder(encoder) if encoder else library_autoencoder(model.decoder)
    whole = whole.to(own).to_empty(device="cpu")
    # What is worked out when the module is made has no value after it was made without memory.
    for name, buffer in whole.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))
    filled(dict(whole.named_parameters()))  # type: ignore[arg-type]
    with torch.no_grad():
        if encoder is None:
            z = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
            expected = whole.decode((z / model.decoder.scale).to(own)).sample
            network, hidden, given, weights = networks.decoder(model.decoder, 16, 16), z, {}, whole.state_dict()
        else:
            hidden = torch.full((1, encoder.tokens), encoder.vocabulary - 1)
            hidden[0, :4] = torch.tensor([encoder.vocabulary - 2, 320, 736, 7])
            expected = whole(input_ids=hidden, output_hidden_states=True).hidden_states[-2]
            network, given = networks.text_encoder("clip", part, encoder, 77), {"ends": torch.tensor([4])}
            weights = text_keys(whole)
    for cut in (1, -1):
        assert torch.equal(block_by_block(network, cut, dtype, weights, hidden, **given)[0], expected)
