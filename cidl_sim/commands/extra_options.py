"""Options that belong to a model family: what a command does not know itself is read as --NAME VALUE."""

from __future__ import annotations

import typer

from cidl_sim.core.errors import InputError

# For `app.command(..., context_settings=EXTRA)`.
EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}


def extra_options(context: typer.Context) -> tuple[dict[str, str], list[str]]:
    """What was given beyond the command's own options, by name with underscores; and arguments without a name.

    InputError for an option without a value, or one that is given twice.
    """
    found: dict[str, str] = {}
    arguments: list[str] = []
    words = list(context.args)
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word == "-":
            arguments.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if not equals:
            if not words or words[0].startswith("--"):
                raise InputError(f"{word}: no such option here, or one without its value")
            value = words.pop(0)
        key = name.replace("-", "_")
        if key in found:
            raise InputError(f"--{name} is given twice")
        found[key] = value
    return found, arguments
