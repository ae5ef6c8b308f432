"""Plans and makespans of one workload on changed profiles: what sensitivities and break points are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.plan import Plan
from cidl_sim.core.timed import timed
from cidl_sim.core.trace import Trace
from cidl_sim.core.workload import Workload
from cidl_sim.policies.catalog import POLICIES, make_plan
from cidl_sim.simulator import quick
from cidl_sim.simulator.arrays import Evaluation
from cidl_sim.simulator.engine import simulate


@dataclass(frozen=True, slots=True)
class Replanned:
    """A changed profile, the plan made for it, and what a simulation of that plan finds."""

    device: DeviceProfile
    plan: Plan
    run: Evaluation

    @property
    def makespan_s(self) -> float:
        """The makespan in seconds."""
        return self.run.makespan_s


class Reruns:
    """A workload planned and simulated again and again; one outcome for each profile is remembered."""

    def __init__(self, workload: Workload, device: DeviceProfile, policy: str) -> None:
        self.workload = workload
        self.device = device
        self.policy = policy
        self._outcomes: dict[str, Replanned | InfeasibleError] = {}
        self._priced = timed(workload, device)  # holds what the other profiles have in common with it
        self.here = self.on(device)
        self.trace: Trace = simulate(workload, device, self.here.plan)

    def on(self, device: DeviceProfile) -> Replanned:
        """The policy's own plan for `device` and its makespan. InfeasibleError where nothing fits."""
        if device.sha256 not in self._outcomes:
            priced = timed(self.workload, device)
            try:
                plan = make_plan(self.policy, self.workload, device)
                run = quick.evaluate(priced, plan)
                self._outcomes[device.sha256] = Replanned(device, plan, run)
            except InfeasibleError as problem:
                self._outcomes[device.sha256] = problem
        outcome = self._outcomes[device.sha256]
        if isinstance(outcome, InfeasibleError):
            raise outcome
        return outcome

    def retained_blocks(self, outcome: Replanned) -> int:
        """How many different sets of weights an outcome's plan keeps from one visit to the next."""
        return len({self.workload.visits[number].block.weights for number in outcome.plan.keep})

    def replanned_s(self, device: DeviceProfile) -> float | None:
        """The makespan of a new plan on `device` in seconds; None where nothing fits."""
        try:
            return self.on(device).makespan_s
        except InfeasibleError:
            return None

    def held_s(self, device: DeviceProfile) -> float | None:
        """The makespan on `device` of the plan made for the unchanged profile; None where it does not fit."""
        seconds = quick.makespan_s(timed(self.workload, device), self.here.plan)
        return None if seconds == math.inf else seconds


def best_policy(workload: Workload, device: DeviceProfile) -> str:
    """The policy with the shortest simulated makespan. InfeasibleError where none fits the memory.

    Among equals spread wins: it chooses its retained set anew on every profile, so it shows what a change buys.
    """
    priced = timed(workload, device)
    makespans: dict[str, float] = {}
    problem: InfeasibleError | None = None
    for policy in POLICIES:
        try:
            makespans[policy] = quick.makespan_s(priced, make_plan(policy, workload, device))
        except InfeasibleError as error:
            problem = problem or error
    if not makespans:
        raise problem or InfeasibleError("there is no policy")
    return min(makespans, key=lambda policy: (makespans[policy], policy != "spread"))
