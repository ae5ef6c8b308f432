"""Which workload, policy and figure of the simulation predict which published row, and how far off they are.

Assumed throughout, because no row says otherwise: fp32, 68 frames, techniques measured one at a time, so `sequential`
where a row names none or only LPL or TDTM. Where the resolution is not printed, 256x256 and 192x192 are both
predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import PublishedError
from cidl_sim.core.timed import timed
from cidl_sim.core.trace import Trace
from cidl_sim.core.workload import Stage, Workload
from cidl_sim.devices.published import PublishedRow, Rows, row_of
from cidl_sim.pipelines.named import named_in
from cidl_sim.pipelines.open_sora.family import OPEN_SORA
from cidl_sim.pipelines.open_sora.iphone_fit import FITTED_ROWS
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import simulate
from cidl_sim.simulator.quick import checked_makespan_s

Role = Literal["fitted", "predicted", "claim"]

_MODEL = "opensora-v1.2"
_RESOLUTIONS = ("256x256", "192x192")
_NOT_PRINTED = "resolution not printed"

# Room for two pairs in flight and the workspace, not for one retained: CI without DL.
_NOTHING_RETAINED_BYTES = 1_250_000_000


@dataclass(frozen=True)
class Prediction:
    """What predicts a row: settings in words, what is assumed beyond them, and the figure in the row's terms.

    `value` gives seconds for a time and a factor otherwise.
    """

    row_id: str
    settings: str
    value: Callable[[DeviceProfile], float]
    assumed: str = ""


@dataclass(frozen=True)
class PublishedComparison:
    """A published row beside its prediction (None where nothing predicts it)."""

    row: PublishedRow
    role: Role
    settings: str = ""
    assumed: str = ""
    predicted: float | None = None

    @property
    def published(self) -> float:
        """The published figure: seconds, or a factor or rate as printed."""
        return self.row.seconds if self.row.is_time else self.row.value

    @property
    def error(self) -> float | None:
        """Relative difference of the prediction from the published figure, signed."""
        return None if self.predicted is None else self.predicted / self.published - 1


def compare_published(rows: Rows, device: DeviceProfile) -> list[PublishedComparison]:
    """Every row in its order, predicted on `device` as often as there are predictions for it.

    PublishedError if a prediction names a row that is not there.
    """
    by_row: dict[str, list[Prediction]] = {}
    for prediction in PREDICTIONS:
        by_row.setdefault(row_of(rows, prediction.row_id).id, []).append(prediction)
    comparisons = []
    for row in rows.values():
        role: Role = "fitted" if row.id in FITTED_ROWS else "claim" if row.claim else "predicted"
        for p in by_row.get(row.id, ()):
            comparisons.append(PublishedComparison(row, role, p.settings, p.assumed, p.value(device)))
        if row.id not in by_row:
            comparisons.append(PublishedComparison(row, role))
    return comparisons


def _simulated(workload: Workload, policy: str, device: DeviceProfile) -> Trace:
    return simulate(workload, device, make_plan(policy, workload, device))


def _pipeline_s(name: str, policy: str, groups: Sequence[str], device: DeviceProfile) -> float:
    trace = _simulated(named_in(OPEN_SORA, name), policy, device)
    return sum(trace.groups[group]["elapsed_s"] for group in groups)


def denoiser_alone(resolution: str, *, merged: int = 0, plain: int = 0) -> Workload:
    """The denoiser's stages of Open-Sora v1.2 at 68 frames with so many merged and plain steps."""
    source = named_in(OPEN_SORA, f"{_MODEL}-256x256-68f-lpl15-tdtm10" if merged else f"{_MODEL}-{resolution}-68f")
    if merged and resolution != "256x256":
        raise PublishedError(f"no workload with merged tokens at {resolution}")
    steps = {"denoiser.merged": merged, "denoiser": plain}
    stages: list[Stage] = [
        stage.model_copy(update={"rounds": steps[stage.name]}) for stage in source.stages if steps.get(stage.name)
    ]
    return Workload(name=f"{_MODEL}-{resolution}-68f, denoiser alone", stages=tuple(stages))


def _denoiser_s(workload: Workload, policy: str, device: DeviceProfile) -> float:
    return checked_makespan_s(timed(workload, device), make_plan(policy, workload, device))


def _step_s(resolution: str, policy: str, step: int, device: DeviceProfile) -> float:
    """Seconds of one step, counted from 0: from the end of the step before it to its own end."""
    workload = denoiser_alone(resolution, plain=step + 1)
    blocks = len(workload.stages[0].blocks)
    ends = [span.end_s for span in _simulated(workload, policy, device).of("execute")]
    return ends[-1] - (ends[-1 - blocks] if step else 0.0)


def _dl_gain_s(resolution: str, device: DeviceProfile) -> float:
    workload = denoiser_alone(resolution, plain=30)
    without = device.model_copy(update={"memory_limit_bytes": _NOTHING_RETAINED_BYTES})
    return _denoiser_s(workload, "on_device_sora", without) - _denoiser_s(workload, "on_device_sora", device)


def _leap_speed_up(evaluations: float, device: DeviceProfile) -> float:
    """30 evaluations over fewer; a mean number between two whole ones is interpolated."""
    below = int(evaluations)
    times = [_denoiser_s(denoiser_alone("256x256", plain=n), "sequential", device) for n in (below, below + 1)]
    with_leap = times[0] + (evaluations - below) * (times[1] - times[0])
    return _denoiser_s(denoiser_alone("256x256", plain=30), "sequential", device) / with_leap


def _merge_speed_up(merged: int, device: DeviceProfile) -> float:
    plain = _denoiser_s(denoiser_alone("256x256", plain=30), "sequential", device)
    return plain / _denoiser_s(denoiser_alone("256x256", merged=merged, plain=30 - merged), "sequential", device)


def _all_techniques_speed_up(device: DeviceProfile) -> float:
    groups = ("text_encoder", "denoiser", "decoder")
    without = _pipeline_s(f"{_MODEL}-256x256-68f", "sequential", groups, device)
    return without / _pipeline_s(f"{_MODEL}-256x256-68f-lpl15-tdtm10", "on_device_sora", groups, device)


def _warm_load_s(weight_bytes: int, device: DeviceProfile) -> float:
    if device.loader.bandwidth_bytes_per_s is None:
        raise PublishedError(f"{device.name}: loader.bandwidth_bytes_per_s is needed")
    return weight_bytes / device.loader.bandwidth_bytes_per_s


def _first_load_s(weight_bytes: int, device: DeviceProfile) -> float:
    block = device.measured.get("t5.block")
    if block is None or not block.cold_load_s or not block.weight_bytes:
        raise PublishedError(f"{device.name}: measured.t5.block.cold_load_s and weight_bytes are needed")
    return weight_bytes * block.cold_load_s / block.weight_bytes


def _pipeline(row_id: str, name: str, policy: str, groups: Sequence[str], assumed: str = "") -> Prediction:
    settings = f"{name}, {policy}: {' + '.join(groups).replace('_', ' ')}"
    return Prediction(row_id, settings, partial(_pipeline_s, f"{_MODEL}-{name}", policy, groups), assumed)


def _totals(resolution: str) -> list[Prediction]:
    size, everything = resolution[:3], ("text_encoder", "denoiser", "decoder")
    return [
        _pipeline(f"lpl15.{size}.stdit", f"{resolution}-68f-lpl15", "sequential", ["denoiser"]),
        _pipeline(f"lpl15.{size}.total", f"{resolution}-68f-lpl15", "sequential", everything),
        _pipeline(f"ci_dl.{size}.stdit", f"{resolution}-68f", "on_device_sora", ["denoiser"]),
        _pipeline(f"ci_dl.{size}.total", f"{resolution}-68f", "on_device_sora", everything),
    ]


def _steps(resolution: str) -> list[Prediction]:
    """What concurrent inference does to a step and to a run, at a resolution that the source does not print."""
    assumed = f"{_NOT_PRINTED}; {resolution} taken"
    result = []
    for suffix, policy in (("without", "sequential"), ("with", "on_device_sora")):
        for row_id, step, words in (("ci.step", 1, "the second step"), ("ci.first_step", 0, "the first step")):
            value = partial(_step_s, resolution, policy, step)
            result.append(Prediction(f"{row_id}_{suffix}", f"{resolution}-68f, {policy}: {words}", value, assumed))
        run = partial(_denoiser_s, denoiser_alone(resolution, plain=30), policy)
        result.append(Prediction(f"ci.run_{suffix}", f"{resolution}-68f, {policy}: 30 steps", run, assumed))
    return result


def _components() -> list[Prediction]:
    name, assumed = "256x256-68f-50s", f"{_NOT_PRINTED}; 256x256 taken"
    step = Prediction(
        "components.stdit_step",
        f"{name}, sequential: denoiser / 50",
        lambda device: _pipeline_s(f"{_MODEL}-{name}", "sequential", ["denoiser"], device) / 50,
        assumed,
    )
    return [
        _pipeline("components.t5", name, "sequential", ["text_encoder"]),
        step,
        _pipeline("components.stdit", name, "sequential", ["denoiser"], assumed),
        _pipeline("components.vae", name, "sequential", ["decoder"], assumed),
        _pipeline("components.sum", name, "sequential", ("text_encoder", "denoiser", "decoder"), assumed),
        _pipeline("t5.sequential", "256x256-68f", "sequential", ["text_encoder"]),
        _pipeline("t5.ci", "256x256-68f", "on_device_sora", ["text_encoder"]),
    ]


def _retention() -> Prediction:
    settings = "256x256-68f, on_device_sora: 30 steps, nothing retained less some retained"
    assumed = f"{_NOT_PRINTED}, but the loads that are saved are the same at any"
    return Prediction("dl.gain", settings, partial(_dl_gain_s, "256x256"), assumed)


def _speed_ups() -> list[Prediction]:
    assumed = f"{_NOT_PRINTED}; 256x256 taken; the denoiser alone, sequential"
    leaps = {"16": 16, "21": 21, "23": 23, "25": 25, "dynamic": 17.73}
    result = [
        Prediction(f"lpl.speed_up.{n}", f"30 steps / {count}", partial(_leap_speed_up, count), assumed)
        for n, count in leaps.items()
    ]
    for k in (30, 25, 20, 15, 10):
        settings = f"30 steps / 30 steps, {k} merged"
        result.append(Prediction(f"tdtm.speed_up.{k}", settings, partial(_merge_speed_up, k), assumed))
    settings = "256x256-68f, 30 steps: sequential / on_device_sora with lpl15 and tdtm10"
    return [*result, Prediction("claim.ten_times", settings, _all_techniques_speed_up, "settings not printed")]


def _core_ml_loads() -> list[Prediction]:
    """Loads of other apps, from the two rates that the phone's fit gives."""
    load, encoder = "dictus.iphone-15-pro.load", "fluidaudio.encoder"
    later, first = "at the rate of STDiT's later loads", "at the rate of T5's (first) loads"
    other = "another phone than the one the rate was fitted on"
    return [
        Prediction(load, later, partial(_warm_load_s, 1_800_000_000), "a later load"),
        Prediction(load, first, partial(_first_load_s, 1_800_000_000), "a first load"),
        Prediction(f"{encoder}.iphone-16-pro-max.cold", first, partial(_first_load_s, 426_000_000), other),
        Prediction(f"{encoder}.iphone-16-pro-max.warm", later, partial(_warm_load_s, 426_000_000), other),
        Prediction(f"{encoder}.iphone-13.cold", first, partial(_first_load_s, 426_000_000), other),
    ]


PREDICTIONS: tuple[Prediction, ...] = (
    *_components(),
    *(prediction for resolution in _RESOLUTIONS for prediction in _totals(resolution)),
    *(prediction for resolution in _RESOLUTIONS for prediction in _steps(resolution)),
    _retention(),
    *_speed_ups(),
    *_core_ml_loads(),
)
