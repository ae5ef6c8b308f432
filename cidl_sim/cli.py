"""The command line: the verbs of `commands/`, and how errors become exit codes (docs/reference/command_line.md)."""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from functools import wraps
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from cidl_sim.commands.extra_options import EXTRA
from cidl_sim.core.errors import CidlError
from cidl_sim.core.extras import missing_extra


class Verb(TyperCommand):
    """A verb as the help lists it. Its module is imported when it is called, so that no verb waits for another's."""

    def __init__(self, name: str, home: str, summary: str, context_settings: dict[str, Any] | None = None) -> None:
        """`home`: the module in `commands` and the function, as "module:function"."""
        super().__init__(name, help=summary)
        self._home = home
        self._settings = context_settings

    def loaded(self) -> Any:
        """The command with its arguments and options."""
        module, _, function = self._home.partition(":")
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        verb = getattr(import_module(f"cidl_sim.commands.{module}"), function)

        @wraps(verb)
        def answered(*args: Any, **kwargs: Any) -> Any:
            from cidl_sim.commands.console import answering

            with answering():
                return verb(*args, **kwargs)

        alone.command(self.name, context_settings=self._settings)(answered)
        return typer.main.get_command(alone)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Read the arguments of a call, which goes on with the command that was loaded."""
        return self.loaded().make_context(info_name, args, parent=parent, **extra)


def _group(name: str, summary: str, commands: list[Verb | TyperGroup]) -> TyperGroup:
    named = {command.name or "": command for command in commands}
    return TyperGroup(name=name, help=summary, no_args_is_help=True, commands=named)  # type: ignore[arg-type]


# A summary is the first line of the function's docstring.
app = _group(
    "cidl",
    "Simulate, plan and run generative models that are larger than the memory of the device.",
    [
        Verb(
            "workloads",
            "lookup:workloads",
            "List the named workloads, show one block by block, or make one from a torch module.",
        ),
        Verb("devices", "lookup:devices", "List the device profiles, or show one with the source of each figure."),
        Verb("policies", "lookup:policies", "List the policies."),
        Verb("simulate", "simulate:simulate", "Simulate a policy or a plan on a device."),
        Verb(
            "whatif",
            "what_if:whatif",
            "Which figures of a device matter for a workload, and where more of them stops paying.",
        ),
        Verb(
            "sweep",
            "sweep:sweep",
            "Simulate a grid or a sample of policies, workload settings and devices; a second call goes on.",
        ),
        Verb(
            "report",
            "report:report",
            "Make one self-contained page (and of a sweep also pictures) of results, a plan or a trace.",
        ),
        Verb(
            "calibrate",
            "measure:calibrate",
            "Measure this machine with short runs of a store's blocks, or learn from recorded runs; write a profile.",
        ),
        Verb(
            "validate",
            "measure:validate",
            "Calibrate, run policies that the calibration never saw, and compare with the simulation.",
        ),
        Verb(
            "demo",
            "execute:demo",
            "The main job end to end: build, measure, plan, run under a real limit, simulate, compare.",
        ),
        Verb(
            "plan",
            "plan:plan_command",
            "Make a plan, say what it does and what limits it, and print its bound and the baselines beside it.",
        ),
        Verb(
            "run",
            "execute:run",
            "Run a plan with the real executor, under a memory limit that the kernel enforces.",
            EXTRA,
        ),
        _group(
            "model",
            "Make block stores.",
            [
                Verb(
                    "build",
                    "make:model_build",
                    "Build a block store with seeded random weights, or the trained ones; goes on where it was "
                    "interrupted.",
                ),
                Verb(
                    "import",
                    "make:model_import",
                    "Build a block store from a published checkpoint; an interrupted import goes on where it stopped.",
                    EXTRA,
                ),
            ],
        ),
        _group(
            "coreml",
            "Packages for Core ML, and what they cost on a device.",
            [
                Verb(
                    "export",
                    "coreml:export",
                    "Export the blocks of a store as Core ML packages; a second call goes on where the first stopped.",
                ),
                Verb(
                    "check",
                    "coreml:check",
                    "Run every function of an export in the interpreter and compare it with PyTorch; exit code 2 if "
                    "one is wrong.",
                ),
                Verb(
                    "cost",
                    "coreml_device:cost",
                    "Disk, first run and later runs of a workload on a device with Core ML, each figure with its mark.",
                ),
                Verb(
                    "profile",
                    "coreml_device:profile",
                    "Measure cold and later loads and predictions with Core ML, block by block, and write a device "
                    "profile.",
                ),
                Verb(
                    "workload",
                    "coreml:workload",
                    "Show the workload of an export, its weights as large as the packages; what a run of them is "
                    "planned for.",
                ),
            ],
        ),
        _group(
            "trace",
            "Look at traces, convert and compare them.",
            [
                Verb("show", "traces:show_trace", "Show a trace: busy times, idle times by cause, memory."),
                Verb(
                    "convert",
                    "traces:convert",
                    "Write a trace as chrome://tracing and ui.perfetto.dev read it, or make one of a recording of "
                    "Instruments.",
                ),
                Verb(
                    "diff",
                    "traces:diff",
                    "Compare two traces: what moved, and where the difference in makespan comes from.",
                ),
            ],
        ),
    ],
)


def main() -> None:
    """Run the command line and leave with the documented exit code."""
    # Libraries make objects that stay: looking for garbage in them takes a short command longer than leaving it.
    gc.set_threshold(50_000)
    signal.signal(signal.SIGTERM, _terminate)
    # A shell that starts us in the background has SIGINT ignored; whoever sends it means it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(_exit_code())


def _exit_code() -> int:  # noqa: PLR0911
    try:
        result = app(standalone_mode=False)
        code = result if isinstance(result, int) else 0
        # The argument parser catches Ctrl-C itself, and says nothing.
        return _fail("interrupted", code) if code == 128 + signal.SIGINT else code
    except CidlError as problem:
        return _fail(str(problem), problem.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 128 + signal.SIGINT)
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1
        return _fail("stopped by SIGTERM", code) if code == 128 + signal.SIGTERM else code
    except ModuleNotFoundError as problem:
        missing = missing_extra(problem)
        return _fail(str(missing), missing.exit_code) if missing else _fault(problem)
    except Exception as problem:
        if hasattr(problem, "format_message"):  # what the argument parser raises
            # A group without a verb has printed its help, and has nothing to say beside it.
            message = problem.format_message()
            return _fail(message, 2) if message else 2
        if type(problem).__name__ == "Abort":
            return _fail("interrupted", 128 + signal.SIGINT)
        if isinstance(problem, OSError):
            return _fail(f"{problem.filename or ''}: {problem.strerror or problem}".lstrip(": "), 4)
        return _fault(problem)


def _fault(problem: Exception) -> int:
    if os.environ.get("CIDL_DEBUG"):
        traceback.print_exc()
    return _fail(f"internal fault: {type(problem).__name__}: {problem} (CIDL_DEBUG=1 shows where)", 1)


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"cidl: {message}\n")
    return code


def _terminate(number: int, _: Any) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
