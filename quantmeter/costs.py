"""Which backend prices which metric: what ``--cost`` says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from costmodels.errors import BackendError
from costmodels.model import BackendContext, CostModel
from costmodels.registry import backend
from costmodels.size import ExportedSize
from costmodels.table import CostTable, FloatArray
from costmodels.units import Metric
from quantization.bits import FLOAT32, BitWidths
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch


@dataclass(frozen=True, eq=False)
class Costs:
    """A cost model for each metric that is priced; size is always the exporter's own."""

    models: Mapping[Metric, CostModel]

    def model(self, metric: Metric) -> CostModel:
        """Return the model of `metric`.

        Raises:
            BackendError: if none was given; says how to give one.
        """
        try:
            return self.models[metric]
        except KeyError:
            examples = {
                Metric.LATENCY: "--cost table:TABLE.json or --cost ort",
                Metric.ENERGY: "--cost energy=analytical:haq",
            }
            raise BackendError(
                f"nothing prices {metric.value}; add {examples.get(metric, '')}"
            ) from None

    def tables(self, network: Network, choices: Sequence[BitWidths]) -> dict[Metric, CostTable]:
        """Return the table of every metric, over `choices`."""
        return {m: model.table(network, choices, m) for m, model in self.models.items()}

    def total(self, network: Network, policies: Sequence[Policy], metric: Metric) -> FloatArray:
        """Return the cost of each policy, (P,), in SI units."""
        return self.model(metric).total(network, PolicyBatch.of(network, policies), metric)

    def float_total(self, network: Network, metric: Metric) -> float:
        """Return the cost of the float network."""
        return float(self.total(network, [Policy.uniform(network, FLOAT32)], metric)[0])


def parse_costs(texts: Sequence[str], context: BackendContext) -> Costs:
    """Read ``--cost`` values: a backend, or ``METRIC=`` and a backend.

    Without ``METRIC=``, a backend prices every metric that it can and that nothing else was named
    for, size excepted.

    Raises:
        BackendError: for an unknown backend or metric, or two backends for one metric.
    """
    named: dict[Metric, CostModel] = {}
    general: dict[Metric, CostModel] = {}
    for text in texts:
        metric_name, equals, spec = text.partition("=")
        known = {m.value: m for m in Metric}
        if equals and metric_name in known:
            metric, model = known[metric_name], backend(spec, context)
            if metric is Metric.SIZE:
                raise BackendError("size is not priced by a backend: it is the exported file's own")
            if metric not in model.metrics:
                raise BackendError(f"{spec} does not price {metric.value}")
            if metric in named:
                raise BackendError(f"two backends for {metric.value}")
            named[metric] = model
            continue
        model = backend(text, context)
        for metric in model.metrics - {Metric.SIZE}:
            if metric in general:
                raise BackendError(
                    f"two backends for {metric.value}; name one: --cost {metric.value}=BACKEND"
                )
            general[metric] = model
    return Costs({**general, **named, Metric.SIZE: ExportedSize()})
