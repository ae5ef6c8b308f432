"""Predicted against measured memory."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.reports import MemoryFigures
from cidl_sim.core.samples import kinds_of_visits
from cidl_sim.core.trace import Trace


def memory_of(simulated: Trace, device: DeviceProfile, measured: Sequence[Trace]) -> MemoryFigures:
    """How far the simulated memory is from what each run took."""
    touched = [(trace, count) for trace in measured if (count := _of_machine(trace, "touched_bytes"))]
    accounting = [trace.peak_weights_bytes / count - 1 for trace, count in touched]
    slots = statistics.median(count for _, count in touched) if touched else None
    # Older traces have only the peak with all page cache.
    needs = [n for t in measured if (n := _of_machine(t, "needed_bytes") or t.header.peak_kernel_bytes)]
    needed = statistics.median(needs) if needs else None
    predicted = predicted_need_bytes(simulated, device)
    return MemoryFigures(
        accounting_error=max(accounting, key=abs, default=None),
        touched_bytes=slots,
        predicted_touched_bytes=simulated.peak_weights_bytes,
        touched_error=simulated.peak_weights_bytes / slots - 1 if slots else None,
        needed_bytes=needed,
        needed_spread=(max(needs) - min(needs)) / needed if needed else None,
        predicted_kernel_bytes=predicted,
        kernel_error=predicted / needed - 1 if predicted and needed else None,
    )


def predicted_need_bytes(simulated: Trace, device: DeviceProfile) -> int | None:
    """Process, slots touched so far and workspace of the visit's kind, at most; None if the profile cannot tell."""
    process = device.provenance.process_bytes
    if process is None:
        return None
    touched = need = 0
    kinds = kinds_of_visits(simulated)
    order = {"load": 0, "execute": 1}  # at one instant a load takes its slot before a visit begins
    spans = sorted((s for s in simulated.spans if s.operation in order), key=lambda s: (s.start_s, order[s.operation]))
    for span in spans:
        if span.operation == "load":
            touched += simulated.fresh_bytes.get(span.visit, 0)
            continue
        found = device.measured.get(kinds[span.visit])
        workspace = found.workspace_bytes if found and found.workspace_bytes is not None else span.bytes
        # Free slots go back to the system where a visit's accounted workspace needs the room.
        room = device.memory_limit_bytes - device.baseline_bytes - span.bytes
        need = max(need, process + min(touched, room) + workspace)
    return need


def _of_machine(trace: Trace, name: str) -> int | None:
    value = trace.header.machine.get(name)
    return int(value) if value is not None else None
