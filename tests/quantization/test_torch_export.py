"""Torch modules as ONNX: nodes are named by their modules, and the outputs are equal."""

import sys

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from quantization.errors import ModelError
from quantization.reading import read_network
from quantization.torch_export import export_module


class Mixed(nn.Module):
    """Every kind of layer; matrix products of three axes export with their weights transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(4, 6)
        self.plain = nn.Linear(6, 5, bias=False)
        self.conv = nn.Conv1d(8, 3, 1)
        self.up = nn.ConvTranspose1d(3, 3, 1)
        self.head = nn.Sequential(nn.Linear(15, 10, bias=False), nn.ReLU(), nn.Linear(10, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.plain(torch.relu(self.wide(x))))
        logits: torch.Tensor = self.head(self.up(self.conv(x)).flatten(1))
        return logits


@pytest.fixture(scope="module")
def exported() -> tuple[nn.Module, onnx.ModelProto]:
    torch.manual_seed(0)
    module = Mixed()
    return module, export_module(module, torch.randn(1, 8, 4))


def test_each_layer_is_named_by_its_module(exported: tuple[nn.Module, onnx.ModelProto]) -> None:
    names = read_network(exported[1]).layer_names
    assert names == ("wide", "plain", "conv", "up", "head.0", "head.2")


def test_the_outputs_are_equal(exported: tuple[nn.Module, onnx.ModelProto]) -> None:
    module, model = exported
    x = torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    [found] = session.run(None, {"x": x.numpy()})
    assert torch.allclose(torch.from_numpy(found), module(x), atol=1e-5)


def test_without_onnxscript_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModelError, match=r"pip install 'quantmeter\[train\]'"):
        export_module(nn.Linear(2, 2), torch.zeros(1, 2))
