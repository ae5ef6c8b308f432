"""What is refused is said in one line, whatever a file named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cidl_sim.core.errors import CidlError, StoreError, WorkloadError, one_line
from cidl_sim.core.workload import read_workload
from cidl_sim.executor.store import BlockStore


@given(st.text())
def test_words_are_one_line_and_stay_what_they_are_otherwise(text: str) -> None:
    said = one_line(text)
    assert len(said.splitlines()) <= 1
    if text.isprintable():
        assert said == text
    assert str(CidlError(text)) == said


def test_keys_with_line_breaks_and_escape_codes_are_shown_as_such(tmp_path) -> None:
    # The first of these was found by coverage-guided fuzzing of store.json.
    (tmp_path / "store.json").write_text(json.dumps({"format": "cidl-store/1", "partitio\n": 1}))
    with pytest.raises(StoreError) as refused:
        BlockStore.open(tmp_path)
    assert "\n" not in str(refused.value)
    (tmp_path / "workload.json").write_text(json.dumps({"\x1b[2J": 1}))
    with pytest.raises(WorkloadError) as refused:
        read_workload(tmp_path / "workload.json")
    assert "\x1b" not in str(refused.value)
