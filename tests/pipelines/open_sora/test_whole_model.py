"""Block by block from disk is the whole model: the pipeline written out with every weight resident."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cidl_sim.blocks.cuts import Dtype
from cidl_sim.models import stdit3, t5, vae
from cidl_sim.pipelines.model_store import build_random_store
from cidl_sim.pipelines.open_sora.prompt import encode_prompt
from cidl_sim.pipelines.open_sora.settings import OPENSORA_TINY, VideoSettings
from cidl_sim.pipelines.open_sora.stages import geometry_of
from cidl_sim.sampling import rectified_flow as flow
from cidl_sim.sampling.latents import initial_noise
from tests.executor.tiny_runs import PROMPT, RecordingProgram, run_policy

SIZES = OPENSORA_TINY
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class WholeModel(nn.Module):
    """Open-Sora as one module: all parts in memory, one forward from a prompt to frames."""

    def __init__(self, root: Path, settings: VideoSettings) -> None:
        super().__init__()
        self.settings, self.dtype = settings, DTYPES[settings.dtype]
        self.root = root
        geometry = geometry_of(settings)
        self.embedding = self._stored("t5.embedding", t5.T5Embedding(SIZES.t5))
        self.first = self._stored("t5.00", t5.T5FirstBlock(SIZES.t5))
        self.later = nn.ModuleList(
            self._stored(f"t5.{i:02}", t5.T5LaterBlock(SIZES.t5)) for i in range(1, SIZES.t5.layers)
        )
        self.final_norm = self._stored("t5.final_norm", t5.T5FinalNorm(SIZES.t5))
        self.part1 = self._stored("stdit.part1", stdit3.STDiT3Part1(SIZES.stdit, SIZES.t5.d_model, geometry))
        self.part2 = self._stored("stdit.part2", stdit3.STDiT3Part2(SIZES.stdit, geometry))
        self.pairs, self.merged_pairs = (
            nn.ModuleList(
                self._stored(f"stdit.{i:02}", stdit3.STDiT3Pair(SIZES.stdit, geometry, merged=merged))
                for i in range(SIZES.stdit.depth)
            )
            for merged in (False, True)
        )
        self.temporal = nn.Sequential(*(self._stored(p.name, p.build()) for p in vae.temporal_parts(SIZES.vae)))
        self.spatial = nn.Sequential(*(self._stored(p.name, p.build()) for p in vae.spatial_parts(SIZES.vae)))

    def _stored(self, weights: str, module: nn.Module) -> nn.Module:
        module = module.to_empty(device="cpu").to(self.dtype).eval()
        module.load_state_dict(load_file(self.root / f"{weights}.safetensors"))
        return module

    def encode(self) -> Tensor:
        """The text embedding without its padding."""
        ids, token_mask = encode_prompt(PROMPT, SIZES.text_encoder_tokens)
        mask = t5.additive_mask(token_mask, self.dtype)
        hidden, bias = self.first(self.embedding(ids), mask)
        for block in self.later:
            hidden = block(hidden, mask, bias)
        return self.final_norm(hidden)

    def drift(self, z: Tensor, time: float, text: Tensor, *, merged: bool) -> Tensor:
        """Both halves of the guidance."""
        x, t, t_mlp, y, frequencies = self.part1(z, torch.tensor([time]), torch.tensor([24.0]), text)
        for pair in self.merged_pairs if merged else self.pairs:
            x = pair(x, y, t_mlp, frequencies)
        return self.part2(x, t)

    @torch.no_grad()
    def forward(self, seed: int) -> dict[str, list[Tensor]]:
        """Text embedding, drifts, decoded latents and pixels, named after the blocks that give them."""
        settings = self.settings
        _, token_mask = encode_prompt(PROMPT, SIZES.text_encoder_tokens)
        hidden = self.encode()
        text = hidden[:, token_mask[0].bool()]
        times = flow.timesteps(settings.steps, flow.time_ratio(settings.height, settings.width, settings.frames))
        z = initial_noise((1, 4, *settings.latent_shape), seed)
        drifts = []
        for step, time in enumerate(times[: settings.evaluations]):
            drifts.append(self.drift(z, time, text, merged=step < settings.tdtm))
            conditioned, unconditioned = drifts[-1][:1], drifts[-1][1:]
            leaps = step == settings.evaluations - 1
            z = z + (unconditioned + 7.0 * (conditioned - unconditioned)) * (
                (time - (0 if leaps else times[step + 1])) / 1000
            )
        full, rest = divmod(settings.frames, 17)
        pieces = [*z[:, :, : 5 * full].split(5, dim=2), *([z[:, :, 5 * full :]] if rest else [])]
        decoded = [self.temporal(piece) for piece in pieces]
        lengths = [17] * full + [rest] * bool(rest)
        latents = torch.cat([d[0, :, d.shape[2] - n :] for d, n in zip(decoded, lengths, strict=True)], dim=1)
        pixels = [self.spatial(piece.transpose(0, 1).contiguous()) for piece in latents.split(4, dim=1)]
        return {
            "t5.final_norm": [hidden],
            "stdit.part2": drifts,
            "vae.temporal.part3": decoded,
            "vae.spatial.part4": pixels,
        }


def frames_of(pixels: list[Tensor]) -> Tensor:
    video = torch.cat(pixels).permute(0, 2, 3, 1).float()
    return torch.round((video.clamp(-1, 1) + 1) * 127.5).to(torch.uint8)


@pytest.fixture(scope="module")
def bf16_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stores") / "bf16"
    build_random_store(root, SIZES, "bf16", seed=0)
    return root


def results_of(program: RecordingProgram, block: str) -> list[Tensor]:
    return [result for name, result in program.results if name == block]


@pytest.mark.parametrize(
    ("dtype", "frames", "lpl", "tdtm"),
    [
        pytest.param("fp32", 17, "off", 0, id="fp32, plain"),
        pytest.param("fp32", 17, "off", 3, id="fp32, merged throughout"),
        pytest.param("fp32", 20, "1", 1, id="fp32, a rest of frames, a leap, merged first"),
        pytest.param("bf16", 17, "off", 0, id="bf16, plain", marks=pytest.mark.slow),
        pytest.param("bf16", 17, "off", 3, id="bf16, merged throughout", marks=pytest.mark.slow),
        pytest.param("bf16", 20, "1", 1, id="bf16, a rest of frames, a leap, merged first"),
    ],
)
def test_streaming_is_the_whole_model(tiny_store, bf16_store, dtype: Dtype, frames, lpl, tdtm):
    settings = VideoSettings(height=32, width=32, frames=frames, steps=3, lpl=lpl, tdtm=tdtm, dtype=dtype)
    root = tiny_store if dtype == "fp32" else bf16_store
    program, _ = run_policy(root, "lru", settings)
    expected = WholeModel(root, settings)(seed=1)
    for block, tensors in expected.items():
        streamed = results_of(program, block)
        assert len(streamed) == len(tensors)
        for found, tensor in zip(streamed, tensors, strict=True):
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor), block
    assert torch.equal(program.frames, frames_of(expected["vae.spatial.part4"]))


@pytest.mark.parametrize(("height", "width", "tdtm"), [(24, 42, 0), (33, 54, 2)])
def test_a_latent_with_an_odd_side_is_padded_and_cropped(tiny_store, height, width, tdtm):
    settings = VideoSettings(height=height, width=width, frames=17, steps=2, tdtm=tdtm)
    program, _ = run_policy(tiny_store, "lru", settings)
    assert program.frames.shape == (17, height // 8 * 8, width // 8 * 8, 3)
    expected = WholeModel(tiny_store, settings)(seed=1)
    assert torch.equal(program.frames, frames_of(expected["vae.spatial.part4"]))


@pytest.mark.parametrize(
    ("height", "width", "latent"), [(240, 426, (30, 53)), (360, 640, (45, 80)), (480, 854, (60, 106))]
)
def test_the_references_own_sizes_have_latents_of_whole_pixels_and_tokens_of_whole_patches(height, width, latent):
    settings = VideoSettings(height=height, width=width, frames=17)
    assert settings.latent_shape[1:] == latent
    assert settings.token_grid[1] == -(-latent[0] // 2) * -(-latent[1] // 2)
    assert settings.video_shape == (17, 8 * latent[0], 8 * latent[1])


def test_merging_changes_the_video(tiny_store):
    merged, plain = (VideoSettings(height=32, width=32, frames=17, steps=3, tdtm=tdtm) for tdtm in (3, 0))
    videos = [run_policy(tiny_store, "lru", settings)[0].frames for settings in (merged, plain)]
    assert not torch.equal(*videos)


def test_half_precision_stays_near_full_precision(tiny_store, bf16_store):
    settings = VideoSettings(height=32, width=32, frames=17, steps=1)
    half = settings.model_copy(update={"dtype": "bf16"})
    text, half_text = (
        results_of(run_policy(root, "lru", s)[0], "t5.final_norm")[0].float()
        for root, s in ((tiny_store, settings), (bf16_store, half))
    )
    assert torch.nn.functional.cosine_similarity(text, half_text, dim=-1).min() > 0.99
    assert not torch.equal(text, half_text)
