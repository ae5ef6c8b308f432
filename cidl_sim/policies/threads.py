"""With how many threads a processor computes a plan best: what the profile measured, asked of the simulation."""

from __future__ import annotations

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.timed import timed
from cidl_sim.core.workload import Workload
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.quick import makespan_s


def with_best_threads(policy: str, workload: Workload, device: DeviceProfile) -> DeviceProfile:
    """`device` computing with the number of threads with which its plan of `policy` is fastest; of equals the fewest.

    Raises as `make_plan`.
    """
    if not device.other_threads:
        return device
    found = [device.with_threads(threads) for threads in sorted(device.thread_numbers, key=lambda n: n or 0)]
    return min(found, key=lambda one: makespan_s(timed(workload, one), make_plan(policy, workload, one)))
