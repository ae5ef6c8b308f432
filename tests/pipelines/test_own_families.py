"""Families named in the environment that cannot be had: one line says what is wrong."""

from __future__ import annotations

import sys

import pytest

from cidl_sim.core.errors import InputError, MachineError
from cidl_sim.pipelines.catalog import VARIABLE, pipelines


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Writes a module that a family may be named in."""

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv(VARIABLE, f"{name}:FAMILY")

    return write


def test_a_family_that_needs_a_library_names_the_extra(own_module, monkeypatch):
    own_module("family_with_torch", "import torch")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MachineError, match=r"torch is not installed: pip install 'cidl-sim\[run\]'"):
        pipelines()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("family_that_fails", "1 / 0", "cannot be imported (division by zero)"),
        ("family_without_object", "", "cannot be imported (module 'family_without_object' has no attribute 'FAMILY')"),
        ("family_of_another_type", "FAMILY = 3", "is no Pipeline"),
    ],
)
def test_what_cannot_be_a_family_is_named(name, text, words, own_module):
    own_module(name, text)
    with pytest.raises(InputError) as refused:
        pipelines()
    assert str(refused.value) == f"{VARIABLE}: '{name}:FAMILY' {words}"
