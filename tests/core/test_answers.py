"""Standard output has answers alone, whoever prints beside them."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os, subprocess, sys
from cidl_sim.core.answers import answers_alone
print("before")
with answers_alone() as answers:
    print("noise")
    os.write(1, b"from compiled code\\n")
    subprocess.run([sys.executable, "-c", "print('from a child')"])
    answers.write("the answer\\n")
print("after")
"""


def test_what_is_printed_meanwhile_goes_to_standard_error():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["before", "the answer", "after"]
    assert done.stderr.splitlines() == ["noise", "from compiled code", "from a child"]


def test_a_stream_that_is_not_the_processs_is_kept_too(capsys):
    from cidl_sim.core.answers import answers_alone

    with answers_alone() as answers:
        sys.stdout.write("noise\n")
        answers.write("the answer\n")
    sys.stdout.write("after\n")
    assert capsys.readouterr() == ("the answer\nafter\n", "noise\n")
