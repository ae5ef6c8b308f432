"""Standard output is for answers alone: what foreign code or a library prints meanwhile goes to standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_STANDARD_OUTPUT, _STANDARD_ERROR = 1, 2


@contextmanager
def answers_alone() -> Iterator[TextIO]:
    """Gives a stream to what was standard output; until the end all else that is printed goes to standard error.

    Where `sys.stdout` is the process's own also what is written to its descriptor, by compiled code or by children.
    """
    before = sys.stdout
    before.flush()
    if not _is_the_processs(before):
        sys.stdout = sys.stderr
        try:
            yield before
        finally:
            sys.stdout = before
        return
    own = os.dup(_STANDARD_OUTPUT)
    try:
        with os.fdopen(os.dup(own), "w", encoding=before.encoding, errors=before.errors) as answers:
            os.dup2(_STANDARD_ERROR, _STANDARD_OUTPUT)
            sys.stdout = sys.stderr
            yield answers
    finally:
        sys.stdout = before
        os.dup2(own, _STANDARD_OUTPUT)
        os.close(own)


def _is_the_processs(stream: TextIO) -> bool:
    try:
        return stream.fileno() == _STANDARD_OUTPUT
    except (AttributeError, OSError, ValueError):
        return False
