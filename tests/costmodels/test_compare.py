"""Agreement of cost backends with measurements: figures that can be checked by hand."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from costmodels.compare import (
    MACS_BITS,
    Agreement,
    Prediction,
    compare,
    macs_bits,
    rivals,
)
from costmodels.errors import BackendError, CostError, UnsupportedChoiceError
from costmodels.model import CostModel
from costmodels.registry import backend
from costmodels.replay import TableReplay
from costmodels.size import ExportedSize
from costmodels.sketch import Sketch, example_network
from costmodels.table import CostTable, FloatArray
from costmodels.units import Metric, Unit
from quantization.bits import FLOAT32, BitWidths
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch

NETWORK = example_network()
EIGHT = BitWidths(8, 8)


def _batch(count: int, seed: int = 0) -> PolicyBatch:
    """Different policies of float and w8a8."""
    draw = np.random.default_rng(seed)
    layers = len(NETWORK.layers)
    bits = draw.permutation(2**layers)[:count, None] >> np.arange(layers) & 1
    return PolicyBatch(NETWORK.layer_names, (EIGHT, FLOAT32), bits.astype(np.uint8))


class Says:
    """A backend without a table that answers what it was told."""

    metrics = frozenset({Metric.LATENCY})

    def __init__(self, values: Sequence[float], name: str = "says") -> None:
        self.name, self._values = name, np.array(values, np.float64)

    def table(self, *_: object) -> CostTable:
        raise AssertionError("a table would have to be measured; nobody asked for one")

    def total(self, _network: Network, _policies: PolicyBatch, _metric: Metric, /) -> FloatArray:
        return self._values


def _agreement(values: Sequence[float], measured: Sequence[float]) -> Agreement:
    models: dict[str, CostModel] = {"one": Says(values)}
    [found] = compare(NETWORK, _batch(len(measured)), np.array(measured), models)
    return found


def test_a_perfect_backend_has_no_error_and_no_regret() -> None:
    found = _agreement([3.0, 1.0, 2.0], [3.0, 1.0, 2.0])
    assert found.name == "one"
    assert found.error is not None
    assert (found.error.mean_absolute, found.error.near) == (0.0, 1.0)
    assert found.scale == pytest.approx(1.0)
    assert found.rank_correlation == pytest.approx(1.0)
    assert (found.picked, found.picked_cost, found.regret) == ((1,), 1.0, 0.0)


def test_a_constant_factor_is_an_error_as_it_is_and_none_after_scaling() -> None:
    measured = [3.0, 1.0, 2.0, 5.0]
    found = _agreement([m / 8 for m in measured], measured)
    assert found.error is not None
    assert found.error.mean_absolute == pytest.approx(7 / 8)
    assert found.error.near == 0.0
    assert found.scale == pytest.approx(8.0)
    assert found.scaled.mean_absolute == pytest.approx(0.0, abs=1e-12)
    assert found.scaled.near == 1.0


def test_the_scale_is_the_geometric_one_and_no_other_factor_leaves_smaller_logarithms() -> None:
    draw = np.random.default_rng(0)
    predicted = draw.uniform(1, 4, 9)
    measured = predicted * np.exp(draw.normal(1.0, 0.3, 9))
    scale = _agreement(predicted.tolist(), measured.tolist()).scale
    assert scale == pytest.approx(math.exp(float(np.median(np.log(measured / predicted)))))

    def far(factor: float) -> float:
        return float(np.abs(np.log(measured / (factor * predicted))).mean())

    assert all(far(scale) < far(scale * other) for other in (0.9, 0.99, 1.01, 1.1))


def test_one_policy_that_is_far_off_does_not_move_the_scale() -> None:
    measured = [1.0, 2.0, 3.0, 4.0, 5.0]
    found = _agreement([m / 2 for m in measured[:4]] + [5e4], measured)
    assert found.scale == pytest.approx(2.0)
    assert found.scaled.near == pytest.approx(4 / 5)


def test_regret_is_the_measured_time_of_what_was_picked_over_the_best() -> None:
    found = _agreement([1.0, 2.0, 3.0], [1.5, 1.2, 9.0])
    assert found.picked == (0,)
    assert found.picked_cost == 1.5
    assert found.regret == pytest.approx(1.5 / 1.2 - 1)


def test_regret_is_the_mean_over_policies_that_tie_for_the_least() -> None:
    measured = [1.0, 2.0, 4.0, 1.5]
    found = _agreement([0.3, 0.1 + 0.2, 0.3, 0.31], measured)
    assert found.picked == (0, 1, 2), "0.1 + 0.2 is 0.3 but for rounding"
    assert found.picked_cost == pytest.approx(7 / 3)
    assert found.regret == pytest.approx(7 / 3 - 1)


def test_where_all_predictions_are_equal_there_is_no_rank_correlation() -> None:
    found = _agreement([2.0, 2.0, 2.0], [1.0, 2.0, 3.0])
    assert found.rank_correlation is None
    assert found.picked == (0, 1, 2)
    assert found.regret == pytest.approx(1.0)
    json.dumps(found.to_dict(), allow_nan=False)


def test_cycles_have_no_error_in_seconds_but_one_after_scaling() -> None:
    batch = _batch(12)
    seconds = backend("analytical:haq").table(NETWORK, (EIGHT, FLOAT32), Metric.LATENCY)
    cycles = replace(seconds.scaled(2e9), unit=Unit.CYCLES)
    measured = TableReplay(seconds).total(NETWORK, batch, Metric.LATENCY)
    models: dict[str, CostModel] = {"s": TableReplay(seconds), "cycles": TableReplay(cycles)}
    first, second = compare(NETWORK, batch, measured, models)
    assert first.error is not None
    assert first.error.mean_absolute == 0.0
    assert second.error is None
    assert second.to_dict()["error"] is None
    assert second.to_dict()["unit"] == "cycles"
    assert second.scale == pytest.approx(0.5e-9)
    assert second.scaled.mean_absolute == pytest.approx(0.0, abs=1e-12)
    assert second.rank_correlation == pytest.approx(1.0)
    assert second.regret == 0.0


def test_backends_come_in_their_order_and_see_the_same_policies() -> None:
    batch, measured = _batch(3), np.array([1.0, 2.0, 3.0])
    models: dict[str, CostModel] = {"b": Says([1, 2, 3]), "a": Says([3, 2, 1])}
    found = compare(NETWORK, batch, measured, models)
    assert [each.name for each in found] == ["b", "a"]
    assert [each.rank_correlation for each in found] == pytest.approx([1.0, -1.0])
    assert [each.regret for each in found] == pytest.approx([0.0, 2.0])


def test_bits_that_a_backend_does_not_support_are_one_line_that_names_it() -> None:
    table = backend("analytical:haq").table(NETWORK, (EIGHT, FLOAT32), Metric.LATENCY)
    batch = PolicyBatch.of(NETWORK, [Policy({}), Policy({"stem": BitWidths(4, 8)})])
    models: dict[str, CostModel] = {"table:T.json": TableReplay(table)}
    with pytest.raises(UnsupportedChoiceError, match=r"^table:T\.json: the table has no w4a8"):
        compare(NETWORK, batch, np.array([1.0, 2.0]), models)


def test_any_other_refusal_of_a_backend_names_it_too() -> None:
    sketch = Sketch()
    other = sketch.network(sketch.conv(sketch.input((1, 3, 5, 5)), 4, name="only"))
    table = backend("analytical:haq").table(other, (EIGHT, FLOAT32), Metric.LATENCY)
    models: dict[str, CostModel] = {"theirs": TableReplay(table)}
    with pytest.raises(BackendError, match=r"^theirs: .*another network"):
        compare(NETWORK, _batch(2), np.array([1.0, 2.0]), models)
    energy: dict[str, CostModel] = {"horowitz": backend("analytical:horowitz")}
    with pytest.raises(BackendError, match=r"^horowitz: .*does not price latency"):
        compare(NETWORK, _batch(2), np.array([1.0, 2.0]), energy)


@pytest.mark.parametrize(
    "values", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, math.nan], [1.0, math.inf], [[1.0, 2.0]]]
)
def test_answers_that_are_no_positive_cost_per_policy_are_the_backends_error(
    values: Sequence[float],
) -> None:
    with pytest.raises(BackendError, match=r"^one: "):
        _agreement(values, [1.0, 2.0])


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ([1.0, 2.0], "3 policies need as many measurements"),
        ([[1.0, 2.0, 3.0]], "3 policies need as many measurements"),
        ([1.0, 2.0, 0.0], "positive and finite"),
        ([1.0, 2.0, math.nan], "positive and finite"),
        ([1.0, 2.0, math.inf], "positive and finite"),
    ],
)
def test_measurements_that_do_not_fit_are_an_error(measured: Sequence[float], message: str) -> None:
    models: dict[str, CostModel] = {"one": Says([1, 2, 3])}
    with pytest.raises(CostError, match=message):
        compare(NETWORK, _batch(3), np.array(measured), models)


def test_one_policy_is_no_choice() -> None:
    with pytest.raises(CostError, match="at least two"):
        _agreement([1.0], [1.0])


def test_macs_times_bits_add_up_over_the_layers() -> None:
    sketch = Sketch()
    first = sketch.conv(sketch.input((1, 3, 8, 8)), 4, kernel=3, name="first")
    network = sketch.network(sketch.conv(first, 2, name="second"))
    macs = {"first": 3 * 4 * 9 * 64, "second": 4 * 2 * 64}
    policies = [Policy({}), Policy({"first": BitWidths(4, 8), "second": BitWidths(2, 8)})]
    found = macs_bits(network, PolicyBatch.of(network, policies))
    assert found.tolist() == [
        (macs["first"] + macs["second"]) * 32 * 32,
        macs["first"] * 32 + macs["second"] * 16,
    ]


def test_the_rivals_are_macs_times_bits_and_the_size_of_the_exported_file() -> None:
    batch = _batch(5)
    macs, size = rivals(NETWORK, batch)
    assert (macs.name, macs.unit) == (MACS_BITS, None)
    assert (size.name, size.unit) == ("size", Unit.BYTES)
    np.testing.assert_array_equal(macs.values, macs_bits(NETWORK, batch))
    exact = ExportedSize().total(NETWORK, batch, Metric.SIZE)
    np.testing.assert_array_equal(size.values, exact)
    found = Agreement.of(size, macs.values, Metric.LATENCY)
    assert found.error is None


def test_what_cannot_be_exported_has_no_size() -> None:
    batch = PolicyBatch.of(NETWORK, [Policy({}), Policy({"stem": BitWidths(4, 4)})])
    assert [rival.name for rival in rivals(NETWORK, batch)] == [MACS_BITS]


def test_a_part_of_a_prediction_is_that_of_the_policies_that_are_kept() -> None:
    part = Prediction("a", np.array([1.0, 2.0, 3.0]), Unit.SECONDS).take(np.array([2, 0]))
    assert part.values.tolist() == [3.0, 1.0]
    assert (part.name, part.unit) == ("a", Unit.SECONDS)
