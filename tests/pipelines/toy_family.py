"""A model family of two linear layers that make an "image": all that a family has to say, and nothing else."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from cidl_sim.blocks.definition import TORCH_DTYPES, BlockDefinition, StageDefinition, meta_tensor
from cidl_sim.core.files import replacing
from cidl_sim.core.workload import Visit, widths
from cidl_sim.executor.backend import Call, Outcome
from cidl_sim.pipelines.pipeline import Feed, Length, ModelSizes, NamePart, Pipeline, RunSettings, State, dtype_part


class ToySizes(ModelSizes):
    width: int = 768  # a multiple of 3


class ToySettings(RunSettings):
    rows: int = 16
    steps: int = 4


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.linear(hidden))


class ToyProgram:
    def __init__(self, feed: Feed) -> None:
        torch.manual_seed(feed.seed)
        self._hidden = torch.randn(feed.settings.rows, feed.sizes.width)
        self._dtype, self.evaluations = TORCH_DTYPES[feed.settings.dtype], 0
        self.token_ids = torch.empty(0, dtype=torch.int64)

    def run(self, visit: Visit, block: Call) -> Outcome:
        with torch.no_grad():
            self._hidden = block(self._hidden.to(self._dtype)).float()
        self.evaluations += visit.position
        return Outcome()

    def state(self) -> State:
        return {"hidden": self._hidden}, {"evaluations": self.evaluations}

    def restore(self, state: State) -> None:
        self._hidden, self.evaluations = state[0]["hidden"], state[1]["evaluations"]

    def result(self) -> Tensor:
        return ((self._hidden + 1) * 127.5).to(torch.uint8).view(len(self._hidden), -1, 3)


class Toy(Pipeline):
    name, sizes_type, settings_type = "toy", ToySizes, ToySettings
    models, defaults = {"toy": ToySizes(name="toy")}, {"toy": ToySettings()}
    name_parts = (NamePart(r"(?P<rows>\d+)r", "{0.rows}r"), NamePart(r"(?P<steps>\d+)s", "{0.steps}s"), dtype_part())
    axes = {"rows": ("rows",), "steps": ("steps",), "dtype": ("dtype",)}

    def stages(self, sizes: ToySizes, settings: ToySettings, length: Length) -> list[StageDefinition]:
        def block(name: str) -> BlockDefinition:
            kind = f"toy.layer.{settings.dtype}.{settings.rows}.{widths(sizes.width)}"
            x, keys = meta_tensor(settings.rows, sizes.width, dtype=TORCH_DTYPES[settings.dtype]), {"": f"{name}."}
            return BlockDefinition(name, kind, name, lambda: Layer(sizes.width), lambda: (x,), "model", keys)

        return [StageDefinition("denoiser", "denoiser", settings.steps, (block("first"), block("second")))]

    def program(self, feed: Feed) -> ToyProgram:
        return ToyProgram(feed)

    def write(self, path: Path, result: Tensor) -> None:
        with replacing(path) as temporary:
            Image.fromarray(result.numpy()).save(temporary, format="PNG")


TOY = Toy()
