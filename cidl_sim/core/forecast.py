"""How long a run will take, beforehand and on the way: a simulation's word first, then more and more the run's own."""

from __future__ import annotations

import math
from collections import defaultdict

from pydantic import Field

from cidl_sim.core.files import Record
from cidl_sim.core.workload import Visit, Workload

# At these shares of the visits the estimate goes into the trace.
NOTED_SHARES = (0.1, 0.25, 0.5, 0.75)
# The simulation's word counts as much as this share of the whole run seen; what was seen a fifth of the run ago counts
# a third of what was seen just now.
_PRIOR_SHARE, _MEMORY_SHARE = 0.03, 0.2


class Prediction(Record):
    """What a run is expected to take: in nine of ten cases between `low_s` and `high_s`.

    `device_sha256`: of the profile that says so.
    """

    makespan_s: float = Field(ge=0)
    low_s: float = Field(ge=0)
    high_s: float = Field(ge=0)
    device_sha256: str


class Forecast(Prediction):
    """The same with `ends_s`, when each visit ends, by its number."""

    ends_s: tuple[float, ...]

    @property
    def prediction(self) -> Prediction:
        """The whole run alone."""
        return Prediction.model_validate(self.model_dump(exclude={"ends_s"}))


class TimeLeft:
    """The time that a run still needs: what was foreseen for the visits to come, times how wrong it was so far.

    By how much it was wrong is learned from the visits of the same group where there are any, from all others where
    there are none yet; recent ones count more.
    """

    def __init__(self, workload: Workload, forecast: Forecast) -> None:
        """A forecast of this workload's visits."""
        self._group_of = [stage.group for stage in workload.stages]
        reached, seconds = 0.0, []
        for end_s in forecast.ends_s:
            seconds.append(max(0.0, end_s - reached))
            reached = max(reached, end_s)
        self._foreseen = seconds
        self._whole = sum(seconds)
        # By group, what is foreseen from each visit on.
        self._ahead: dict[str, list[float]] = {group: [0.0] for group in self._group_of}
        for visit in reversed(workload.visits):
            for group, sums in self._ahead.items():
                own = group == self._group_of[visit.stage]
                sums.append(sums[-1] + (seconds[visit.number] if own else 0.0))
        self._last_s = 0.0
        self._taken: dict[str, float] = defaultdict(float)
        self._expected: dict[str, float] = defaultdict(float)

    def visited(self, visit: Visit, at_s: float) -> None:
        """A visit ended, `at_s` seconds after the run began. Visits that are skipped are not told."""
        group, foreseen = self._group_of[visit.stage], self._foreseen[visit.number]
        fades = math.exp(-foreseen / (_MEMORY_SHARE * self._whole)) if self._whole else 1.0
        for sums, seconds in ((self._taken, at_s - self._last_s), (self._expected, foreseen)):
            for known in sums:
                sums[known] *= fades
            sums[group] += seconds
        self._last_s = at_s

    def left_s(self, next_visit: int) -> float:
        """Seconds until the last visit ends, if the next one to run is this."""
        visits = len(self._foreseen) - next_visit
        return sum(sums[visits] * self._factor(group) for group, sums in self._ahead.items())

    def _factor(self, group: str) -> float:
        """How much longer than foreseen visits of a group take."""
        prior = _PRIOR_SHARE * self._whole
        if not prior:
            return 1.0
        taken, expected = sum(self._taken.values()), sum(self._expected.values())
        everywhere = (taken + prior) / (expected + prior)
        return (self._taken[group] + prior * everywhere) / (self._expected[group] + prior)


def in_words(seconds: float) -> str:
    """A duration for people: 8 s, 3 min, 2 h 5 min."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
