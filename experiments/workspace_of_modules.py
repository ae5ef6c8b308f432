"""The workspace that is found without memory, against what PyTorch really allocates on this processor.

    .venv/bin/python experiments/workspace_of_modules.py [--styles attention ...]

For a zoo of module styles in fp32 and bf16. Wanted: within 10 % or 4 MB. Writes
experiments/results/workspace_of_modules.md; a newer PyTorch wants a new table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch
from shared.module_zoo import STYLES, Style, allocated_bytes, in_type

from cidl_sim.blocks.layer_graph import layer_graph
from cidl_sim.core.errors import WorkloadError
from cidl_sim.core.files import write_text
from cidl_sim.executor.processor import processor_name

ROOT = Path(__file__).parent.parent
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WITHIN, OR_BYTES = 0.1, 4_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--styles", nargs="*", default=[""], help="only those whose name holds one of these")
    arguments = parser.parse_args()
    chosen = [style for style in STYLES if any(part in style.name for part in arguments.styles)]
    lines = [
        "# The workspace of modules",
        "",
        f"Command: `.venv/bin/python experiments/workspace_of_modules.py`. Date: {datetime.now(UTC).date()}. Machine: "
        f"{processor_name()}; torch {torch.__version__}.",
        "",
        "MB that PyTorch's allocator had given out at once during a call, against the workspace that is found without "
        "memory.",
        "",
        "| style | fp32 allocated | found | off | bf16 allocated | found | off |",
        "|---|---|---|---|---|---|---|",
    ]
    for style in chosen:
        lines.append(f"| {style.name} | {' | '.join(cell for dtype in DTYPES for cell in cells(style, dtype))} |")
        print(lines[-1], flush=True)
    if arguments.styles == [""]:
        write_text(ROOT / "experiments/results/workspace_of_modules.md", "\n".join([*lines, ""]))


def cells(style: Style, dtype: str) -> Iterator[str]:
    torch.manual_seed(0)
    module, inputs = in_type(style, DTYPES[dtype])
    try:
        real = allocated_bytes(module, inputs)
    except (RuntimeError, TypeError) as problem:
        yield from ("-", "-", str(problem).splitlines()[0][:40])
        return
    try:
        found = workspace(module, inputs)
    except WorkloadError as problem:
        yield from (f"{real / 1e6:.1f}", "-", str(problem)[:60])
        return
    mark = "" if abs(found - real) <= max(WITHIN * real, OR_BYTES) else " (!)"
    yield from (f"{real / 1e6:.1f}", f"{found / 1e6:.1f}", f"{found / real - 1:+.1%}{mark}")


def workspace(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> int:
    graph = layer_graph(module, inputs, depth=0)
    return max(node["workspace_bytes"] for node in graph.nodes.values())


if __name__ == "__main__":
    main()
