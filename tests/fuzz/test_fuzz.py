"""Some of the broken inputs that `make fuzz` tries a hundred thousand of."""

from __future__ import annotations

import pytest

from tests.fuzz.kinds import KINDS, Kind
from tests.fuzz.running import run

INPUTS = 150  # of each kind but for those that take long, some three thousand in all


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_broken_input_is_read_or_refused_in_one_line(kind: Kind, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert run(kind, tmp_path / "files", range(int(kind.share * INPUTS))).faults == []
