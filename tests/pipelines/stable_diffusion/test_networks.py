"""Networks cut into blocks against the libraries' whole ones, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cidl_sim.blocks.definition import TORCH_DTYPES
from cidl_sim.blocks.pieces import Network, NetworkState
from cidl_sim.pipelines.stable_diffusion import networks
from cidl_sim.pipelines.stable_diffusion.architectures import MODELS
from tests.pipelines.stable_diffusion.library import (
    library_autoencoder,
    library_text_encoder,
    library_unet,
    randomised,
)

CUTS = {"reference": 1, "fine": 0, "3": 3, "chunks2": -2, "chunks5": -5, "whole": -1}
TINY = ("sd-tiny", "sdxl-tiny")


def block_by_block(
    network: Network, cut: int, dtype: str, weights: dict[str, Tensor], hidden: Tensor, **given: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Hidden state and results after all blocks of a cut, each with its own weights."""
    state = NetworkState(network)
    for block in network.blocks(cut, dtype):
        with torch.device("meta"):
            module = block.build().to(TORCH_DTYPES[dtype]).eval()
        own = {name: weights[block.published_key(name)] for name in module.state_dict()}
        module.load_state_dict(own, assign=True)
        with torch.no_grad():
            hidden, given = state.run(block.name, module, hidden, **given), {}
    return hidden, state.results()


def text_keys(module: nn.Module) -> dict[str, Tensor]:
    """As the published files have them."""
    named = module.state_dict()
    return {
        key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}": tensor
        for key, tensor in named.items()
    }


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", TINY)
def test_a_unet_block_by_block_is_the_librarys(name: str, dtype: str, cut: int) -> None:
    sizes, own = MODELS[name].unet, TORCH_DTYPES[dtype]
    whole = randomised(library_unet(sizes), dtype=own)
    network = networks.denoiser(sizes, 2, 16, 8, 77, dtype)
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, 4, 16, 8, generator=generator)
    text = torch.randn(2, 77, sizes.context, generator=generator).to(own)
    given = {"t": torch.tensor([261.0]), "text": text}
    added = None
    if sizes.pooled:
        given["pooled"] = torch.randn(2, sizes.pooled, generator=generator).to(own)
        given["image"] = torch.tensor([[512.0, 512.0, 0.0, 0.0, 512.0, 512.0]]).repeat(2, 1)
        added = {"text_embeds": given["pooled"], "time_ids": given["image"]}
    with torch.no_grad():
        expected = whole(z.to(own), torch.tensor(261.0), text, added_cond_kwargs=added).sample
    found, _ = block_by_block(network, cut, dtype, whole.state_dict(), z, **given)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("encoder", ["sd-tiny", "sdxl-tiny", "sdxl-tiny second"])
def test_a_text_encoder_block_by_block_is_the_librarys(encoder: str, dtype: str, cut: int) -> None:
    name, _, second = encoder.partition(" ")
    model = MODELS[name]
    sizes = model.text_encoder_2 if second else model.text_encoder
    assert sizes is not None
    whole = randomised(library_text_encoder(sizes), dtype=TORCH_DTYPES[dtype])
    network = networks.text_encoder("clip", "text_encoder", sizes, 77)
    ids = torch.full((1, 77), sizes.vocabulary - 1)
    ids[0, :6] = torch.tensor([sizes.vocabulary - 2, 3, 4, 200, 77, 9])
    with torch.no_grad():
        result = whole(input_ids=ids, output_hidden_states=True)
    expected = result.hidden_states[-2] if sizes.given == 2 else result.last_hidden_state
    given = {"ends": torch.tensor([6])}
    found, results = block_by_block(network, cut, dtype, text_keys(whole), ids, **given)
    assert torch.equal(found, expected)
    if sizes.projected:
        assert torch.equal(results["pooled"], result.text_embeds)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", TINY)
def test_a_decoder_block_by_block_is_the_librarys(name: str, dtype: str, cut: int) -> None:
    sizes, own = MODELS[name].decoder, TORCH_DTYPES[dtype]
    whole = randomised(library_autoencoder(sizes), dtype=own)
    network = networks.decoder(sizes, 8, 16)
    z = torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = whole.decode((z / sizes.scale).to(own)).sample
    found, _ = block_by_block(network, cut, dtype, whole.state_dict(), z)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["snapfusion", "snapfusion-talk", "mobile-diffusion", "mobile-diffusion-lite"])
def test_architectures_of_our_own_are_the_same_in_every_cut(name: str, dtype: str) -> None:
    # Their structure, narrow: only the figures of width differ from the real ones.
    sizes = MODELS[name].unet
    levels = tuple(
        level.model_copy(update={"channels": 32 + 32 * (i > 0), "heads": 2}) for i, level in enumerate(sizes.levels)
    )
    sizes = sizes.model_copy(update={"levels": levels, "context": 32})
    network = networks.denoiser(sizes, 2, 16, 16, 77, dtype)
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, sizes.latent_channels, 16, 16, generator=generator)
    given = {"t": torch.tensor([261.0]), "text": torch.randn(2, 77, 32, generator=generator).to(TORCH_DTYPES[dtype])}
    (block,) = network.blocks(-1, dtype)
    whole = randomised(block.build(), dtype=TORCH_DTYPES[dtype]).eval()
    weights = {block.published_key(key): tensor for key, tensor in whole.state_dict().items()}
    results = [block_by_block(network, cut, dtype, weights, z, **given)[0] for cut in CUTS.values()]
    assert all(torch.equal(result, results[0]) for result in results)
    assert results[0].isfinite().all()
