"""What the documents point at exists, and their prose is wrapped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "conformance").glob("*.md")],
)
LONGEST_LINE = 120
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Paths of this repository in backticks; names without a folder are files that commands write.
SOURCE = re.compile(r"`([a-z_]+(?:/[\w.-]+)+\.(?:py|toml|json|md|yml))`")
DOCUMENT = re.compile(r"\bdocs/[\w/]+\.(?:md|yml)")
# A table, a code block, a picture: what cannot be wrapped.
UNWRAPPED = ("|", "    ", "![")


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith(UNWRAPPED):
            yield number, line


def anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {anchor(line.lstrip("#")) for _, line in prose(page) if line.startswith("#")}


def test_there_are_pages_of_each_kind():
    kinds = {page.parent.name for page in PAGES if page.parent.parent == ROOT / "docs"}
    assert {"tutorial", "guides", "background", "reference"} <= kinds


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    missing = []
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, heading = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (heading and heading not in anchors(file)):
            missing.append(target)
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_prose_is_wrapped(page):
    assert [f"{number}: {line}" for number, line in prose(page) if len(line) > LONGEST_LINE] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=named)
def test_every_file_of_the_repository_that_is_named_is_there(page):
    folders = (ROOT, ROOT / "cidl_sim", ROOT / "experiments", page.parent)
    text = page.read_text(encoding="utf-8")
    assert [name for name in SOURCE.findall(text) if not any((folder / name).exists() for folder in folders)] == []


def test_every_document_that_code_names_is_there():
    files = [file for folder in ("cidl_sim", "experiments", "tests") for file in (ROOT / folder).rglob("*.py")]
    found = {(named(file), name) for file in files for name in DOCUMENT.findall(file.read_text(encoding="utf-8"))}
    assert len(found) > 5
    assert [(file, name) for file, name in sorted(found) if not (ROOT / name).is_file()] == []
