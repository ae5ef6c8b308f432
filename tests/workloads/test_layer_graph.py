import torch
from torch import Tensor, nn

from cidl_sim.workloads.layer_graph import measure_module


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
