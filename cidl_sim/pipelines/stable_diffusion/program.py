"""Text to image, block by block: feeds each block of the pipeline and keeps what comes out.

The program is the same whoever runs the blocks: the streaming executor, the all-resident control or a test with whole
modules.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cidl_sim.blocks.pieces import NetworkState
from cidl_sim.core.workload import Visit, Workload
from cidl_sim.executor.backend import Call, Outcome
from cidl_sim.pipelines.latents import check_latent, check_pixels
from cidl_sim.pipelines.pipeline import State
from cidl_sim.pipelines.stable_diffusion.prompt import Text
from cidl_sim.pipelines.stable_diffusion.settings import ImageSettings, ImageSizes
from cidl_sim.pipelines.stable_diffusion.stages import networks_of
from cidl_sim.pipelines.stable_diffusion.tiling import TiledImage
from cidl_sim.sampling.latents import guided, guided_batch, initial_noise
from cidl_sim.sampling.samplers import make_sampler

# Noise of later steps is drawn by seeds that no run is given.
_SEEDS = 2**32


class TextToImage:
    """One image in the making.

    `texts`: of each text encoder the prompt's tokens and, with guidance, those of what the image is to be unlike; None
    in their place for no text at all, which SDXL was trained on as zeros. `guidance`: the scale.
    """

    def __init__(
        self,
        workload: Workload,
        sizes: ImageSizes,
        settings: ImageSettings,
        texts: list[list[Text | None]],
        seed: int,
        *,
        guidance: float,
        device: str = "cpu",
        stops_where_not_finite: bool = True,
    ) -> None:
        self._workload, self._sizes, self._settings = workload, sizes, settings
        self._texts, self._seed, self._guidance = texts, seed, guidance
        self._device, self._stops_where_not_finite = device, stops_where_not_finite
        own = networks_of(sizes, settings)
        self._encoders = [NetworkState(network) for network in own.text_encoders]
        self._unet = NetworkState(own.unet)
        self._tiles = settings.tiles(sizes.decoder.factor)
        self._decoders = {shape: NetworkState(network) for shape, network in own.decoders.items()}
        self._sampler = make_sampler(settings.sampler, settings.steps, sizes.prediction)
        shape = (1, sizes.unet.latent_channels, *settings.latent_size(sizes.decoder.factor))
        # Drawn on the CPU, so that a seed means the same everywhere.
        self._z = (initial_noise(shape, seed) * self._sampler.first_deviation).to(device)
        self._hidden = torch.empty(0)
        # By text encoder the states of each half, (1, tokens, width); of the last encoder its pooled texts.
        self._states: list[list[Tensor]] = [[] for _ in self._encoders]
        self._pooled: list[Tensor] = []
        self._first_half: Tensor | None = None
        self._image = TiledImage(self._tiles, settings.tile, sizes.decoder.factor)
        self.evaluations = 0

    def run(self, visit: Visit, block: Call) -> Outcome:
        """Feed the block of this visit and keep its result."""
        group = self._workload.stages[visit.stage].group
        with torch.no_grad():
            return {"text_encoder": self._encode, "denoiser": self._denoise, "decoder": self._decode}[group](
                visit, block
            )

    @property
    def token_ids(self) -> Tensor:
        """The ids of all texts, flat."""
        return torch.cat([text.ids.reshape(-1) for texts in self._texts for text in texts if text is not None])

    def result(self) -> Tensor:
        """The image, (H, W, 3) in 8-bit RGB."""
        return self._image.pixels

    # Between two denoising steps

    def state(self) -> State:
        """What the rest of the run depends on after a denoising step: tensors, and values that JSON can hold."""
        tensors = {"z": self._z, **{f"sampler.{name}": t for name, t in self._sampler.memory().items()}}
        for i, states in enumerate(self._states):
            tensors |= {f"text.{i}.{half}": states[half] for half in range(len(states))}
        tensors |= {f"pooled.{half}": pooled for half, pooled in enumerate(self._pooled)}
        # Some of them may be one tensor: a sampler's last clean latent is the latent at the end.
        saved = {name: tensor.cpu().clone() for name, tensor in tensors.items()}
        return saved, {"evaluations": self.evaluations}

    def restore(self, state: State) -> None:
        """Be as after the denoising step at which `state` was taken."""
        tensors, values = {name: tensor.to(self._device) for name, tensor in state[0].items()}, state[1]
        self._z, self.evaluations = tensors["z"], values["evaluations"]
        halves = range(self._settings.halves)
        self._states = [[tensors[f"text.{i}.{half}"] for half in halves] for i in range(len(self._encoders))]
        self._pooled = [tensors[f"pooled.{half}"] for half in halves if f"pooled.{half}" in tensors]
        memory = {n.removeprefix("sampler."): t for n, t in tensors.items() if n.startswith("sampler.")}
        self._sampler.recall(memory)

    # Text encoders

    def _encode(self, visit: Visit, block: Call) -> Outcome:
        stage, encoder = self._workload.stages[visit.stage], self._encoders[visit.stage]
        text = self._texts[visit.stage][visit.round]
        assert text is not None  # the round of no text is never begun
        hidden = text.ids if visit.position == 0 else self._hidden
        self._hidden = encoder.run(visit.block.name, block, hidden, ends=text.ends)
        if visit.position < len(stage.blocks) - 1:
            return Outcome()
        states, pooled = self._states[visit.stage], list(encoder.results().values())
        states.append(self._hidden)
        self._pooled += pooled
        self._hidden = torch.empty(0)
        if visit.round + 1 < stage.rounds and self._texts[visit.stage][visit.round + 1] is None:
            # As SDXL was trained: no text is zeros. What that round would compute is not asked for.
            states.append(torch.zeros_like(states[0]))
            self._pooled += [torch.zeros_like(one) for one in pooled]
            return Outcome(end_stage=visit.stage)
        return Outcome()

    # Denoiser

    def _denoise(self, visit: Visit, block: Call) -> Outcome:
        stage, settings = self._workload.stages[visit.stage], self._settings
        calls = 2 if settings.guidance == "split" else 1
        evaluation, half = divmod(visit.round, calls)
        given: dict[str, Tensor] = {}
        if visit.position == 0:
            given = self._conditions(evaluation, half)
            self._hidden = self._sampler.asked(evaluation, self._z).repeat(settings.batch, 1, 1, 1)
        self._hidden = self._unet.run(visit.block.name, block, self._hidden, **given)
        if visit.position < len(stage.blocks) - 1:
            return Outcome()
        output, self._hidden = self._hidden.float(), torch.empty(0)
        if settings.guidance == "batch":
            output = guided_batch(output, self._guidance)
        elif settings.guidance == "split" and half == 0:
            self._first_half = output
            return Outcome()
        elif self._first_half is not None:
            output, self._first_half = guided(self._first_half, output, self._guidance), None
        self._z = self._sampler.step(evaluation, self._z, output, lambda: self._noise(evaluation))
        self.evaluations = evaluation + 1
        if self._stops_where_not_finite:
            check_latent(self._z, evaluation, settings.evaluations)
        return Outcome()

    def _conditions(self, evaluation: int, half: int) -> dict[str, Tensor]:
        """What the UNet takes beside the latent: of one half of the guidance, or of all that run in one batch."""
        halves = range(self._settings.halves) if self._settings.guidance == "batch" else [half]
        text = [torch.cat([states[h] for states in self._states], dim=-1) for h in halves]
        given = {"t": torch.tensor([float(self._sampler.times[evaluation])]), "text": torch.cat(text)}
        if self._pooled:
            given["pooled"] = torch.cat([self._pooled[h] for h in halves])
            height, width = float(self._settings.height), float(self._settings.width)
            # Size of the original, where it was cropped, size of the result.
            given["image"] = torch.tensor([[height, width, 0.0, 0.0, height, width]]).repeat(len(text), 1)
        return given

    def _noise(self, evaluation: int) -> Tensor:
        shape = tuple(self._z.shape)
        return initial_noise(shape, self._seed + (evaluation + 1) * _SEEDS).to(self._z.device)

    # Decoder

    def _decode(self, visit: Visit, block: Call) -> Outcome:
        stages = self._workload.stages
        index = visit.round + sum(s.rounds for s in stages[: visit.stage] if s.group == "decoder")
        top, left, height, width = self._tiles[index]
        decoder = self._decoders[height, width]
        if visit.position == 0:
            self._hidden = self._z[:, :, top : top + height, left : left + width]
        self._hidden = decoder.run(visit.block.name, block, self._hidden)
        if visit.position == len(stages[visit.stage].blocks) - 1:
            if self._stops_where_not_finite:
                check_pixels(self._hidden)
            self._image.put(index, self._hidden.float().cpu())
            self._hidden = torch.empty(0)
        return Outcome()
