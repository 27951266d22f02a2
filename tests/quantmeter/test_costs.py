"""What ``--cost`` says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from costmodels.errors import BackendError, TableError
from costmodels.model import BackendContext
from costmodels.registry import backend
from costmodels.sketch import Sketch, example_network
from costmodels.table import CostTable
from costmodels.units import Metric
from quantization.bits import DEFAULT_CHOICES, BitWidths, parse_choices
from quantization.policy import Policy
from quantmeter.costs import Costs, parse_costs

CONTEXT = BackendContext()


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A latency table of the example network that differs from the preset's."""
    table = backend("analytical:haq").table(example_network(), DEFAULT_CHOICES, Metric.LATENCY)
    path = tmp_path / "table=a.json"
    path.write_text(replace(table, constant=1.0).to_json())
    return path


def _names(costs: Costs) -> dict[str, str]:
    return {metric.value: model.name for metric, model in costs.models.items()}


def test_a_backend_prices_everything_it_can_but_size() -> None:
    assert _names(parse_costs(["analytical:haq"], CONTEXT)) == {
        "latency": "analytical:haq",
        "energy": "analytical:haq",
        "size": "size",
    }


def test_a_backend_named_for_a_metric_prices_that_one_only() -> None:
    assert _names(parse_costs(["energy=analytical:horowitz"], CONTEXT)) == {
        "energy": "analytical:horowitz",
        "size": "size",
    }


def test_size_is_always_priced_by_the_exporter() -> None:
    assert _names(parse_costs([], CONTEXT)) == {"size": "size"}


def test_without_an_exported_file_nothing_has_a_size() -> None:
    costs = parse_costs(["analytical:haq"], CONTEXT, exported=False)
    assert _names(costs) == {"latency": "analytical:haq", "energy": "analytical:haq"}
    with pytest.raises(BackendError, match="nothing prices size; it is the exported file's"):
        costs.model(Metric.SIZE)


@pytest.mark.parametrize("turned", [False, True])
def test_a_named_metric_goes_before_a_general_backend_in_any_order(
    stored: Path, turned: bool
) -> None:
    texts = [f"latency=table:{stored}", "analytical:haq"]
    found = _names(parse_costs(texts[::-1] if turned else texts, CONTEXT))
    assert found["latency"] == f"table:{stored}"
    assert found["energy"] == "analytical:haq"


def test_two_general_backends_may_overlap_where_a_third_is_named(stored: Path) -> None:
    found = _names(
        parse_costs(["analytical:haq", f"table:{stored}", "latency=analytical:haq"], CONTEXT)
    )
    assert found["latency"] == "analytical:haq"


def test_an_equals_sign_in_a_path_is_no_metric(stored: Path) -> None:
    assert _names(parse_costs([f"table:{stored}"], CONTEXT))["latency"] == f"table:{stored}"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["analytical:haq", "TABLE"], "two backends for latency; name one: --cost latency="),
        (["latency=analytical:haq", "latency=TABLE"], "two backends for latency"),
        (["size=analytical:haq"], "size is not priced by a backend"),
        (["energy=TABLE"], "does not price energy"),
        (["latncy=TABLE"], "no metric 'latncy'.*did you mean 'latency'"),
        (["analitical:haq"], "no cost backend 'analitical'.*did you mean 'analytical'"),
        (["analytical:hak"], "no analytical preset 'hak'.*did you mean 'haq'"),
        (["analytical"], "no analytical preset ''"),
        (["table"], "name the table file"),
        (["ort:x"], "no device 'x' of ONNX Runtime"),
        (["latency="], "no cost backend ''"),
    ],
)
def test_what_cannot_be_meant_is_an_error(stored: Path, texts: list[str], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        parse_costs([text.replace("TABLE", f"table:{stored}") for text in texts], CONTEXT)


def test_a_metric_without_a_backend_says_how_to_give_one() -> None:
    with pytest.raises(BackendError, match=r"nothing prices latency; add --cost table:TABLE"):
        parse_costs([], CONTEXT).model(Metric.LATENCY)
    with pytest.raises(BackendError, match=r"nothing prices energy; add --cost energy="):
        parse_costs([], CONTEXT).model(Metric.ENERGY)


def test_a_table_of_another_network_is_an_error(stored: Path) -> None:
    sketch = Sketch()
    other = sketch.network(sketch.conv(sketch.input((1, 3, 5, 5)), 4, name="only"))
    costs = parse_costs([f"table:{stored}"], CONTEXT)
    with pytest.raises(TableError, match="of another network"):
        costs.tables(other, DEFAULT_CHOICES)
    with pytest.raises(TableError, match="of another network"):
        costs.float_reference(other, Metric.LATENCY)


def test_a_layer_that_a_policy_does_not_name_is_priced_as_float(stored: Path) -> None:
    costs, network = parse_costs([f"table:{stored}"], CONTEXT), example_network()
    empty, eight = costs.total(
        network, [Policy({}), Policy({"stem": BitWidths(8, 8)})], Metric.LATENCY
    )
    assert empty == costs.float_total(network, Metric.LATENCY)
    assert empty == costs.float_reference(network, Metric.LATENCY)
    assert eight < empty


class _Drifting:
    """Measures: what `total` answers is not what its table says."""

    name = "drifting"
    metrics = frozenset({Metric.LATENCY})

    def __init__(self, table: CostTable) -> None:
        self._table = table

    def table(self, _network: object, choices: object, _metric: object, /) -> CostTable:
        return self._table.restrict(choices)  # type: ignore[arg-type]

    def total(self, _network: object, policies: object, _metric: object, /) -> object:
        return np.full(len(policies), 99.0)  # type: ignore[arg-type]


def test_relative_budgets_refer_to_the_table_and_not_to_a_later_measurement(
    stored: Path,
) -> None:
    network, table = example_network(), CostTable.read(stored)
    costs = Costs({Metric.LATENCY: _Drifting(table)})  # type: ignore[dict-item]
    assert costs.float_total(network, Metric.LATENCY) == 99.0
    expected = table.constant + table.unary.value[:, DEFAULT_CHOICES.index(BitWidths(32, 32))].sum()
    assert costs.float_reference(network, Metric.LATENCY) == pytest.approx(expected)


def test_a_table_without_the_float_network_has_no_reference_and_not_one_of_zero(
    stored: Path,
) -> None:
    table = CostTable.read(stored).restrict(parse_choices("w4a8,w8a8"))
    stored.write_text(table.to_json())
    costs, network = parse_costs([f"table:{stored}"], CONTEXT), example_network()
    assert costs.float_total(network, Metric.LATENCY) is None
    assert costs.float_reference(network, Metric.LATENCY) is None


def test_the_reference_for_size_is_the_exact_float_file() -> None:
    network = example_network()
    costs = parse_costs([], CONTEXT)
    assert costs.float_reference(network, Metric.SIZE) == costs.float_total(network, Metric.SIZE)


def test_every_priced_metric_has_a_table(stored: Path) -> None:
    costs = parse_costs([f"table:{stored}", "energy=analytical:haq"], CONTEXT)
    tables = costs.tables(example_network(), parse_choices("w8a8,w32a32"))
    assert set(tables) == set(Metric)
    assert {t.choices for t in tables.values()} == {parse_choices("w8a8,w32a32")}
