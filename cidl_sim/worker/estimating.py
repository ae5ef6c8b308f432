"""How long the run under way will still take, for whoever waits and for its trace."""

from __future__ import annotations

from cidl_sim.core.forecast import NOTED_SHARES, Forecast, TimeLeft, in_words
from cidl_sim.core.workload import Visit, Workload
from cidl_sim.executor.runtime import Runtime


class Estimates:
    """Learns from each visit; at some shares of the visits the estimate becomes an event of the trace.

    Without a forecast it says nothing.
    """

    def __init__(self, workload: Workload, forecast: Forecast | None) -> None:
        self._visits = len(workload.visits)
        self._forecast = forecast
        self._time_left = None if forecast is None else TimeLeft(workload, forecast)
        self._runtime: Runtime | None = None
        self._first = 0
        self._to_note = list(NOTED_SHARES)
        self._left_s: float | None = None

    def begin(self, runtime: Runtime) -> None:
        """Before the run: what was predicted goes into the trace."""
        if self._forecast is not None:
            self._runtime, self._first = runtime, runtime.schedule.current
            runtime.note("predicted", **self._forecast.prediction.model_dump())

    def __call__(self, visit: Visit) -> None:
        """After each visit."""
        if self._time_left is None or self._runtime is None:
            return
        elapsed_s, after = self._runtime.elapsed_s, self._runtime.schedule.current
        self._time_left.visited(visit, elapsed_s)
        self._left_s = self._time_left.left_s(after)
        share = (after - self._first) / (self._visits - self._first)
        while self._to_note and share >= self._to_note[0]:
            self._runtime.note("time_left", share=self._to_note.pop(0), visit=visit.number, left_s=self._left_s)

    @property
    def words(self) -> str:
        """The time left, to be added to what is under way; nothing where that is not known."""
        return "" if not self._left_s else f", about {in_words(self._left_s)} left"
