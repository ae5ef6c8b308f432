"""What it runs on: memory, loader, executor, measured costs, each figure with its provenance."""

from __future__ import annotations

import tomllib
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from cidl_sim.core.errors import DeviceError
from cidl_sim.core.files import Record, read_text, sha256_of, validated, write_text
from cidl_sim.core.quantities import MAX_BYTES

Mark = Literal["measured", "published", "derived", "assumed"]
# Beyond these magnitudes products and quotients of figures would be no numbers any more.
LEAST, MOST = 1e-100, 1e100


def _computable(value: float) -> float:
    if value and not LEAST <= value <= MOST:
        raise ValueError(f"{value:g} is beyond the magnitudes that are computed with, {LEAST:g} to {MOST:g}")
    return value


Rate = Annotated[float, Field(gt=0), AfterValidator(_computable)]
Seconds = Annotated[float, Field(ge=0, le=MOST)]
Slowdown = Annotated[float, Field(ge=1, le=1e9)]
Deviation = Annotated[float, Field(ge=0, le=1e6)]


class Loader(Record):
    """The CPU side: `channels` loads at a time that share `bandwidth_bytes_per_s` equally.

    `first_touch_bytes_per_s`: at which memory that nothing used before becomes usable (faults, pages of zeros), in
    addition to the load that touches it (None: at no cost).
    """

    channels: int = Field(default=1, ge=1, le=64)
    latency_s: Seconds = 0.0
    bandwidth_bytes_per_s: Rate | None = None
    slowdown_while_executing: Slowdown = 1.0
    first_touch_bytes_per_s: Rate | None = None


class Executor(Record):
    """The accelerator side: a roofline of `flops_per_s * efficiency` and memory bandwidth.

    `threads`: with how many the executor computes where it is a processor (None: all cores but the loader's).
    """

    flops_per_s: Rate | None = None
    efficiency: Annotated[Rate, Field(le=1)] = 1.0
    memory_bandwidth_bytes_per_s: Rate | None = None
    launch_s: Seconds = 0.0
    slowdown_while_loading: Slowdown = 1.0
    threads: int | None = Field(default=None, ge=1)


class Measured(Record):
    """Costs measured for one block kind, and the size they were measured at: bytes of weights, flops, bytes moved.

    `samples`, the relative standard deviations `load_spread` and `exec_spread`, and `workspace_bytes`, the memory
    beyond weights that a visit really took, say how good the figures are; no simulation depends on them.
    """

    load_s: Seconds | None = None
    cold_load_s: Seconds | None = None
    exec_s: Seconds | None = None
    weight_bytes: int | None = Field(default=None, ge=0)
    flops: float | None = Field(default=None, ge=0)
    bytes_moved: float | None = Field(default=None, ge=0)
    samples: int | None = Field(default=None, ge=0)
    load_spread: float | None = Field(default=None, ge=0)
    exec_spread: float | None = Field(default=None, ge=0)
    workspace_bytes: int | None = Field(default=None, ge=0)

    @model_serializer(mode="wrap")
    def _bytes_moved_if_known(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Profiles from before keep their identity.
        data: dict[str, Any] = handler(self)
        if self.bytes_moved is None:
            data.pop("bytes_moved", None)
        return data


class ThreadChoice(Record):
    """What is different where the executor computes with another number of `threads`: executions, and contention.

    `exec_s`: by kind of block, in seconds. The other fields are those of `Executor` and `Loader`.
    """

    threads: int = Field(ge=1)
    exec_s: dict[str, Seconds] = Field(default_factory=dict)
    flops_per_s: Rate | None = None
    launch_s: Seconds = 0.0
    slowdown_while_loading: Slowdown = 1.0
    slowdown_while_executing: Slowdown = 1.0


class Noise(Record):
    """Relative standard deviations of log-normal factors: on each load and execution, and on all of a run.

    The drifts are shared by all loads, or all executions, of one run: shared hardware is slower for minutes.
    """

    load: Deviation = 0.0
    execute: Deviation = 0.0
    load_drift: Deviation = 0.0
    execute_drift: Deviation = 0.0


class ThermalStep(Record):
    """From `after_s` seconds into the run on, the executor's rate is multiplied by `factor`."""

    after_s: Seconds
    factor: Rate


class Figure(Record):
    """Where one figure of the profile comes from, and between what it lies in nine of ten cases, if that is known."""

    source: str
    mark: Mark
    low: float | None = None
    high: float | None = None

    @model_serializer(mode="wrap")
    def _known_ends_only(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Profiles from before keep their identity.
        data: dict[str, Any] = handler(self)
        return {name: value for name, value in data.items() if name in ("source", "mark") or value is not None}


class Provenance(Record):
    """Device, operating system, and the source of each figure by its dotted key.

    Of a measured profile also the date, the versions of the software, and `process_bytes`: what the kernel charged
    the process before the arena existed (`baseline_bytes` adds what libraries take beyond the accounted workspaces).
    """

    device: str = ""
    os: str = ""
    source: str = ""
    mark: Mark | None = None
    date: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    process_bytes: int | None = Field(default=None, ge=0)
    figures: dict[str, Figure] = Field(default_factory=dict)


class CoreML(Record):
    """Of a device that runs packages with Core ML, which keeps what a model's first load prepares for the device.

    So cold loads are those of the first run, and of every run after the system has thrown away what was prepared.
    `compute_units`: those that the costs were measured with. `compile_s` and `compiled_bytes`, by kind of block: of
    making a compiled model of a package; no simulation depends on them.
    """

    compute_units: str | None = None
    compile_s: dict[str, Seconds] = Field(default_factory=dict)
    compiled_bytes: dict[str, Annotated[int, Field(ge=0, le=MAX_BYTES)]] = Field(default_factory=dict)


class DeviceProfile(Record):
    """A device as the simulator and the planner see it (file format `cidl-device/1`, TOML).

    `coreml` is None where cold loads come in every run, the first of a block's weights each. `other_threads`: with how
    many threads the executor may compute instead; every figure elsewhere is of `executor.threads`.
    """

    format: Literal["cidl-device/1"] = "cidl-device/1"
    name: str = Field(min_length=1)
    memory_limit_bytes: int = Field(gt=0, le=MAX_BYTES)
    baseline_bytes: int = Field(default=0, ge=0, le=MAX_BYTES)
    loader: Loader = Loader()
    executor: Executor = Executor()
    measured: dict[str, Measured] = Field(default_factory=dict)
    noise: Noise = Noise()
    thermal: tuple[ThermalStep, ...] = ()
    other_threads: tuple[ThreadChoice, ...] = ()
    coreml: CoreML | None = None
    provenance: Provenance = Provenance()

    @model_validator(mode="after")
    def _thermal_steps_are_ordered(self) -> DeviceProfile:
        times = [step.after_s for step in self.thermal]
        if times != sorted(set(times)):
            raise ValueError("thermal: after_s must increase from step to step")
        return self

    @model_validator(mode="after")
    def _every_number_of_threads_is_there_once(self) -> DeviceProfile:
        numbers = self.thread_numbers
        if self.other_threads and (None in numbers or len(set(numbers)) < len(numbers)):
            raise ValueError("other_threads: executor.threads has to say a number, and each may be there once")
        return self

    @cached_property
    def sha256(self) -> str:
        """Identity of the profile: the SHA-256 of its canonical JSON."""
        # Other devices keep the identity that recorded runs know them by.
        unused = {name for name in ("coreml", "other_threads") if not getattr(self, name)}
        return sha256_of(self.model_dump(mode="json", exclude=unused))

    def to_toml(self) -> str:
        """The profile as the text of a device file."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def write(self, path: Path) -> None:
        """Write the device file in one step."""
        write_text(path, self.to_toml())

    @property
    def thread_numbers(self) -> tuple[int | None, ...]:
        """With how many threads the executor may compute, its own number first."""
        return (self.executor.threads, *(choice.threads for choice in self.other_threads))

    @property
    def thread_choice(self) -> ThreadChoice:
        """What holds with the number of threads that the executor computes with."""
        executor = self.executor
        return ThreadChoice(
            threads=executor.threads or 1,
            exec_s={kind: m.exec_s for kind, m in self.measured.items() if m.exec_s is not None},
            flops_per_s=executor.flops_per_s,
            launch_s=executor.launch_s,
            slowdown_while_loading=executor.slowdown_while_loading,
            slowdown_while_executing=self.loader.slowdown_while_executing,
        )

    def with_threads(self, threads: int | None) -> DeviceProfile:
        """The same device computing with `threads`; what holds now becomes one of `other_threads`.

        As it is for None, and where only one number was measured. DeviceError where others were, but not this one.
        """
        if threads in (None, self.executor.threads) or not self.other_threads:
            return self
        found = next((choice for choice in self.other_threads if choice.threads == threads), None)
        if found is None:
            raise DeviceError(f"{self.name}: executions were not measured with {threads} compute threads")
        others = [self.thread_choice, *(choice for choice in self.other_threads if choice is not found)]
        shared = {"flops_per_s", "launch_s", "slowdown_while_loading", "threads"}
        kinds = [*self.measured, *(kind for kind in found.exec_s if kind not in self.measured)]
        return self.model_copy(
            update={
                "executor": self.executor.model_copy(update=found.model_dump(include=shared)),
                "loader": self.loader.model_copy(update={"slowdown_while_executing": found.slowdown_while_executing}),
                "measured": {
                    kind: self.measured.get(kind, Measured()).model_copy(update={"exec_s": found.exec_s.get(kind)})
                    for kind in kinds
                },
                "other_threads": tuple(sorted(others, key=lambda choice: choice.threads)),
            }
        )

    def without_cold_loads(self) -> DeviceProfile:
        """The device once everything was loaded there before."""
        warm = {kind: m.model_copy(update={"cold_load_s": None}) for kind, m in self.measured.items()}
        return self.model_copy(update={"measured": warm})


def read_device(path: Path) -> DeviceProfile:
    """Read and validate a device file; DeviceError names the file and the field."""
    try:
        data = tomllib.loads(read_text(path, DeviceError))
    except tomllib.TOMLDecodeError as problem:
        raise DeviceError(f"{path}: not TOML ({problem})") from None
    return validated(DeviceProfile, data, str(path), DeviceError)
