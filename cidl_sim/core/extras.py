"""Which extra of the package brings a library that is not installed."""

from __future__ import annotations

from cidl_sim.core.errors import MachineError

# The name that a library is imported by, and its extra in pyproject.toml. All other dependencies are always there.
EXTRAS = {
    **dict.fromkeys(
        (
            "av",
            "bs4",
            "diffusers",
            "ftfy",
            "networkx",
            "safetensors",
            "sentencepiece",
            "skimage",
            "tokenizers",
            "torch",
            "transformers",
        ),
        "run",
    ),
    "coremltools": "coreml",
    "dask": "cluster",
    "distributed": "cluster",
    "ortools": "exact",
}


def missing_extra(problem: ModuleNotFoundError) -> MachineError | None:
    """What to say of a library that an extra brings; None if the missing module is none of an extra's."""
    library = (problem.name or "").partition(".")[0]
    if library not in EXTRAS:
        return None
    return MachineError(f"{library} is not installed: pip install 'cidl-sim[{EXTRAS[library]}]'")
