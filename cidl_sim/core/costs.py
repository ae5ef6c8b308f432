"""What a load and an execution cost on a device, free of contention.

    load    = latency_s + weight_bytes / bandwidth_bytes_per_s
    execute = launch_s + max(flops / (flops_per_s * efficiency), bytes_moved / memory_bandwidth_bytes_per_s)

A measurement of the block's kind replaces the formula. Kinds are dotted paths: without a measurement of
`stdit.pair.fp32.5x16` that of `stdit.pair.fp32`, then of `stdit.pair`, and so on, stands in. A block of
another size than the measured one scales it: a load by the ratio of the formulas, an execution by the ratio of flops.
Where the measurement says how many bytes it moved and the device has a memory bandwidth, the seconds that these bytes
take there scale by bytes instead, and only the rest by flops. A cold load adds the measured cold difference, scaled as
the load. Figures whose quotient is no usable number of seconds are an error that names the kind.

Where a block says what it is `like`, measurements of those blocks come before the formula: their loads and executions
are added, the latency and the launch counted once, and the rest scaled by bytes and arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cidl_sim.core.device import DeviceProfile, Measured
from cidl_sim.core.errors import DeviceError
from cidl_sim.core.workload import Block

# Even five million visits of this length add up to a makespan that a trace can hold.
LONGEST_S = 1e110


@dataclass(frozen=True, slots=True)
class Cost:
    """`fixed_s` passes whatever else happens; `work_s` is stretched by contention, sharing and heat.

    `measured` is False where the kind has no measurement and the formula stood in for it, `derived` True where the
    costs of the blocks that it is like did.
    """

    fixed_s: float
    work_s: float
    measured: bool
    derived: bool = False

    @property
    def seconds(self) -> float:
        """The whole duration without contention."""
        return self.fixed_s + self.work_s


def transfer_s(weight_bytes: int, device: DeviceProfile) -> float | None:
    """Seconds to read `weight_bytes` without latency, or None if the profile has no bandwidth."""
    if weight_bytes == 0:
        return 0.0
    bandwidth = device.loader.bandwidth_bytes_per_s
    return None if bandwidth is None else weight_bytes / bandwidth


def roofline_s(flops: float, bytes_moved: float, device: DeviceProfile) -> float | None:
    """Seconds of arithmetic or memory traffic, whichever is longer; None if the profile cannot tell."""
    executor = device.executor
    if flops and executor.flops_per_s is None:
        return None
    rate = (executor.flops_per_s or math.inf) * executor.efficiency
    # A product of two tiny figures may be zero: the check on finished costs refuses what comes of it.
    arithmetic = flops / rate if rate else math.inf
    traffic = bytes_moved / executor.memory_bandwidth_bytes_per_s if executor.memory_bandwidth_bytes_per_s else 0.0
    if not flops and not traffic:
        return None if bytes_moved else 0.0
    return max(arithmetic, traffic)


def measured_kind(kind: str, device: DeviceProfile) -> str | None:
    """`kind` or its nearest ancestor in the dotted path that was measured."""
    while kind and kind not in device.measured:
        kind = kind.rpartition(".")[0]
    return kind or None


def measurement_of(kind: str, device: DeviceProfile) -> Measured | None:
    """The measurement of `kind` or of its nearest ancestor in the dotted path."""
    measured = measured_kind(kind, device)
    return None if measured is None else device.measured[measured]


def load_cost(block: Block, device: DeviceProfile, *, cold: bool) -> Cost:
    """The cost of loading a block's weights. DeviceError if the profile can neither look up nor compute it."""
    cost = _load_cost(block, device, cold=cold)
    _check_length(cost, "load", block, device)
    return cost


def _load_cost(block: Block, device: DeviceProfile, *, cold: bool) -> Cost:
    latency = device.loader.latency_s
    formula = transfer_s(block.weight_bytes, device)
    measured = measurement_of(block.kind, device)
    if measured is None or measured.load_s is None:
        likened = _load_like(block, device, cold=cold)
        if likened is not None:
            return likened
        if formula is None:
            raise DeviceError(
                f"{device.name}: no load cost for kind {block.kind!r}: neither measured.{block.kind}.load_s "
                "nor loader.bandwidth_bytes_per_s is given"
            )
        warm = Cost(latency, formula, measured=False)
    else:
        seconds = measured.load_s * _size_ratio(measured, block, device)
        fixed = min(latency, seconds)
        warm = Cost(fixed, seconds - fixed, measured=True)
    if cold and measured is not None and measured.cold_load_s is not None:
        if measured.load_s is None:
            difference = max(0.0, measured.cold_load_s - warm.seconds)
        else:
            difference = max(0.0, measured.cold_load_s - measured.load_s) * _size_ratio(measured, block, device)
        return Cost(warm.fixed_s, warm.work_s + difference, warm.measured)
    return warm


def knows_cold_load(block: Block, device: DeviceProfile) -> bool:
    """Whether a cold load of this block costs what was measured, and not what a later one does for want of a figure."""
    measured = measurement_of(block.kind, device)
    loads_like_others = any(_is_measured(other, device, "load_s") for other in block.like)
    if (measured is None or measured.load_s is None) and loads_like_others:
        return all(knows_cold_load(other, device) for other in block.like)
    return block.weight_bytes == 0 or (measured is not None and measured.cold_load_s is not None)


def _load_like(block: Block, device: DeviceProfile, *, cold: bool) -> Cost | None:
    """The cost of the loads of the blocks that this one is like; None if none of them was measured."""
    if not any(_is_measured(other, device, "load_s") for other in block.like):
        return None
    costs = [_load_cost(other, device, cold=cold) for other in block.like]
    ratio = _share(block.weight_bytes, sum(other.weight_bytes for other in block.like))
    return Cost(
        max(cost.fixed_s for cost in costs),
        ratio * sum(cost.work_s for cost in costs),
        measured=all(cost.measured for cost in costs),
        derived=True,
    )


def _execute_like(block: Block, device: DeviceProfile) -> Cost | None:
    """The cost of the executions of the blocks that this one is like; None if none of them was measured."""
    if not any(_is_measured(other, device, "exec_s") for other in block.like):
        return None
    costs = [_execute_cost(other, device) for other in block.like]
    # A measured execution contains the driver's launch, and so does the formula's.
    launch = min(device.executor.launch_s, max(cost.seconds for cost in costs))
    work = sum(max(0.0, cost.seconds - launch) for cost in costs)
    flops = sum(other.flops for other in block.like)
    moved = sum(other.bytes_moved for other in block.like)
    ratio = _share(block.flops, flops) if flops else _share(block.bytes_moved, moved)
    return Cost(launch, ratio * work, measured=all(cost.measured for cost in costs), derived=True)


def _is_measured(block: Block, device: DeviceProfile, cost: str) -> bool:
    measured = measurement_of(block.kind, device)
    return measured is not None and getattr(measured, cost) is not None


def _share(own: float, whole: float) -> float:
    return own / whole if whole else 1.0


def _size_ratio(measured: Measured, block: Block, device: DeviceProfile) -> float:
    """The formula's load of the block over that of the size its kind was measured at."""
    formula = transfer_s(block.weight_bytes, device)
    if not measured.weight_bytes or measured.weight_bytes == block.weight_bytes or formula is None:
        return 1.0
    latency = device.loader.latency_s
    return (latency + formula) / (latency + (transfer_s(measured.weight_bytes, device) or 0.0))


def execute_cost(block: Block, device: DeviceProfile) -> Cost:
    """The cost of executing a block. DeviceError if the profile can neither look up nor compute it."""
    cost = _execute_cost(block, device)
    _check_length(cost, "execution", block, device)
    return cost


def _execute_cost(block: Block, device: DeviceProfile) -> Cost:
    formula = roofline_s(block.flops, block.bytes_moved, device)
    measured = measurement_of(block.kind, device)
    if measured is None or measured.exec_s is None:
        likened = _execute_like(block, device)
        if likened is not None:
            return likened
        if formula is None or not _describes_execution(device):
            raise DeviceError(
                f"{device.name}: no execution cost for kind {block.kind!r}: neither measured.{block.kind}.exec_s "
                "nor the figures of [executor] with the block's flops are given"
            )
        return Cost(device.executor.launch_s, formula, measured=False)
    traffic_s = measured_traffic_s(measured, device) if block.bytes_moved else 0.0
    arithmetic_s = measured.exec_s - traffic_s
    if measured.flops and block.flops and measured.flops != block.flops:
        arithmetic_s *= block.flops / measured.flops
    if traffic_s and measured.bytes_moved != block.bytes_moved:
        traffic_s *= _share(block.bytes_moved, measured.bytes_moved or 0.0)
    seconds = arithmetic_s + traffic_s
    fixed = min(device.executor.launch_s, seconds)
    return Cost(fixed, seconds - fixed, measured=True)


def measured_traffic_s(measured: Measured, device: DeviceProfile) -> float:
    """How much of a measured execution goes with the bytes that it moved: what they take at the memory's bandwidth.

    0 where the bytes or the bandwidth are not given, the whole execution at most.
    """
    bandwidth = device.executor.memory_bandwidth_bytes_per_s
    if not measured.exec_s or not measured.bytes_moved or not bandwidth:
        return 0.0
    return min(measured.exec_s, measured.bytes_moved / bandwidth)


def _check_length(cost: Cost, what: str, block: Block, device: DeviceProfile) -> None:
    if not 0 <= cost.seconds <= LONGEST_S:
        raise DeviceError(
            f"{device.name}: the {what} of kind {block.kind!r} would take {cost.seconds} s; check the block's "
            f"figures and those of [{'loader' if what == 'load' else 'executor'}]"
        )


def _describes_execution(device: DeviceProfile) -> bool:
    executor = device.executor
    return bool(executor.flops_per_s or executor.memory_bandwidth_bytes_per_s or executor.launch_s)
