"""Groups of layers that must get equal bits."""

import pytest
import torch
from torch import Tensor, nn

from costmodels.sketch import example_network
from quantization.errors import PolicyError
from quantization.network import Network
from quantization.reading import read_network
from quantization.ties import merge_ties, residual_groups, resolve_ties
from quantization.torch_export import export_module


class Residual(nn.Module):
    """Two residual streams, the second behind a gate and a strided shortcut."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("stem", "a", "b", "c", "gate", "d"):
            setattr(self, name, nn.Conv2d(3 if name == "stem" else 8, 8, 3, padding=1))
        self.shortcut = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.a(x))
        x = x + self.b(x)
        y = self.c(x) * torch.sigmoid(self.gate(x))
        z = self.shortcut(y) + torch.relu(self.d(y))
        return self.head(z.mean((2, 3)))


@pytest.fixture(scope="module")
def network() -> Network:
    return read_network(export_module(Residual().eval(), torch.zeros(1, 3, 8, 8)))


def test_layers_that_are_added_up_are_one_group_through_activations_and_further_additions(
    network: Network,
) -> None:
    names = {name.split("/")[-2] if "/" in name else name: name for name in network.layer_names}
    assert set(names) == {"stem", "a", "b", "c", "gate", "d", "shortcut", "head"}
    found = {frozenset(group) for group in residual_groups(network)}
    assert found == {
        frozenset({names["stem"], names["a"], names["b"]}),
        frozenset({names["shortcut"], names["d"]}),
    }


def test_a_chain_has_no_residual_groups() -> None:
    plain = read_network(
        export_module(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval(),
            torch.zeros(1, 3, 8, 8),
        )
    )
    assert residual_groups(plain) == ()
    with pytest.raises(PolicyError, match="leave out --tie residual"):
        resolve_ties(plain, [("residual",)])


def test_ties_that_overlap_are_merged_with_the_networks_own() -> None:
    network = example_network()
    first, second, third, *_ = network.layer_names
    own = network.tied([(first, second)])
    assert resolve_ties(own, []) == ((first, second),)
    assert resolve_ties(own, [(third, second)]) == ((first, second, third),)
    assert merge_ties([]) == ()


@pytest.mark.parametrize("group", [("a",), (), ("a", "a")])
def test_a_tie_of_fewer_than_two_layers_is_rejected(group: tuple[str, ...]) -> None:
    with pytest.raises(PolicyError, match="at least two layers"):
        resolve_ties(example_network(), [group])


def test_a_misspelled_word_for_residual_groups_is_recognised() -> None:
    with pytest.raises(PolicyError, match=r"not residul .did you mean 'residual'"):
        resolve_ties(example_network(), [["residul"]])


def test_an_unknown_layer_is_named() -> None:
    with pytest.raises(PolicyError, match="no layer 'nothere'"):
        resolve_ties(example_network(), [(example_network().layer_names[0], "nothere")])
