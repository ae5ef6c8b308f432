"""The inverse question: how much memory, bandwidth or arithmetic does a makespan take?

One figure is changed at a time, found by bisection. Above the answer a policy's plan meets the target; below `needed`
the lower bound says that no plan can, so the two enclose the truth.
"""

from __future__ import annotations

from collections.abc import Callable

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InputError
from cidl_sim.core.feasibility import largest_need, resident_need
from cidl_sim.core.progress import StepProgress, silent
from cidl_sim.core.reports import Least
from cidl_sim.core.timed import timed
from cidl_sim.core.what_if import with_value
from cidl_sim.core.workload import Workload
from cidl_sim.planner.bisection import bytes_text, rate_text, smallest_limit, smallest_rate
from cidl_sim.planner.bounds import lower_bound_s
from cidl_sim.planner.evaluate import baseline
from cidl_sim.policies.catalog import POLICIES

# The best ones first: the others are tried only where these miss the target.
POLICIES_TRIED = ("spread", *(name for name in POLICIES if name != "spread"))
RATES = ("loader.bandwidth_bytes_per_s", "executor.flops_per_s")


def least_for(
    workload: Workload, device: DeviceProfile, target_s: float, on_step: StepProgress = silent
) -> list[Least]:
    """The least memory, bandwidth and arithmetic, each on its own, that meet a makespan of `target_s` seconds.

    InputError for a target that is no positive number of seconds, DeviceError where a cost is unknown.
    """
    if not 0 < target_s < float("inf"):
        raise InputError(f"a target of {target_s} s: give a positive number of seconds")
    found = []
    for done, parameter in enumerate(("memory_limit_bytes", *RATES)):
        on_step("inverse questions", done, 3, parameter)
        question = _Question(workload, device, target_s, parameter)
        found.append(question.least_memory() if parameter == "memory_limit_bytes" else question.least_rate())
    on_step("inverse questions", 3, 3, "")
    return found


class _Question:
    def __init__(self, workload: Workload, device: DeviceProfile, target_s: float, parameter: str) -> None:
        self._workload = workload
        self._device = device
        self._target_s = target_s
        self._parameter = parameter
        self._met: dict[float, tuple[str, float]] = {}

    def least_memory(self) -> Least:
        need, _ = largest_need(self._workload)
        floor = max(1, need + self._device.baseline_bytes)
        everything = max(floor, self._device.baseline_bytes + resident_need(self._workload))
        if not self._is_met(everything):
            return self._none(f"no memory limit meets {self._target_s:g} s", everything)
        value = smallest_limit(self._is_met, floor, everything)
        needed = smallest_limit(self._may_be_met, floor, everything)
        return self._found(value, needed if needed > floor else None, bytes_text)

    def least_rate(self) -> Least:
        section, _, field = self._parameter.partition(".")
        now = getattr(getattr(self._device, section), field)
        if now is None:
            return self._none(f"{self._parameter} is not given")
        if (value := smallest_rate(self._is_met, now)) is None:
            always = self._is_met(now)
            text = "any rate meets" if always else "no rate meets"
            return self._none(f"{text} {self._target_s:g} s", None if always else 1e6 * now)
        needed = smallest_rate(self._may_be_met, now)
        return self._found(value, needed, lambda rate: rate_text(self._parameter, rate))

    def _may_be_met(self, value: float) -> bool:
        return lower_bound_s(self._workload, self._with(value)) <= self._target_s

    def _is_met(self, value: float) -> bool:
        """Whether a policy's plan meets the target; the bound, which costs far less, is asked first."""
        if not self._may_be_met(value):
            return False
        priced = timed(self._workload, self._with(value))
        for policy in POLICIES_TRIED:
            found = baseline(priced, policy)
            if found is not None and (seconds := found[0]) <= self._target_s:
                self._met[value] = policy, seconds
                return True
        return False

    def _with(self, value: float) -> DeviceProfile:
        return with_value(self._device, self._parameter, value)

    def _found(self, value: float, needed: float | None, text: Callable[[float], str]) -> Least:
        policy, seconds = self._met[value]
        sentence = f"{self._target_s:g} s take {text(value)} with {policy}"
        if needed is not None:
            close = needed >= 0.98 * value
            sentence += ": no plan does with less" if close else f"; no plan does below {text(needed)}"
        return Least(
            parameter=self._parameter, value=value, policy=policy, makespan_s=seconds, needed=needed, sentence=sentence
        )

    def _none(self, sentence: str, at: float | None = None) -> Least:
        if at is not None:
            bound = lower_bound_s(self._workload, self._with(at))
            sentence += f": no plan is faster than {bound:.4g} s" if bound > self._target_s else " with any policy"
        return Least(parameter=self._parameter, sentence=sentence)
