"""Text to video, block by block: feeds each block of the pipeline and keeps what comes out.

The program is the same whoever runs the blocks: the streaming executor, the all-resident control or a
test with whole modules.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cidl_sim.blocks.definition import TORCH_DTYPES
from cidl_sim.core.workload import Visit, Workload
from cidl_sim.executor.backend import Call, Outcome, StepEvent
from cidl_sim.models.sizes import spatial_chunks, temporal_chunks
from cidl_sim.models.t5 import additive_mask
from cidl_sim.pipelines.latents import check_latent, check_pixels
from cidl_sim.pipelines.open_sora.prompt import Tokens
from cidl_sim.pipelines.open_sora.settings import FRAMES_PER_SECOND, OpenSoraSizes, VideoSettings
from cidl_sim.pipelines.pipeline import State
from cidl_sim.sampling import rectified_flow as flow
from cidl_sim.sampling.latents import guided_batch, initial_noise
from cidl_sim.sampling.linear_proportional_leap import DynamicLeap, StoppingRule, stopping_rule


class TextToVideo:
    """One video in the making. `frames` holds the result, (F, H, W, 3) in 8-bit RGB.

    `rule`: when dynamic LPL leaps, the paper's by default.
    """

    def __init__(
        self,
        workload: Workload,
        sizes: OpenSoraSizes,
        settings: VideoSettings,
        tokens: Tokens,
        seed: int,
        *,
        rule: StoppingRule | None = None,
        device: str = "cpu",
        stops_where_not_finite: bool = True,
    ) -> None:
        self._workload = workload
        self._sizes = sizes
        self._settings = settings
        self._dtype = TORCH_DTYPES[settings.dtype]
        self._ids, self._token_mask = tokens
        self._mask = additive_mask(self._token_mask, self._dtype)
        self._hidden = torch.empty(0)
        self._position_bias: Tensor | None = None
        self._text = torch.empty(0)
        ratio = flow.time_ratio(settings.height, settings.width, settings.frames)
        self._times = flow.timesteps(settings.steps, ratio)
        # Drawn on the CPU, so that a seed means the same everywhere.
        self._z = initial_noise((1, sizes.stdit.in_channels, *settings.latent_shape), seed).to(device)
        self._device = device
        self._stops_where_not_finite = stops_where_not_finite
        rule = rule or stopping_rule("paper", settings.steps)
        self._leap = DynamicLeap(rule) if settings.lpl == "dynamic" else None
        self._conditioning: tuple[Tensor, ...] = ()
        self._decoded: list[Tensor] = []
        self.frames = torch.empty((*settings.video_shape, 3), dtype=torch.uint8)
        self.evaluations = 0

    def run(self, visit: Visit, block: Call) -> Outcome:
        """Feed the block of this visit and keep its result."""
        part, _, rest = visit.block.name.partition(".")
        with torch.no_grad():
            if part == "t5":
                return self._encode_text(rest, block)
            if part == "stdit":
                return self._denoise(visit, rest, block)
            return self._decode(visit, rest, block)

    @property
    def token_ids(self) -> Tensor:
        """The ids of the prompt's tokens, (1, length)."""
        return self._ids

    def result(self) -> Tensor:
        """The frames, (F, H, W, 3) in 8-bit RGB."""
        return self.frames

    # Between two denoising steps

    def state(self) -> State:
        """What the rest of the run depends on after a denoising step: tensors, and values that JSON can hold."""
        tensors = {"z": self._z.cpu(), "text": self._text.cpu()}
        values: dict[str, Any] = {"evaluations": self.evaluations}
        if self._leap is not None:
            previous, values["best"], values["left"] = self._leap.state()
            if previous is not None:
                tensors["drift"] = previous.cpu()
        return tensors, values

    def restore(self, state: State) -> None:
        """Be as after the denoising step at which `state` was taken."""
        tensors, values = {name: tensor.to(self._device) for name, tensor in state[0].items()}, state[1]
        self._z, self._text, self.evaluations = tensors["z"], tensors["text"], values["evaluations"]
        if self._leap is not None:
            self._leap.restore(tensors.get("drift"), values["best"], values["left"])

    # Text encoder

    def _encode_text(self, name: str, block: Call) -> Outcome:
        if name == "embedding":
            self._hidden = block(self._ids)
        elif name.endswith("feed_forward"):
            self._hidden = block(self._hidden)
        elif name == "final_norm":
            # Both halves of the guidance use the prompt's mask, so padding can be cut here once and for all.
            self._text = block(self._hidden)[:, : int(self._token_mask.sum())].contiguous()
            self._hidden, self._position_bias = torch.empty(0), None
        elif self._position_bias is None:
            self._hidden, self._position_bias = block(self._hidden, self._mask)
        else:
            self._hidden = block(self._hidden, self._mask, self._position_bias)
        return Outcome()

    # Denoiser

    def _denoise(self, visit: Visit, name: str, block: Call) -> Outcome:
        step = self._step_of(visit)
        if name == "part1":
            fps = torch.tensor([float(FRAMES_PER_SECOND)])
            self._hidden, *conditioning = block(self._z, torch.tensor([self._times[step]]), fps, self._text)
            self._conditioning = tuple(conditioning)
            return Outcome()
        t, t_mlp, y, frequencies = self._conditioning
        if name != "part2":
            self._hidden = block(self._hidden, y, t_mlp, frequencies)
            return Outcome()
        drift = guided_batch(block(self._hidden, t), self._sizes.guidance)
        self._hidden, self._conditioning = torch.empty(0), ()
        return self._advance(visit, step, drift)

    def _advance(self, visit: Visit, step: int, drift: Tensor) -> Outcome:
        settings = self._settings
        self.evaluations = step + 1
        similarity, leaps = self._leap.observe(step, drift) if self._leap else (None, False)
        leaps = leaps or (settings.lpl.isdigit() and step == int(settings.lpl))
        dt = self._times[step] if leaps else flow.step_length(self._times, step)
        self._z = flow.moved(self._z, drift, dt)
        if self._stops_where_not_finite:
            check_latent(self._z, step, settings.steps)
        events: tuple[StepEvent, ...] = ()
        if similarity is not None:
            events = (("drift_similarity", {"step": step, "value": similarity}),)
        ends_early = leaps and self._leap is not None and step + 1 < settings.steps
        return Outcome(end_stage=self._last_denoiser_stage() if ends_early else None, events=events)

    def _step_of(self, visit: Visit) -> int:
        stages = self._workload.stages
        before = sum(stage.rounds for stage in stages[: visit.stage] if stage.group == "denoiser")
        return before + visit.round

    def _last_denoiser_stage(self) -> int:
        return max(s for s, stage in enumerate(self._workload.stages) if stage.group == "denoiser")

    # Decoder

    def _decode(self, visit: Visit, name: str, block: Call) -> Outcome:
        stage = self._workload.stages[visit.stage]
        is_first, is_last = visit.position == 0, visit.position == len(stage.blocks) - 1
        temporal = name.startswith("temporal")
        offset = self._pieces_before(visit, "decoder.temporal" if temporal else "decoder.spatial")
        if is_first:
            self._hidden = self._latent_piece(offset) if temporal else self._frame_piece(offset)
        self._hidden = block(self._hidden)
        if is_last and temporal:
            chunk = self._pieces(temporal=True)[offset]
            # The decoder gives whole groups of four frames; those of the causal padding come first.
            self._decoded.append(self._hidden[:, :, -chunk:])
        elif is_last:
            self._keep_frames(offset)
        return Outcome()

    def _pieces(self, *, temporal: bool) -> list[int]:
        chunks = temporal_chunks(self._settings.frames) if temporal else spatial_chunks(self._settings.frames)
        return [chunk.frames for chunk in chunks for _ in range(chunk.rounds)]

    def _pieces_before(self, visit: Visit, prefix: str) -> int:
        stages = self._workload.stages
        return sum(s.rounds for s in stages[: visit.stage] if s.name.startswith(prefix)) + visit.round

    def _latent_piece(self, index: int) -> Tensor:
        lengths = [c.latent_frames for c in temporal_chunks(self._settings.frames) for _ in range(c.rounds)]
        start = sum(lengths[:index])
        return self._z[:, :, start : start + lengths[index]]

    def _frame_piece(self, index: int) -> Tensor:
        pieces = self._pieces(temporal=False)
        start = sum(pieces[:index])
        decoded = torch.cat(self._decoded, dim=2)[0, :, start : start + pieces[index]]
        return decoded.transpose(0, 1).contiguous()

    def _keep_frames(self, index: int) -> None:
        pieces = self._pieces(temporal=False)
        start = sum(pieces[:index])
        if self._stops_where_not_finite:
            check_pixels(self._hidden)
        pixels = ((self._hidden.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        self.frames[start : start + pieces[index]] = pixels.permute(0, 2, 3, 1)
        self._hidden = torch.empty(0)
