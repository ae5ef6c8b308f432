"""The command line: the verbs of `commands/`, and how errors become exit codes (docs/reference/command_line.md)."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import Any

import typer

from cidl_sim.commands import (
    coreml,
    coreml_device,
    execute,
    lookup,
    make,
    measure,
    plan,
    report,
    simulate,
    sweep,
    traces,
    what_if,
)
from cidl_sim.commands.extra_options import EXTRA
from cidl_sim.core.errors import CidlError

app = typer.Typer(
    name="cidl",
    help="Simulate, plan and run generative models that are larger than the memory of the device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
model_app = typer.Typer(help="Make block stores.", no_args_is_help=True)
coreml_app = typer.Typer(help="Packages for Core ML, and what they cost on a device.", no_args_is_help=True)
trace_app = typer.Typer(help="Look at traces, convert and compare them.", no_args_is_help=True)
app.add_typer(model_app, name="model")
app.add_typer(coreml_app, name="coreml")
app.add_typer(trace_app, name="trace")

for verb in (
    lookup.workloads,
    lookup.devices,
    lookup.policies,
    simulate.simulate,
    what_if.whatif,
    sweep.sweep,
    report.report,
    measure.calibrate,
    measure.validate,
    execute.demo,
):
    app.command()(verb)
app.command(name="plan")(plan.plan_command)
app.command(context_settings=EXTRA)(execute.run)
model_app.command("build")(make.model_build)
model_app.command("import", context_settings=EXTRA)(make.model_import)
coreml_app.command("export")(coreml.export)
coreml_app.command("check")(coreml.check)
coreml_app.command("cost")(coreml_device.cost)
coreml_app.command("profile")(coreml_device.profile)
coreml_app.command("workload")(coreml.workload)
trace_app.command("show")(traces.show_trace)
trace_app.command("convert")(traces.convert)
trace_app.command("diff")(traces.diff)


def main() -> None:
    """Run the command line and leave with the documented exit code."""
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
    except Exception as problem:
        if hasattr(problem, "format_message"):  # what the argument parser raises
            # A group without a verb has printed its help, and has nothing to say beside it.
            message = problem.format_message()
            return _fail(message, 2) if message else 2
        if type(problem).__name__ == "Abort":
            return _fail("interrupted", 128 + signal.SIGINT)
        if isinstance(problem, OSError):
            return _fail(f"{problem.filename or ''}: {problem.strerror or problem}".lstrip(": "), 4)
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
