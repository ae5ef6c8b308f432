"""What the package's house looks like: folders, arrows between them, circles, the longest file and function.

    .venv/bin/python experiments/architecture.py

Import statements are taken wherever they stand, in functions and under TYPE_CHECKING too. The results go to
experiments/results/architecture.md.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import grimp
import networkx as nx

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cidl_sim"
RESULTS = Path(__file__).parent / "results" / "architecture.md"
NAME = re.compile(r"open[-_ ]?sora", re.IGNORECASE)
FAMILY = PACKAGE / "pipelines" / "open_sora"
LONG_FILE, LONG_FUNCTION = 400, 60
Function = ast.FunctionDef | ast.AsyncFunctionDef


def main() -> None:
    text = "\n".join(report()) + "\n"
    RESULTS.write_text(text)
    print(text)


def report() -> list[str]:
    graph = import_graph()
    files = {path: path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
    folders = arrows(graph)
    return [
        "# The package's house",
        "",
        f"Made by `experiments/architecture.py` on {datetime.now(UTC).date().isoformat()}: "
        f"{len(files)} files, {sum(text.count(chr(10)) for text in files.values())} lines.",
        "",
        f"- folders: {', '.join(sorted({folder for arrow in folders for folder in arrow}))}",
        f"- arrows between folders: {len(folders)}, of {folders.total()} imports",
        f"- circles of files: {named_circles(graph)}",
        f"- circles of folders: {named_circles(nx.DiGraph(list(folders)))}",
        *longest(files),
        *names_of_the_family(files),
        "",
        "| from | to (imports) |",
        "|---|---|",
        *(f"| {folder} | {targets} |" for folder, targets in rows(folders)),
    ]


def import_graph() -> nx.DiGraph[str]:
    """Every import of a module of the package by another."""
    modules = grimp.build_graph("cidl_sim", cache_dir=None)
    edges = [(m, imported) for m in modules.modules for imported in modules.find_modules_directly_imported_by(m)]
    return nx.DiGraph(edges)


def folder_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def arrows(graph: nx.DiGraph[str]) -> Counter[tuple[str, str]]:
    """Imports from one top-level folder to another."""
    pairs = ((folder_of(a), folder_of(b)) for a, b in graph.edges)
    return Counter((a, b) for a, b in pairs if a != b)


def named_circles(graph: nx.DiGraph[str]) -> str:
    circles = [sorted(group) for group in nx.strongly_connected_components(graph) if len(group) > 1]
    return "; ".join(" <-> ".join(group) for group in circles) or "none"


def longest(files: dict[Path, str]) -> list[str]:
    """The longest file and function, and what is beyond the house's measure."""
    lengths = {path: text.count("\n") for path, text in files.items()}
    functions = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path, text in files.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, Function)
    }
    file, function = max(lengths, key=lengths.__getitem__), max(functions, key=functions.__getitem__)
    long_files = sum(count > LONG_FILE for count in lengths.values())
    long_functions = sum(count > LONG_FUNCTION for count in functions.values())
    return [
        f"- longest file: {file.relative_to(ROOT)}, {lengths[file]} lines; {long_files} beyond {LONG_FILE}",
        f"- longest function: {function}, {functions[function]} lines; {long_functions} of {len(functions)} beyond "
        f"{LONG_FUNCTION}",
    ]


def names_of_the_family(files: dict[Path, str]) -> list[str]:
    """Files that name Open-Sora outside its folder: in code, and in comments and docstrings alone."""
    outside = {path: text for path, text in files.items() if not path.is_relative_to(FAMILY) and NAME.search(text)}
    in_code = [path for path, text in outside.items() if NAME.search(code_of(text))]
    in_words = [path for path in outside if path not in in_code]
    return [
        f"- files outside pipelines/open_sora that name Open-Sora in code: {listed(in_code)}",
        f"- in docstrings and comments alone (sources, examples): {listed(in_words)}",
    ]


def code_of(text: str) -> str:
    """Code without comments and docstrings: imports, names and values."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef | ast.Module) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def listed(paths: list[Path]) -> str:
    names = ", ".join(path.relative_to(PACKAGE).as_posix() for path in paths)
    return f"{len(paths)}" + (f" ({names})" if names else "")


def rows(folders: Counter[tuple[str, str]]) -> list[tuple[str, str]]:
    sources = sorted({source for source, _ in folders})
    return [
        (source, ", ".join(f"{target} ({count})" for (s, target), count in sorted(folders.items()) if s == source))
        for source in sources
    ]


if __name__ == "__main__":
    main()
