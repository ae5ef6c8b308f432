"""What the commands share: consoles, arguments, printing, progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, cast, get_args

import typer
from rich.console import Console

from cidl_sim.core.answers import answers_alone
from cidl_sim.core.errors import InputError
from cidl_sim.core.files import Record
from cidl_sim.core.progress import StepProgress
from cidl_sim.core.quantities import is_size, parse_bytes, parse_bytes_per_s, parse_size

if TYPE_CHECKING:
    from cidl_sim.core.device import DeviceProfile
    from cidl_sim.core.trace import Trace
    from cidl_sim.executor.job import ComputeDevice


class _Answers:
    """What a verb answers to: standard output, as it was before foreign code lost it (`answers_alone`)."""

    def __init__(self) -> None:
        self.stream: TextIO | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream or sys.stdout, name)


_ANSWERS = _Answers()
# A pipe has no width of its own; names would be cut at 80 columns.
screen = Console(file=cast("TextIO", _ANSWERS), width=None if sys.stdout.isatty() else 132)
messages = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else there.")]
WorkloadArgument = Annotated[str, typer.Argument(metavar="WORKLOAD", help="A named workload or a workload file.")]
DeviceArgument = Annotated[str, typer.Argument(metavar="DEVICE", help="A named device or a device file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a figure of the device profile; bytes also as 3.3GB."),
]
StoreOption = Annotated[Path, typer.Option("--store", metavar="DIR", help="The block store.")]
ComputeDeviceOption = Annotated[
    str, typer.Option("--device", help="cpu, cuda or mps: what computes, and whose memory the limit is about.")
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, help="Cores that compute; without it, measured: all, or all but one for the loader."
    ),
]
Option = typer.Option
# What matplotlib writes; asking it would import it before every command.
PICTURES = (".png", ".pdf", ".svg", ".svgz", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".eps", ".ps")


# Arguments that are sizes


def some_bytes(text: str) -> int:
    """What an option that takes bytes was given; at least one."""
    return int(_above_zero(text, parse_bytes))


def some_bytes_per_s(text: str) -> float:
    """What an option that takes bytes a second was given; more than none."""
    return _above_zero(text, parse_bytes_per_s)


def _above_zero(text: str, parse: Callable[[str], float]) -> float:
    try:
        amount = parse(text)
    except InputError as problem:
        raise typer.BadParameter(str(problem)) from None
    if amount <= 0:
        raise typer.BadParameter(f"{text!r} is not above 0")
    return amount


# Printing


@contextmanager
def answering() -> Iterator[None]:
    """Until the end only `show`, `screen` and `print_json_text` reach standard output."""
    with answers_alone() as stream:
        _ANSWERS.stream = stream
        try:
            yield
        finally:
            _ANSWERS.stream = None


def rows_as_object(key: str, rows: Sequence[Any]) -> dict[str, Any]:
    """One JSON object around a list."""
    return {key: rows}


def note(words: str) -> None:
    """A remark on standard error."""
    messages.print(words, markup=False, highlight=False)


def print_json_text(text: str) -> None:
    """Put JSON on standard output untouched."""
    _ANSWERS.write(text if text.endswith("\n") else text + "\n")


def show(data: Any, as_json: bool, for_people: Callable[[], Any]) -> None:
    """Print `data` (a record, several, or plain figures) as JSON, or what people get instead."""
    if as_json:
        print_json_text(json.dumps(_plain(data), indent=1))
        return
    shown = for_people()
    for part in shown if isinstance(shown, list) else [shown]:
        screen.print(part)


def _plain(data: Any) -> Any:
    if isinstance(data, list):
        return [_plain(item) for item in data]
    if isinstance(data, dict):
        return {name: _plain(value) for name, value in data.items()}
    return data.model_dump(mode="json") if isinstance(data, Record) else data


@contextmanager
def progress(*, fleeting: bool = False) -> Iterator[StepProgress]:
    """A progress bar on standard error; gives what to tell the progress of each step.

    It appears with the first step, so that what is refused before that is refused in one line. A `fleeting` one leaves
    nothing behind.
    """
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("[dim]{task.fields[detail]}[/dim]"),
        TimeElapsedColumn(),
    )
    # Where nothing can be taken back rich would leave an empty line.
    hidden = fleeting and not messages.is_terminal
    shown = Progress(*columns, console=messages, transient=fleeting, disable=hidden)
    tasks: dict[str, Any] = {}

    def step(name: str, done: int, total: int, detail: str) -> None:
        if name not in tasks:
            shown.start()
            for task in tasks.values():
                shown.stop_task(task)
            tasks[name] = shown.add_task(name, total=total, detail=detail)
        shown.update(tasks[name], completed=done, total=total, detail=detail)

    try:
        yield step
    finally:
        if tasks:
            shown.stop()


def draw(traces: list[tuple[str, Trace]], path: Path, title: str) -> None:
    """Write the timelines of some traces, each with its own title."""
    from cidl_sim.report.timeline import draw_timelines

    draw_timelines(traces, path, title)


# What several commands are given


def check_picture(option: str, path: Path | None) -> None:
    """InputError, before any work is done, if nothing can draw a picture of that name; without an ending it is PNG."""
    if path is not None and path.suffix and path.suffix.lower() not in PICTURES:
        raise InputError(f"{option} {path}: a picture's name ends in one of {', '.join(PICTURES)}")


def compute_device_named(name: str) -> ComputeDevice:
    """The argument of --device. InputError if there is no such."""
    from cidl_sim.executor.job import ComputeDevice

    if name not in get_args(ComputeDevice):
        raise InputError(f"--device {name!r}: choose one of {', '.join(get_args(ComputeDevice))}")
    return cast("ComputeDevice", name)


def device_with(name: str, settings: list[str] | None) -> DeviceProfile:
    """A device profile with the figures of --set KEY=VALUE replaced."""
    from cidl_sim.core.what_if import with_value
    from cidl_sim.devices.catalog import find_device

    device = find_device(name)
    for setting in settings or ():
        key, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting!r}: write KEY=VALUE")
        try:
            figure = json.loads(value)
        except json.JSONDecodeError:
            figure = _size(key, value, setting)
        device = with_value(device, key, figure)
    return device


def _size(key: str, value: str, setting: str) -> int | float:
    if not is_size(key):
        raise InputError(f"--set {setting!r}: {value!r} is not a number (the key names the unit)")
    try:
        return parse_size(key, value)
    except InputError as problem:
        raise InputError(f"--set {setting!r}: {problem}") from None
