"""A device with one figure changed, as sweeps, what-ifs and `--set` ask for it.

On a device that was measured the formulas of `core/costs.py` no longer decide, so that a changed bandwidth alone would
change nothing. Therefore the measured costs that a figure governs are scaled by what the formula says of the change.
"""

from __future__ import annotations

from typing import Any

from cidl_sim.core.costs import measured_traffic_s, roofline_s, transfer_s
from cidl_sim.core.device import DeviceProfile, Measured
from cidl_sim.core.errors import DeviceError, did_you_mean
from cidl_sim.core.files import validated


def with_value(device: DeviceProfile, key: str, value: Any) -> DeviceProfile:
    """The device with the figure at the dotted `key` ("loader.bandwidth_bytes_per_s") replaced.

    Measured costs that the figure governs are scaled by the ratio of the analytic costs after and
    before, so that no parameter is dead on a device that was measured.
    Raises DeviceError for an unknown key or a value the profile cannot take.
    """
    data = device.model_dump(mode="json")
    *parents, leaf = _split_key(key, data)
    target = data
    for parent in parents:
        target = target[parent]
    known = set(Measured.model_fields) if parents[:1] == ["measured"] else set(target)
    if leaf not in known or leaf in ("format",):
        there_are = f"(there are: {', '.join(sorted(known))})"
        raise DeviceError(f"{device.name}: no figure named {key!r} {there_are}{did_you_mean(key, _keys(data))}")
    if isinstance(value, bool):
        # Validation would take them for 1 and 0.
        raise DeviceError(f"{device.name}: {key}: {value} is not a figure")
    target[leaf] = value
    changed = validated(DeviceProfile, data, device.name, DeviceError)
    if parents[:1] not in (["loader"], ["executor"]):
        return changed
    scaled = {kind: _rescaled(measured, device, changed) for kind, measured in device.measured.items()}
    return changed.model_copy(update={"measured": scaled})


def _keys(data: dict[str, Any]) -> list[str]:
    """The dotted keys of all figures."""
    parts = {name: data[name] for name in ("loader", "executor", "noise")}
    measured = {f"measured.{kind}": Measured.model_fields for kind in data["measured"]}
    return [
        *("memory_limit_bytes", "baseline_bytes"),
        *(f"{part}.{leaf}" for part, leaves in {**parts, **measured}.items() for leaf in leaves),
    ]


def _split_key(key: str, data: dict[str, Any]) -> list[str]:
    """Split a dotted key; kinds contain dots themselves, so `measured.KIND.leaf` is cut at both ends."""
    if key.startswith("measured."):
        kind, _, leaf = key.removeprefix("measured.").rpartition(".")
        if kind not in data["measured"]:
            near = did_you_mean(kind, data["measured"])
            raise DeviceError(f"{data['name']}: no measured kind {kind!r} in {key!r}{near}")
        return ["measured", kind, leaf]
    head, _, leaf = key.rpartition(".")
    if head not in ("", "loader", "executor", "noise"):
        raise DeviceError(f"{data['name']}: no figure named {key!r}{did_you_mean(key, _keys(data))}")
    return [head, leaf] if head else [leaf]


def _rescaled(measured: Measured, before: DeviceProfile, after: DeviceProfile) -> Measured:
    """A kind's measured costs after a change of the loader's or the executor's figures."""
    update: dict[str, float] = {}
    load_ratio = _ratio(_load_formula(measured, before), _load_formula(measured, after))
    for name in ("load_s", "cold_load_s"):
        value = getattr(measured, name)
        if value is not None:
            update[name] = value * load_ratio
    if measured.exec_s is not None:
        # What the bytes moved take follows the memory's bandwidth, the rest the other figures of the executor.
        traffic_s = measured_traffic_s(measured, before)
        ratio = _ratio(_execute_formula(measured, before), _execute_formula(measured, after))
        bandwidths = (device.executor.memory_bandwidth_bytes_per_s for device in (after, before))
        update["exec_s"] = (measured.exec_s - traffic_s) * ratio + traffic_s * _ratio(*bandwidths)
    return measured.model_copy(update=update)


def _load_formula(measured: Measured, device: DeviceProfile) -> float | None:
    # Without a recorded size the whole measured time is taken for the transfer of one byte.
    seconds = transfer_s(measured.weight_bytes or 1, device)
    return None if seconds is None else seconds + (device.loader.latency_s if measured.weight_bytes else 0.0)


def _execute_formula(measured: Measured, device: DeviceProfile) -> float | None:
    seconds = roofline_s(measured.flops or 1.0, 0.0, device)
    return None if seconds is None else seconds + (device.executor.launch_s if measured.flops else 0.0)


def _ratio(before: float | None, after: float | None) -> float:
    if not before or after is None:
        return 1.0
    return after / before
