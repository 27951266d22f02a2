"""The contract of a cost backend, as one test class that every backend inherits.

    class TestMine(CostModelContract):
        @classmethod
        def model(cls) -> CostModel:
            return backend("mine:argument")

A contract test cannot be overridden. What a backend cannot keep, it says:
``exemptions = {"test_total_is_deterministic": "every call measures anew"}``. Needs pytest.
"""
# ruff: noqa: D102 - the name of a test is its sentence

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest

from costmodels.errors import BackendError, TableError, UnsupportedChoiceError
from costmodels.model import CostModel
from costmodels.pricing import total
from costmodels.sketch import Sketch, example_network
from costmodels.table import Cells, CostTable, Provenance
from costmodels.units import SI_UNIT, UNITS, Metric
from quantization.bits import DEFAULT_CHOICES, BitWidths
from quantization.formats import formats
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch

POLICIES = 50
"""Random policies that a batch of the contract holds."""


def reference_total(table: CostTable, network: Network, policy: Policy) -> float:
    """Price one policy cell by cell: slow, and easy to check by eye.

    ``constant + once + sum(unary) + sum(glue) + sum(conversion)``, formats by
    `quantization.formats`.

    Returns:
        The cost in the table's unit; infinite if a cell that the policy needs is not supported.
    """
    given = formats(network, policy)
    cost = table.constant
    for layer in network.layers:
        row = table.layers.index(layer.name)
        cost += float(table.unary.value[row, table.choices.index(policy[layer.name])])
    if table.once is not None and any(
        table.once.cells[table.layers.index(name), table.choices.index(policy[name])]
        for name in network.layer_names
    ):
        cost += table.once.value
    for glue in network.glue:
        row = table.glue_names.index(glue.name)
        cost += float(table.glue.value[row, table.formats.index(given.reads[glue.name])])
    for tensor, written, target in given.conversions:
        row = table.tensors.index(tensor)
        source, sink = table.formats.index(written), table.formats.index(target)
        cost += float(table.conversion.value[row, source, sink])
    return cost


def random_policies(table: CostTable, network: Network, count: int, seed: int = 0) -> PolicyBatch:
    """Draw policies from the cells that the table supports, those with a finite cost only.

    The first ones are uniform where the network supports that.

    Returns:
        At most `count` policies in terms of the table's choices.
    """
    random = np.random.default_rng(seed)
    allowed = [np.flatnonzero(row) for row in table.supported]
    uniform = [[k] * len(allowed) for k in range(len(table.choices)) if table.supported[:, k].all()]
    mixed = [[int(random.choice(row)) for row in allowed] for _ in range(count)]
    index = np.array([*uniform, *mixed][:count], np.uint8)
    batch = PolicyBatch(network.layer_names, table.choices, index)
    finite = [
        math.isfinite(reference_total(table, network, batch[position]))
        for position in range(len(batch))
    ]
    return PolicyBatch(network.layer_names, table.choices, index[finite])


@dataclass
class Subject:
    """The backend under test with its network; each table is asked for once."""

    model: CostModel
    network: Network
    choices: tuple[BitWidths, ...]
    tables: dict[Metric, CostTable] = field(default_factory=dict)

    def each_table(self) -> Iterator[tuple[Metric, CostTable]]:
        """Yield every metric with its table."""
        for metric in sorted(self.model.metrics):
            if metric not in self.tables:
                self.tables[metric] = self.model.table(self.network, self.choices, metric)
            yield metric, self.tables[metric]


class CostModelContract:
    """What every cost backend promises; inherit, name the class ``Test...``, define `model`."""

    choices: ClassVar[Sequence[BitWidths]] = DEFAULT_CHOICES
    """Choices that tables are asked for; at least two, at least one of them supported."""

    policies: ClassVar[int] = POLICIES
    """Random policies in a batch; fewer where each takes a backend seconds."""

    exemptions: ClassVar[Mapping[str, str]] = {}
    """Name of a contract test to the reason why this backend does not keep it."""

    @classmethod
    def model(cls) -> CostModel:
        """Return the backend; called once."""
        raise NotImplementedError

    @classmethod
    def network(cls) -> Network:
        """Return the network to price; called once."""
        return example_network()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        contract = {name for name in vars(CostModelContract) if name.startswith("test_")}
        if overridden := sorted(contract & set(vars(cls))):
            raise TypeError(f"contract tests are exempted, not overridden: {overridden}")
        if unknown := sorted(set(cls.exemptions) - contract):
            raise TypeError(f"exemptions from tests that do not exist: {unknown}")
        if not all(cls.exemptions.values()):
            raise TypeError("an exemption needs its reason")

    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls) -> Subject:
        """The backend, made once for the class."""
        return Subject(cls.model(), cls.network(), tuple(cls.choices))

    @pytest.fixture(autouse=True)
    def _exempt(self, request: pytest.FixtureRequest) -> None:
        name = getattr(request.node, "originalname", request.node.name)
        if reason := self.exemptions.get(name):
            pytest.skip(f"exempt: {reason}")

    def test_it_has_a_name_and_prices_something(self, subject: Subject) -> None:
        assert isinstance(subject.model.name, str)
        assert subject.model.name
        assert isinstance(subject.model.metrics, frozenset)
        assert subject.model.metrics
        assert subject.model.metrics <= set(Metric)

    def test_each_table_fits_its_network_and_choices(self, subject: Subject) -> None:
        network = subject.network
        for metric, table in subject.each_table():
            assert table.metric is metric
            assert table.unit in UNITS[metric]
            assert table.statistic
            assert table.network == network.digest
            assert table.layers == network.layer_names
            assert table.choices == subject.choices
            assert table.glue_names == tuple(glue.name for glue in network.glue)
            assert table.tensors == tuple(tensor.name for tensor in network.tensors)
            assert table.source, "a table says who made it"

    def test_what_is_not_supported_is_masked_and_never_nan_or_zero(self, subject: Subject) -> None:
        for _, table in subject.each_table():
            assert np.isfinite(table.constant)
            for cells in (table.unary, table.glue, table.conversion):
                assert not np.isnan(cells.value).any()
                absent = cells.provenance == Provenance.ABSENT.value
                np.testing.assert_array_equal(absent, np.isinf(cells.value))
            assert table.supported.any(axis=1).all(), "each layer runs at one choice at least"
            macs = np.array([layer.macs for layer in subject.network.layers])
            if table.metric is not Metric.SIZE:
                assert (table.unary.value[macs > 0] > 0).all(), "no layer is free"

    def test_a_uniform_network_costs_more_than_nothing(self, subject: Subject) -> None:
        for metric, table in subject.each_table():
            for column, bits in enumerate(table.choices):
                if not table.supported[:, column].all():
                    continue
                policy = Policy.uniform(subject.network, bits)
                if not math.isfinite(reference_total(table, subject.network, policy)):
                    continue
                [cost] = total(table, subject.network, PolicyBatch.of(subject.network, [policy]))
                assert cost > 0, f"{metric.value} of a uniform {bits} network"

    def test_pricing_its_table_equals_the_sum_over_the_cells(self, subject: Subject) -> None:
        for _, table in subject.each_table():
            batch = random_policies(table, subject.network, self.policies)
            assert len(batch), "no policy is supported as a whole"
            expected = [
                reference_total(table, subject.network, batch[i]) for i in range(len(batch))
            ]
            np.testing.assert_allclose(total(table, subject.network, batch), expected, rtol=1e-9)

    def test_total_is_the_sum_over_the_cells_of_the_table(self, subject: Subject) -> None:
        for metric, table in subject.each_table():
            batch = random_policies(table, subject.network, self.policies)
            expected = [
                reference_total(table, subject.network, batch[i]) for i in range(len(batch))
            ]
            costs = subject.model.total(subject.network, batch, metric)
            assert costs.shape == (len(batch),)
            np.testing.assert_allclose(costs, expected, rtol=1e-9)

    def test_total_is_deterministic(self, subject: Subject) -> None:
        for metric, table in subject.each_table():
            batch = random_policies(table, subject.network, self.policies)
            first = subject.model.total(subject.network, batch, metric)
            again = subject.model.total(subject.network, batch, metric)
            np.testing.assert_array_equal(first, again)

    def test_the_order_of_choices_does_not_matter(self, subject: Subject) -> None:
        for metric, table in subject.each_table():
            turned = subject.model.table(subject.network, table.choices[::-1], metric)
            assert turned.choices == table.choices[::-1]
            _assert_same_cells(turned.restrict(table.choices), table)

    def test_asking_for_another_metric_is_an_error(self, subject: Subject) -> None:
        for metric in set(Metric) - subject.model.metrics:
            with pytest.raises(BackendError, match=metric.value):
                subject.model.table(subject.network, subject.choices, metric)
            batch = PolicyBatch.of(
                subject.network, [Policy.uniform(subject.network, subject.choices[0])]
            )
            with pytest.raises(BackendError, match=metric.value):
                subject.model.total(subject.network, batch, metric)

    def test_a_policy_with_unsupported_bits_is_an_error(self, subject: Subject) -> None:
        for metric, table in subject.each_table():
            for layer, choice in np.argwhere(~table.supported):
                good = random_policies(table, subject.network, 1)
                index = good.index.copy()
                index[0, layer] = choice
                bad = PolicyBatch(good.layers, good.choices, index)
                with pytest.raises(UnsupportedChoiceError, match=str(table.choices[choice])):
                    subject.model.total(subject.network, bad, metric)

    def test_another_network_is_priced_as_what_it_is_or_is_an_error(self, subject: Subject) -> None:
        sketch = Sketch()
        other = sketch.network(sketch.conv(sketch.input((1, 3, 5, 5)), 7, kernel=3, name="only"))
        for metric, table in subject.each_table():
            batch = PolicyBatch.of(other, [Policy.uniform(other, table.choices[0])])
            with pytest.raises(TableError, match="another network"):
                total(table, other, batch)
            try:
                theirs = subject.model.table(other, subject.choices, metric)
            except TableError:
                with pytest.raises(TableError):
                    subject.model.total(other, batch, metric)
                continue
            assert theirs.network == other.digest, "the table is of a network nobody asked for"
            assert theirs.layers == other.layer_names
            batch = random_policies(theirs, other, 1)
            [cost] = subject.model.total(other, batch, metric)
            assert cost > 0
            if "test_total_is_the_sum_over_the_cells_of_the_table" not in self.exemptions:
                expected = reference_total(theirs, other, batch[0])
                np.testing.assert_allclose(cost, expected, rtol=1e-9)

    def test_a_table_survives_json(self, subject: Subject) -> None:
        for metric, table in subject.each_table():
            again = CostTable.from_json(table.to_json())
            _assert_same_cells(again, table)
            assert (again.metric, again.unit) == (metric, table.unit)
            assert (again.statistic, again.network) == (table.statistic, table.network)
            assert again.source == table.source

    def test_seconds_joules_and_bytes_are_of_a_possible_size(self, subject: Subject) -> None:
        largest = {Metric.LATENCY: 1e3, Metric.ENERGY: 1e3, Metric.SIZE: 1e12}
        for metric, table in subject.each_table():
            if table.unit is SI_UNIT[metric]:
                known = table.unary.value[table.supported]
                assert known.max() < largest[metric], f"is this {table.unit.value}?"


def _assert_same_cells(left: CostTable, right: CostTable) -> None:
    assert left.choices == right.choices
    assert left.constant == right.constant
    assert (left.once is None) == (right.once is None)
    if left.once is not None and right.once is not None:
        assert left.once.value == right.once.value
        np.testing.assert_array_equal(left.once.cells, right.once.cells)
    for name in ("unary", "glue", "conversion"):
        one: Cells = getattr(left, name)
        two: Cells = getattr(right, name)
        np.testing.assert_array_equal(one.value, two.value)
        np.testing.assert_array_equal(one.kernel, two.kernel)
        np.testing.assert_array_equal(one.provenance, two.provenance)
        np.testing.assert_equal(one.uncertainty, two.uncertainty)
