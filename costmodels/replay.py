"""The backend ``table:FILE``: costs from a stored table, for the network it was made for."""

from collections.abc import Sequence

from costmodels.errors import BackendError
from costmodels.model import BackendContext, CostModel, TableBackend
from costmodels.pricing import priced_network, total
from costmodels.spread import with_groups
from costmodels.table import CostTable, FloatArray
from costmodels.units import Metric
from quantization.bits import BitWidths
from quantization.channel_groups import ChannelGroups
from quantization.deployment import CPU_TARGET, TARGETS, Target
from quantization.network import Network
from quantization.policy import PolicyBatch


class TableReplay(TableBackend):
    """Answers from one stored table.

    Args:
        table: the table.
        name: what to call it.
        model: prices channel groups, which a table of a model's does not hold; None where there is
            nothing but the table.
    """

    def __init__(
        self, table: CostTable, name: str = "table", model: CostModel | None = None
    ) -> None:
        self.name = name
        self.metrics = frozenset({table.metric})
        self._table, self._model = table, model

    @property
    def target(self) -> Target:
        """What the table's policies were exported for: what a live backend said, else the CPU."""
        return TARGETS.get(str(self._table.source.get("target")), CPU_TARGET)

    def table(self, network: Network, choices: Sequence[BitWidths], metric: Metric, /) -> CostTable:
        """Return the stored table, restricted to `choices`; channel groups by `with_groups`.

        Raises:
            BackendError: if it holds another metric.
            TableError: if it is of another network.
            UnsupportedChoiceError: if it lacks a choice.
        """
        self.require(metric)
        self._table.check(network)
        if self._holds(choices):
            return self._table.restrict(choices)
        if self._model is not None and "runtime" not in self._table.source:
            return self._model.table(network, choices, metric)
        return with_groups(self._table, network, choices, self.target)

    def total(self, network: Network, policies: PolicyBatch, metric: Metric, /) -> FloatArray:
        """Price from the whole stored table and its context, if it has one.

        It is compiled once, whatever choices are asked for.

        Raises:
            BackendError: if it holds another metric.
            TableError: if it is of another network.
            UnsupportedChoiceError: if a policy uses bits that it does not hold or support.
        """
        self.require(metric)
        table = self._table
        if not self._holds(policies.choices):
            table = self.table(network, policies.choices, metric)
        costs = total(table, network, policies)
        if table.context is None:
            return costs
        index = priced_network(table, network).recode(policies)
        return costs + table.context.correction(index, table.choices)

    def _holds(self, choices: Sequence[BitWidths]) -> bool:
        """Whether there are no channel groups among the choices but those of the table."""
        held = self._table.choices
        return all(bits in held or not isinstance(bits, ChannelGroups) for bits in choices)


def create(argument: str, context: BackendContext) -> TableReplay:
    """Price by a stored table: ``table:FILE``.

    Raises:
        BackendError: if no file is named.
        TableError: if the file holds no table.
    """
    del context  # a stored table needs nothing else
    if not argument:
        raise BackendError("name the table file: table:TABLE.json")
    return TableReplay(CostTable.read(argument), f"table:{argument}")
