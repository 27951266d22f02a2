"""What a policy costs in one metric, item by item: layers, glue, conversions, and the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodels.calibrated.interval import NetworkInterval
from costmodels.model import CostModel
from costmodels.pricing import total
from costmodels.provenance import said_of
from costmodels.table import Cells, CostTable
from costmodels.units import Metric, Unit
from quantization.formats import formats
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch

_ROUNDING = 1e-9
"""Share of the total below which a difference of two sums is none."""


@dataclass(frozen=True)
class Item:
    """One cost, in the unit of its bill.

    Args:
        name: of the layer, or of what is summed.
        cost: what it costs; what is fitted may be negative.
        bits: of the layer; empty elsewhere.
        provenance: names of `Provenance`, joined by commas; empty where no cell says it.
        kernel: what executes a layer, if that is known.
    """

    name: str
    cost: float
    bits: str = ""
    provenance: str = ""
    kernel: str = ""


@dataclass(frozen=True)
class Bill:
    """What a policy costs in one metric.

    The costs of `layers` and `others` add up to `total`.

    Args:
        metric: what is priced.
        unit: of every cost.
        statistic: of the table.
        total: what the model answers for the whole policy.
        summed: the sum of the table's cells, which a search adds up.
        layers: in execution order.
        others: ``glue``, ``conversions``, ``constant``, what is paid ``once``, what ``neighbours``
            add, and ``difference``: what the model answers for the whole beyond all these.
        said: how the costs came to be, see `costmodels.provenance`.
        interval: ends of the 90 % interval of the total; None where the model tells none.
        source: of the table.
    """

    metric: Metric
    unit: Unit
    statistic: str
    total: float
    summed: float
    layers: tuple[Item, ...]
    others: tuple[Item, ...]
    said: str
    interval: tuple[float, float] | None
    source: Mapping[str, Any]

    @property
    def provenance(self) -> list[str]:
        """What the costs of layers are, each once."""
        return sorted({item.provenance for item in self.layers})

    @property
    def notes(self) -> list[str]:
        """What whoever reads the costs should know, one sentence each."""
        return [str(note) for note in self.source.get("notes", ())]

    def share(self, item: Item) -> float:
        """Return the item's share of the total."""
        return item.cost / self.total if self.total else 0.0

    def other(self, name: str) -> float:
        """Return the cost of one of `others`."""
        return next(item.cost for item in self.others if item.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Return the bill as JSON values."""
        return {
            "metric": self.metric.value,
            "total": self.total,
            "unit": self.unit.value,
            "statistic": self.statistic,
            "provenance": self.provenance,
            "costs_from": self.said,
            "interval": None if self.interval is None else list(self.interval),
            "layers": [
                {
                    "name": item.name,
                    "bits": item.bits,
                    "cost": item.cost,
                    "share": self.share(item),
                    "kernel": item.kernel,
                    "provenance": item.provenance,
                }
                for item in self.layers
            ],
            **{item.name: item.cost for item in self.others},
            "other_provenance": {i.name: i.provenance for i in self.others if i.provenance},
            "table_total": self.summed,
            "source": dict(self.source),
            "notes": self.notes,
        }


def itemize(model: CostModel, network: Network, policy: Policy, metric: Metric) -> Bill:
    """Price a policy of `network` item by item.

    Raises:
        BackendError: if the model does not price `metric`.
        TableError: if it only knows another network.
        UnsupportedChoiceError: if the policy uses bits that are not supported.
    """
    batch = PolicyBatch.of(network, [policy])
    table = model.table(network, batch.choices, metric)
    exact = float(model.total(network, batch, metric)[0])
    summed = float(total(table, network, batch)[0])
    row = {name: i for i, name in enumerate(table.layers)}
    layers = []
    for name in network.layer_names:
        at = row[name], int(batch.index[0, row[name]])
        cost, provenance = float(table.unary.value[at]), str(table.unary.provenance[at])
        kernel = str(table.unary.kernel[at])
        layers.append(Item(name, cost, str(policy[name]), provenance, kernel))
    others = _others(table, network, policy, batch)
    beyond = exact - sum(item.cost for item in (*layers, *others))
    if abs(beyond) <= _ROUNDING * abs(exact):
        beyond = 0.0
    return Bill(
        metric,
        table.unit,
        table.statistic,
        exact,
        summed,
        tuple(layers),
        (*others, Item("difference", beyond)),
        said_of(table),
        _interval(table, exact),
        table.source,
    )


def _interval(table: CostTable, total_cost: float) -> tuple[float, float] | None:
    """Return the ends of the interval around a total of a table that knows one."""
    validation = table.source.get("validation")
    found = validation.get("interval") if isinstance(validation, Mapping) else None
    if found is None:
        return None
    width = 1 + float(NetworkInterval.from_dict(found).half_width(np.array(total_cost)))
    return total_cost / width, total_cost * width


def _others(table: CostTable, network: Network, policy: Policy, batch: PolicyBatch) -> list[Item]:
    """Return what the table adds to its layers; `batch` holds the policy alone."""
    chosen, known = formats(network, policy), table.formats
    glue = [(i, known.index(chosen.reads[name])) for i, name in enumerate(table.glue_names)]
    tensors = {name: i for i, name in enumerate(table.tensors)}
    converted = [(tensors[n], known.index(a), known.index(b)) for n, a, b in chosen.conversions]
    once = neighbours = 0.0
    if table.once is not None and table.once.due(batch.index)[0]:
        once = table.once.value
    if table.context is not None:
        neighbours = float(table.context.correction(batch.index, batch.choices)[0])
    return [
        _sum_of("glue", table.glue, glue),
        _sum_of("conversions", table.conversion, converted),
        Item("constant", table.constant),
        Item("once", once),
        Item("neighbours", neighbours),
    ]


def _sum_of(name: str, cells: Cells, at: Sequence[tuple[int, ...]]) -> Item:
    """Add up some cells of a block."""
    cost = sum(float(cells.value[position]) for position in at)
    said = sorted({str(cells.provenance[position]) for position in at})
    return Item(name, cost, provenance=", ".join(said))
