"""The registry: a policy's name, its function, and how "name:number" is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InputError, did_you_mean
from cidl_sim.core.feasibility import check_any_plan_fits, check_plan
from cidl_sim.core.plan import Plan
from cidl_sim.core.workload import Workload
from cidl_sim.policies.lru import lru
from cidl_sim.policies.next_block import next_block
from cidl_sim.policies.on_device_sora import on_device_sora
from cidl_sim.policies.retained import prefix, rotating, spread
from cidl_sim.policies.sequential import sequential
from cidl_sim.policies.whole_model import whole_model


class PolicyError(InputError):
    """An unknown policy or a parameter that it cannot take."""


@dataclass(frozen=True)
class Policy:
    """A named function from workload and device to plan.

    `takes_number`: "name:d" means something, and the function itself makes sure that its plan finishes. `streams`: it
    goes block by block, so that a whole network need not fit.
    """

    name: str
    make: Callable[..., Plan]
    summary: str
    takes_number: bool = False
    streams: bool = True


POLICIES = {
    policy.name: policy
    for policy in (
        Policy("sequential", sequential, "load, run, unload; no overlap"),
        Policy("next_block", next_block, "prefetch one block, keep none"),
        Policy("prefix", prefix, "keep the first d blocks, prefetch as deep as memory allows", takes_number=True),
        Policy("spread", spread, "keep d blocks evenly spaced, prefetch as deep as memory allows", takes_number=True),
        Policy("rotating", rotating, "keep d blocks at a time, which move on from round to round", takes_number=True),
        Policy("on_device_sora", on_device_sora, "the reference app of On-device Sora, rule by rule"),
        Policy("lru", lru, "what a page cache does: prefetch deep, evict the least recently used"),
        Policy("whole_model", whole_model, "one network at a time, whole, through all of its rounds", streams=False),
    )
}

# Those that go block by block.
STREAMING = tuple(name for name, policy in POLICIES.items() if policy.streams)


def make_plan(policy: str, workload: Workload, device: DeviceProfile) -> Plan:
    """The plan of the policy called `policy` ("lru", "prefix", "prefix:9", "prefix:denoiser=9,decoder=2").

    Raises PolicyError for a name or number that makes no sense, InfeasibleError if no plan, or not this
    one, fits the device's memory.
    """
    name, colon, argument = policy.partition(":")
    if name not in POLICIES:
        raise PolicyError(f"unknown policy {name!r}; there are: {', '.join(POLICIES)}{did_you_mean(name, POLICIES)}")
    chosen = POLICIES[name]
    if colon and not chosen.takes_number:
        raise PolicyError(f"policy {name!r} takes no number")
    check_any_plan_fits(workload, device.memory_limit_bytes, device.baseline_bytes)
    plan = chosen.make(workload, device, _numbers(policy, argument)) if colon else chosen.make(workload, device)
    if not chosen.takes_number:
        check_plan(workload, device, plan)
    return plan


def _numbers(policy: str, argument: str) -> int | dict[str, int]:
    try:
        if "=" not in argument:
            number = int(argument)
            numbers: int | dict[str, int] = number
        else:
            by_group = {group: int(d) for group, d in (item.split("=") for item in argument.split(","))}
            numbers, number = by_group, min(by_group.values())
    except ValueError:
        raise PolicyError(f"policy {policy!r}: write a number of blocks, or group=number,group=number") from None
    if number < 0:
        raise PolicyError(f"policy {policy!r}: the number of blocks cannot be negative")
    return numbers
