"""The one interface that the search asks, and the context in which backends are made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from costmodels.errors import BackendError
from costmodels.pricing import total
from costmodels.table import CostTable, FloatArray
from costmodels.units import SI_UNIT, Metric, Unit
from quantization.bits import BitWidths
from quantization.network import Network
from quantization.policy import PolicyBatch


class CostModel(Protocol):
    """What the search asks. Latency in seconds, energy in joules, size in bytes.

    A stored table answers in its own unit, which may be cycles.
    """

    @property
    def name(self) -> str:
        """The text that makes this model, such as ``analytical:haq``."""

    @property
    def metrics(self) -> frozenset[Metric]:
        """What it can price."""

    def table(self, network: Network, choices: Sequence[BitWidths], metric: Metric, /) -> CostTable:
        """Return the cost of every layer, glue operator and conversion of `network`.

        Raises:
            BackendError: if the model does not price `metric`.
            TableError: if it only knows another network.
            UnsupportedChoiceError: if it only knows other choices.
        """

    def total(self, network: Network, policies: PolicyBatch, metric: Metric, /) -> FloatArray:
        """Return the cost of each policy, (P,).

        Raises:
            BackendError: if the model does not price `metric`.
            UnsupportedChoiceError: if a policy uses bits that are not supported.
        """


@dataclass(frozen=True)
class BackendContext:
    """What a backend may need besides its own argument.

    Args:
        threads: threads of the measured runtime.
        seconds: wall time that measuring one table may take.
        seed: of every random choice of a backend.
        inputs: real inputs of the network, (N, ...) float32, or None: measuring backends take
            ranges from them.
        store: file of the measurements that are kept, or None: measuring backends look there
            first, and a run that was ended goes on from there.
        progress: called with the share done, 0..1, and what is being done.
        anew: measuring backends first remove what `store` holds of a network that they measure.
        brief: `CostModel.total` of measuring backends times each policy as briefly as one of a
            table's many is, for searches that ask for hundreds; what they find is timed again.
        remote: ``HOST:PORT/KEY`` of a board's tracker, for backends that measure on boards; "" for
            this machine.
    """

    threads: int = 1
    seconds: float = 60.0
    seed: int = 0
    inputs: "np.ndarray[Any, np.dtype[np.float32]] | None" = None
    store: Path | None = None
    progress: Callable[[float, str], None] = field(default=lambda _share, _what: None)
    anew: bool = False
    brief: bool = False
    remote: str = ""


BackendFactory = Callable[[str, BackendContext], CostModel]
"""What an entry point of the group ``costmodels.backends`` names."""


class TableBackend:
    """Base of the backends whose `total` is the sum over their table.

    Subclasses set `name` and `metrics` and define `table`.
    """

    name: str
    metrics: frozenset[Metric]

    def table(self, network: Network, choices: Sequence[BitWidths], metric: Metric, /) -> CostTable:
        """See `CostModel.table`."""
        raise NotImplementedError

    def total(self, network: Network, policies: PolicyBatch, metric: Metric, /) -> FloatArray:
        """See `CostModel.total`."""
        return total(self.table(network, policies.choices, metric), network, policies)

    def require(self, metric: Metric) -> None:
        """Raise unless `metric` is one of `metrics`.

        Raises:
            BackendError: if it is not.
        """
        if metric not in self.metrics:
            priced = ", ".join(sorted(m.value for m in self.metrics))
            raise BackendError(f"{self.name} does not price {metric.value}; it prices {priced}")


def unit_of(
    model: CostModel, network: Network, choices: Sequence[BitWidths], metric: Metric
) -> Unit:
    """Return the unit of what `model.total` answers.

    A table may count cycles, and its sums do too; every other model answers in the SI unit, as
    the interface demands.

    Raises:
        BackendError: if the model does not price `metric`.
        TableError: if it only knows another network.
        UnsupportedChoiceError: if it does not know these choices.
    """
    if isinstance(model, TableBackend):
        return model.table(network, choices, metric).unit
    return SI_UNIT[metric]
