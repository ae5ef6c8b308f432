"""What a sweep goes through: axes with their values, a grid of all of them or a sample (file format `cidl-sweep/1`)."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InputError
from cidl_sim.core.files import Record, read_text, sha256_of, validated
from cidl_sim.core.progress import Progress, silent
from cidl_sim.core.quantities import is_size, parse_size
from cidl_sim.core.what_if import with_value
from cidl_sim.core.workload import Workload
from cidl_sim.devices.catalog import find_device
from cidl_sim.pipelines.catalog import (
    axis_values,
    canonical_name,
    find_workload,
    parse_name,
    pipeline_of,
    setting_axes,
)
from cidl_sim.pipelines.named import merged_settings
from cidl_sim.policies.build import repeated_positions, repeating_groups
from cidl_sim.policies.catalog import POLICIES
from cidl_sim.policies.retained import KEEPS

MOST_POINTS = 1_000_000_000
MOST_VALUES = 1_000_000
MOST_WORKLOADS = 1_000
# Policies of which a number of retained blocks, and a lookahead, can be chosen; the others decide for themselves.
RANDOM = "random"
PATTERNS = (*KEEPS, RANDOM)
POLICY_AXES = ("policy", "retained", "lookahead", "pattern_seed")
DEEP = "deep"

_RANGE = re.compile(r"(?P<first>[^.,]\S*?)\.\.(?P<last>[^/]+?)(/(?P<count>\d+)(?P<log>log)?)?")

Scalar = int | float | str


class SweepError(InputError):
    """A sweep that cannot be read, has an axis that nothing knows, or has no points, or too many."""


class Continuous(Record):
    """All numbers from `low` to `high`, in which only a sample can be taken."""

    low: float
    high: float
    scale: Literal["linear", "log"] = "linear"

    @model_validator(mode="after")
    def _is_a_range(self) -> Continuous:
        if not self.low < self.high or (self.scale == "log" and self.low <= 0):
            raise ValueError("write LOW..HIGH, the lower number (above 0 for log) first")
        return self


class Sample(Record):
    """So many points: drawn independently, or so that every axis is covered evenly (Latin hypercube)."""

    method: Literal["random", "lhs"] = "lhs"
    points: int = Field(ge=1, le=MOST_POINTS)
    seed: int = Field(default=0, ge=0, lt=2**63)


class Sweep(Record):
    """Every value of every axis; `device_axes` are dotted keys of device profiles. Lookahead None: as deep as fits.

    Retained numbers, lookaheads and seeds are for `PATTERNS`, seeds for random patterns alone. `bound`: with a lower
    bound in each row.
    """

    format: Literal["cidl-sweep/1"] = "cidl-sweep/1"
    workloads: tuple[str, ...] = Field(min_length=1, max_length=MOST_WORKLOADS)
    devices: tuple[str, ...] = Field(min_length=1)
    device_axes: dict[str, tuple[float, ...] | Continuous] = Field(default_factory=dict)
    policies: tuple[str, ...] = Field(min_length=1)
    retained: tuple[int, ...] = Field(min_length=1)
    lookahead: tuple[int | None, ...] = Field(default=(None,), min_length=1)
    pattern_seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    sample: Sample | None = None
    bound: bool = True

    @property
    def sha256(self) -> str:
        """Identity of the sweep: the SHA-256 of its canonical JSON."""
        return sha256_of(self.model_dump(mode="json"))


def make_sweep(
    workloads: Sequence[str],
    devices: Sequence[str],
    axes: Mapping[str, Any] | None = None,
    *,
    sample: Sample | None = None,
    bound: bool = True,
    on_workload: Progress = silent,
) -> Sweep:
    """A sweep over `axes`: values by name, as lists or as text ("1,2,4", "0..28", "1e9..4e9/8log", "2GB..6GB").

    Axes are `policy`, `retained`, `lookahead`, `pattern_seed`; of named workloads the settings of their family
    (`Pipeline.axes`); and every figure of a device profile. SweepError for what is none of them.
    """
    given = {name: parse_values(name, values) for name, values in (axes or {}).items()}
    settings = {name: _listed(name, given.pop(name)) for name in setting_axes() if name in given}
    policy_axes = {name: _listed(name, given.pop(name)) for name in POLICY_AXES if name in given}
    names = tuple(dict.fromkeys(v for name in workloads for v in _variants(name, settings)))
    found = []
    for done, name in enumerate(names[:MOST_WORKLOADS]):
        if done:
            on_workload(done, len(names), name)
        found.append(find_workload(name))
    for device in devices:
        _check_device_axes(device, given)
    return validated(
        Sweep,
        {
            "workloads": names,
            "devices": tuple(devices),
            "device_axes": {
                name: values if isinstance(values, Continuous) else [float(v) for v in values]
                for name, values in given.items()
            },
            "policies": _policies(policy_axes.get("policy", (*POLICIES,))),
            "retained": _whole_numbers("retained", policy_axes["retained"])
            if "retained" in policy_axes
            else tuple(range(max(map(_most_retained, found)) + 1)),
            "lookahead": _lookahead(policy_axes.get("lookahead", (DEEP,))),
            "pattern_seeds": _whole_numbers("pattern_seed", policy_axes.get("pattern_seed", (0,))),
            "sample": sample,
            "bound": bound,
        },
        "sweep",
        SweepError,
    )


def read_axes(path: Path) -> tuple[dict[str, Any], Sample | None]:
    """The axes and the sample of a TOML file: format, [axes], [sample]. SweepError names the file and the field."""
    try:
        data = tomllib.loads(read_text(path, SweepError))
    except tomllib.TOMLDecodeError as problem:
        raise SweepError(f"{path}: not TOML ({problem})") from None
    if data.pop("format", None) != "cidl-sweep/1":
        raise SweepError(f'{path}: format: write format = "cidl-sweep/1"')
    axes, sample = data.pop("axes", {}), data.pop("sample", None)
    if data:
        raise SweepError(f"{path}: {next(iter(data))}: there are format, [axes] and [sample]")
    if not isinstance(axes, dict):
        raise SweepError(f"{path}: axes: write a table of axes")
    return axes, None if sample is None else validated(Sample, sample, f"{path}: sample", SweepError)


def parse_values(name: str, values: Any) -> tuple[Scalar, ...] | Continuous:
    """The values of an axis: a list, one value, or text such as "1,2,4", "0..28", "1e9..4e9", "1GB..4GB/8log"."""
    if isinstance(values, Continuous):
        return values
    if isinstance(values, list | tuple):
        parsed = tuple(_scalar(name, value) if is_size(name) and isinstance(value, str) else value for value in values)
    elif isinstance(values, str):
        parsed_or_range = _parse_text(name, values)
        if isinstance(parsed_or_range, Continuous):
            return parsed_or_range
        parsed = parsed_or_range
    else:
        parsed = (values,)
    if not parsed:
        raise SweepError(f"axis {name!r} has no values: the grid is empty")
    for value in parsed:
        if isinstance(value, bool) or not isinstance(value, Scalar):
            raise SweepError(f"axis {name!r}: {value!r} is neither a number nor text")
    return tuple(dict.fromkeys(parsed))


def _parse_text(name: str, text: str) -> tuple[Scalar, ...] | Continuous:
    if not (match := _RANGE.fullmatch(text.strip())):
        return tuple(_scalar(name, part.strip()) for part in text.split(",") if part.strip())
    first, last = _scalar(name, match["first"]), _scalar(name, match["last"])
    if isinstance(first, str) or isinstance(last, str):
        raise SweepError(f"axis {name!r}: {text!r} is no range of numbers")
    if first > last:
        raise SweepError(f"axis {name!r}: {text!r} is empty; the lower number comes first")
    if match["count"]:
        return _spaced(name, float(first), float(last), int(match["count"]), log=bool(match["log"]))
    if isinstance(first, int) and isinstance(last, int):
        if last - first >= MOST_VALUES:
            raise SweepError(f"axis {name!r}: {text!r} has {last - first + 1} values; at most {MOST_VALUES}")
        return tuple(range(first, last + 1))
    return validated(Continuous, {"low": first, "high": last}, f"axis {name!r}", SweepError)


def _spaced(name: str, first: float, last: float, count: int, *, log: bool) -> tuple[float, ...]:
    if count < 2 or count > MOST_VALUES or (log and first <= 0):
        raise SweepError(f"axis {name!r}: from 2 to {MOST_VALUES} values, for log above 0")
    steps = [i / (count - 1) for i in range(count)]
    if not log and all(float(first + step * (last - first)).is_integer() for step in steps):
        return tuple(round(first + step * (last - first)) for step in steps)
    if log:
        inner = [math.exp(math.log(first) + step * math.log(last / first)) for step in steps[1:-1]]
    else:
        inner = [first + step * (last - first) for step in steps[1:-1]]
    return (first, *inner, last)


def _scalar(name: str, text: str) -> Scalar:
    for read in (int, float):
        try:
            value = read(text)
        except ValueError:
            continue
        return value if math.isfinite(value) else text
    if not is_size(name):
        return text
    try:
        # A range between two sizes is continuous: nobody wants every whole number of bytes in it.
        return float(parse_size(name, text))
    except InputError as problem:
        raise SweepError(f"axis {name!r}: {problem}") from None


def _listed(name: str, values: tuple[Scalar, ...] | Continuous) -> tuple[Scalar, ...]:
    if isinstance(values, Continuous):
        raise SweepError(f"axis {name!r}: only figures of the device can be continuous; write {name}=1,2,4 or 1..4")
    return values


def _variants(name: str, settings: Mapping[str, Any]) -> list[str]:
    """The names of a workload with every combination of settings; a file has none."""
    if not settings:
        return [name]
    if Path(name).suffix == ".json" or Path(name).is_file():
        raise SweepError(f"{name}: {next(iter(settings))} can only be chosen for a named workload, not for a file")
    count = math.prod(len(values) for values in settings.values())
    if count > MOST_WORKLOADS:
        raise SweepError(f"{count} variants of {name}; at most {MOST_WORKLOADS}")
    sizes, base = parse_name(name)
    pipeline = pipeline_of(sizes)
    for axis in settings:
        if axis not in pipeline.axes:
            raise SweepError(f"axis {axis!r}: {sizes.name} has no such setting; it has {', '.join(pipeline.axes)}")
    variants = []
    for values in product(*settings.values()):
        chosen: dict[str, str] = {}
        for axis, value in zip(settings, values, strict=True):
            chosen.update(axis_values(pipeline, axis, str(value)))
        variants.append(canonical_name(sizes, merged_settings(base, chosen)))
    return variants


def _most_retained(workload: Workload) -> int:
    return max((repeated_positions(workload, group) for group in repeating_groups(workload)), default=0)


def _check_device_axes(name: str, axes: Mapping[str, Any]) -> None:
    device = find_device(name)
    for key, values in axes.items():
        lone = "." not in key and key not in {"memory_limit_bytes", "baseline_bytes"}
        if lone or key.startswith("provenance"):
            known = ", ".join((*POLICY_AXES, *setting_axes()))
            raise SweepError(
                f"unknown axis {key!r}: there are {known}, and figures of the device such as memory_limit_bytes"
            )
        given = (values.low, values.high) if isinstance(values, Continuous) else values
        text = next((value for value in given if isinstance(value, str)), None)
        if text is not None:
            raise SweepError(f"axis {key!r}: {text!r} is not a number (the key names the unit)")
        # What a profile can take is a range.
        for value in (min(given), max(given)):
            with_value(device, key, device_value(key, value))


def device_value(key: str, value: float) -> float | int:
    """`value` as the profile wants it: whole bytes and channels."""
    whole = (key.endswith("_bytes") and not key.endswith("per_s")) or key == "loader.channels"
    return round(value) if whole else float(value)


def device_with_values(device: DeviceProfile, values: dict[str, float | int]) -> DeviceProfile:
    """The profile with each figure set, in order, as --set does."""
    for key, value in values.items():
        device = with_value(device, key, value)
    return device


def _policies(names: Sequence[Any]) -> tuple[str, ...]:
    for name in names:
        if name not in POLICIES and name != RANDOM:
            raise SweepError(f"axis 'policy': unknown policy {name!r}; there are {', '.join((*POLICIES, RANDOM))}")
    return tuple(names)


def _whole_numbers(name: str, values: Sequence[Any]) -> tuple[int, ...]:
    for value in values:
        if not isinstance(value, int) or not 0 <= value < 2**31:
            raise SweepError(f"axis {name!r}: {value!r} is no whole number from 0 on; write {name}=1,2,4 or 0..28")
    return tuple(values)


def _lookahead(values: Sequence[Any]) -> tuple[int | None, ...]:
    numbers = _whole_numbers("lookahead", [value for value in values if value != DEEP])
    return (*numbers, *([None] if DEEP in values else []))
