"""The small model that this project trained and ships: its checkpoints, in Open-Sora's own keys."""

from __future__ import annotations

from pathlib import Path

from cidl_sim.core.errors import MachineError
from cidl_sim.pipelines.open_sora.settings import OPENSORA_SHAPES

FOLDER = Path(__file__).parents[2] / "pretrained" / OPENSORA_SHAPES.name
PARTS = ("t5", "stdit", "vae")
CLASSIFIER = "classifier.safetensors"


def pretrained_folders() -> dict[str, Path]:
    """The checkpoints' folders: "t5" (with the tokenizer), "stdit", "vae". MachineError if they are not installed."""
    folders = {part: FOLDER / part for part in PARTS}
    missing = [str(folder) for folder in folders.values() if not folder.is_dir()]
    if missing:
        raise MachineError(f"{missing[0]}: the trained model is not installed with this package")
    return folders
