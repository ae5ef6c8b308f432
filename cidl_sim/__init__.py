"""Simulate, plan and run generative models that are larger than the memory of the device.

    from cidl_sim import find_workload, find_device, make_plan, simulate

    workload, device = find_workload("opensora-v1.2"), find_device("iphone-15-pro")
    trace = simulate(workload, device, make_plan("spread", workload, device))
    print(trace.makespan_s, trace.peak_resident_bytes)

The verbs of the command line are functions here; the package's folders hold the rest (docs/reference/python.md). A
name is imported when it is first asked for; `__init__.pyi` tells type checkers and editors the names and their types.
"""

from importlib import import_module

# Where each name is at home.
_HOMES = {
    "POLICIES": "policies.catalog",
    "Block": "core.workload",
    "DeviceProfile": "core.device",
    "Plan": "core.plan",
    "Stage": "core.workload",
    "Trace": "core.trace",
    "Workload": "core.workload",
    "best_plan": "planner.planner",
    "evaluated_plan": "planner.evaluate",
    "find_device": "devices.catalog",
    "find_workload": "pipelines.catalog",
    "make_plan": "policies.catalog",
    "read_device": "core.device",
    "read_plan": "core.plan",
    "read_trace": "core.trace",
    "read_workload": "core.workload",
    "simulate": "simulator.engine",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
