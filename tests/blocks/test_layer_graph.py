from functools import cache

import networkx as nx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cidl_sim.blocks.definition import BlockDefinition
from cidl_sim.blocks.layer_graph import layer_graph, measure_module
from cidl_sim.blocks.meta_device import MetaDevice
from cidl_sim.core.errors import WorkloadError
from cidl_sim.models import stdit3
from cidl_sim.models.stdit3 import STDiT3
from cidl_sim.pipelines.open_sora.settings import OPENSORA_V1_2, VideoSettings
from cidl_sim.pipelines.open_sora.stages import geometry_of, stage_definitions


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(10, 30, bias=False)
        self.b = nn.Linear(30, 20, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


def measured():
    with torch.device("meta"):
        return measure_module(TwoLayers(), [torch.empty(5, 10)])


def values(graph: nx.DiGraph, name: str) -> list:
    return [layer[name] for layer in graph.nodes.values()]


def total(graph: nx.DiGraph, name: str) -> float:
    return sum(values(graph, name))


# One call as a whole


def test_weights_and_arithmetic_are_counted():
    assert measured().weight_bytes == 4 * (300 + 600)
    assert measured().flops == 2 * 5 * (300 + 600)


def test_traffic_is_what_the_heavy_operations_touch():
    assert measured().bytes_moved == 4 * ((50 + 300 + 150) + (150 + 600 + 100))


def test_the_workspace_is_the_peak_of_live_tensors_without_weights():
    # Input and both hidden tensors live at once (the input is held by the caller): 50 + 150 + 150 floats.
    # Then input, second hidden, output: 50 + 150 + 100.
    assert measured().workspace_bytes == 4 * (50 + 150 + 150)


def test_a_view_costs_nothing():
    class View(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(-1)

    with torch.device("meta"):
        assert measure_module(View(), [torch.empty(5, 10)]).workspace_bytes == 4 * 50


def test_attention_is_counted_as_a_fused_kernel_does_it():
    class Attention(nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, k)

    q, k = torch.empty(2, 4, 700, 8), torch.empty(2, 4, 500, 8)
    found = measure_module(Attention(), [q, k])
    assert found.flops == 4 * 2 * 4 * 700 * 500 * 8
    scores = 4 * 2 * 4 * 700 * 500
    assert 4 * (2 * q.numel() + k.numel()) <= found.workspace_bytes < scores


# Layer by layer


def test_a_chain_is_taken_apart_to_its_layers():
    chain = [nn.Linear(10, 30), nn.Sequential(nn.ReLU(), nn.Linear(30, 20))]
    graph = layer_graph(chain, [torch.empty(5, 10)])
    assert values(graph, "name") == ["0", "1.0", "1.1"]
    assert values(graph, "module") == ["Linear", "ReLU", "Linear"]
    assert values(graph, "weight_bytes") == [4 * 330, 0, 4 * 620]
    assert values(graph, "flops") == [2 * 5 * 300, 0, 2 * 5 * 600]
    # The input is held throughout; a layer's own input lives on until the next one runs.
    assert values(graph, "activation_bytes") == [4 * (50 + 150), 4 * (50 + 150 + 150), 4 * (50 + 100)]
    assert list(graph.edges(data="bytes")) == [(0, 1, 4 * 150), (1, 2, 4 * 150)]


def test_modules_of_a_chain_may_pass_several_tensors_on():
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x + 1, x + 2

    class Sum(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    graph = layer_graph([Two(), Sum()], [torch.empty(5)])
    assert list(graph.edges(data="bytes")) == [(0, 1, 40)]


class WithASkip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(8))
        self.unused = nn.Parameter(torch.zeros(3))
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Bilinear(8, 8, 2)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x + self.offset)
        return self.c(self.b(x), x)


def test_a_skip_connection_is_an_edge_and_is_carried():
    graph = layer_graph(WithASkip(), [torch.zeros(5, 8)])
    assert list(graph.edges(data="bytes")) == [(0, 1, 160), (0, 2, 160), (1, 2, 160)]
    assert values(graph, "activation_bytes")[:2] == [2 * 160, 3 * 160]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_every_tensor_is_some_layers_and_shared_ones_have_one_name(device):
    with torch.device(device):
        module = WithASkip()
        graph = layer_graph(module, [torch.zeros(5, 8)])
    a, b, c = (set(p) for p in values(graph, "parameters"))
    assert a == {"offset", "a.weight", "a.bias"}
    assert b == {"a.weight", "b.bias"}
    assert c == {"c.weight", "c.bias", "unused"}
    together = {name: size for p in values(graph, "parameters") for name, size in p.items()}
    assert sum(together.values()) == sum(4 * p.numel() for p in module.parameters())


def test_a_layer_called_twice_is_two_nodes_with_the_same_tensors():
    layer = nn.Linear(4, 4)
    first, _, second = layer_graph([layer, nn.ReLU(), layer], [torch.zeros(4)]).nodes.values()
    assert first["parameters"] == second["parameters"]


def test_depth_says_how_far_modules_are_taken_apart():
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=32, num_layers=3, num_heads=4)
    with torch.device("meta"):
        module, ids = T5EncoderModel(config), torch.zeros(1, 7, dtype=torch.int64)
    graphs = {depth: layer_graph(module, [ids], depth=depth) for depth in (0, 1, 2, None)}
    assert values(graphs[0], "name") == ["T5EncoderModel"]
    assert values(graphs[1], "name") == ["encoder"]
    blocks = [name for name in values(graphs[2], "name") if "block" in name]
    assert blocks == ["encoder.block.0", "encoder.block.1", "encoder.block.2"]
    assert len({total(graph, "flops") for graph in graphs.values()}) == 1
    for graph in graphs.values():
        together = {name: size for p in values(graph, "parameters") for name, size in p.items()}
        assert sum(together.values()) == sum(4 * p.numel() for p in module.parameters())
        assert max(values(graph, "workspace_bytes")) == max(values(graphs[0], "workspace_bytes"))


def test_a_network_with_skips_from_another_library():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=16, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=8, norm_num_groups=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
        graph = layer_graph(unet, [torch.zeros(1, 4, 16, 16), torch.zeros(1), torch.zeros(1, 5, 8)])
    assert nx.is_directed_acyclic_graph(graph)
    assert max(b - a for a, b in graph.edges) > 50
    assert total(graph, "flops") > 0


def test_a_module_that_needs_values_is_refused_in_one_line():
    class NeedsValues(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x if self.proj(x).sum().item() > 0 else -x

    with pytest.raises(WorkloadError, match=r"NeedsValues cannot be measured without weights: .* return a") as caught:
        layer_graph(NeedsValues(), [torch.zeros(3)])
    assert "\n" not in str(caught.value)


# The published model


@cache
def whole_denoiser(settings: VideoSettings, text_tokens: int, *, merged: bool = False) -> nx.DiGraph:
    """One denoising step of the whole network, not cut into blocks."""
    with torch.device("meta"):
        network = STDiT3(OPENSORA_V1_2.stdit, OPENSORA_V1_2.t5.d_model, geometry_of(settings))
        latent = torch.empty(1, 4, *settings.latent_shape)
        scalar, text = torch.empty(1), torch.empty(1, text_tokens, OPENSORA_V1_2.t5.d_model)

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *inputs: Tensor) -> Tensor:
            return self.network.drift(*inputs, merged=merged)

    return layer_graph(Step(), [latent, scalar, scalar, text], world=MetaDevice())


@pytest.mark.parametrize(
    ("size", "text_tokens", "tera"),
    [
        (192, 50, 12.21),
        pytest.param(256, 50, 21.85, marks=pytest.mark.slow),
        pytest.param(256, 300, 22.64, marks=pytest.mark.slow),
        pytest.param(192, 300, 12.73, marks=pytest.mark.slow),
    ],
)
def test_a_step_of_the_whole_denoiser_costs_what_the_literature_says(size, text_tokens, tera):
    graph = whole_denoiser(VideoSettings(height=size, width=size, frames=68), text_tokens)
    assert total(graph, "flops") / 1e12 == pytest.approx(tera, rel=0.01)
    assert total(graph, "weight_bytes") == 4 * 1_208_872_772


@pytest.mark.slow
@pytest.mark.parametrize("size", [192, 256])
def test_merging_saves_the_same_in_the_whole_denoiser(size):
    settings = VideoSettings(height=size, width=size, frames=68)
    plain, merged = whole_denoiser(settings, 50), whole_denoiser(settings, 50, merged=True)
    assert 1.27 <= total(plain, "flops") / total(merged, "flops") <= 1.30


def temporal_block(*, merged: bool) -> BlockDefinition:
    settings = VideoSettings(frames=68, partition="fine", tdtm=30 if merged else 0)
    stage = next(s for s in stage_definitions(OPENSORA_V1_2, settings, 50) if s.group == "denoiser")
    return next(b for b in stage.blocks if b.name.endswith("temporal"))


def test_merged_temporal_attention_has_a_quarter_of_the_scores(monkeypatch):
    attention = F.scaled_dot_product_attention
    scores: list[int] = []

    def count(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores.append(q.shape[:-1].numel() * k.shape[-2])
        return attention(q, k, v)

    blocks = [temporal_block(merged=merged) for merged in (False, True)]
    monkeypatch.setattr(stdit3.F, "scaled_dot_product_attention", count)
    with torch.device("meta"):
        for block in blocks:
            block.build()(*block.example())
    plain_self, plain_cross, merged_self, merged_cross = scores
    assert plain_self == 2 * 256 * 16 * 20**2
    assert merged_self == plain_self / 4
    # Half the video tokens, all text tokens.
    assert merged_cross == plain_cross / 2
