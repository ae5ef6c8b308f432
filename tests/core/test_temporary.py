"""Temporary folders end with the body, or are removed by the next one after a kill; those in use stay."""

from __future__ import annotations

import errno
import fcntl
import signal
import subprocess
import sys
import tempfile

import pytest

from cidl_sim.core.temporary import temporary_folder

HOLDS = """
import sys
from cidl_sim.core.temporary import temporary_folder
with temporary_folder("held") as folder:
    (folder / "file").write_text("x")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def base(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def names(base):
    return sorted(path.name for path in base.iterdir())


def test_it_is_there_for_the_body_alone(base):
    with temporary_folder("a") as first, temporary_folder("b") as second:
        (second / "deep").mkdir()
        assert {first.parent, second.parent} == {base}
        assert names(base) == sorted((first.name, second.name))
    assert names(base) == []
    with pytest.raises(ZeroDivisionError), temporary_folder("a"):
        _ = 1 / 0
    assert names(base) == []


def test_one_of_a_killed_process_goes_with_the_next_and_one_in_use_stays(base):
    with subprocess.Popen([sys.executable, "-c", HOLDS], stdin=-1, stdout=-1, text=True) as process:
        held = process.stdout.readline().strip()
        with temporary_folder("a"):
            assert f"{base}/{names(base)[1]}" == held
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(names(base)) == 1
    with temporary_folder("a") as folder:
        assert names(base) == [folder.name]


def test_nothing_else_is_touched(base):
    (base / "cidl-tmp-file").write_text("x")
    (base / "cidl-other").mkdir()
    (base / "elsewhere").mkdir()
    (base / "elsewhere" / "kept").write_text("x")
    (base / "cidl-tmp-link").symlink_to(base / "elsewhere")
    before = names(base)
    with temporary_folder("a"):
        pass
    assert names(base) == before
    assert (base / "elsewhere" / "kept").read_text() == "x"


def test_where_nothing_can_be_locked_folders_are_made_and_others_stay(base, monkeypatch):
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    (base / "cidl-tmp-a-left").mkdir()
    monkeypatch.setattr(fcntl, "flock", refused)
    with temporary_folder("a") as folder:
        assert names(base) == sorted(("cidl-tmp-a-left", folder.name))
    assert names(base) == ["cidl-tmp-a-left"]
