"""Which backend prices which metric: what ``--cost`` says."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from costmodels.errors import BackendError, UnsupportedChoiceError
from costmodels.measurement import Device
from costmodels.model import BackendContext, CostModel
from costmodels.pricing import total
from costmodels.registry import backend
from costmodels.replay import TableReplay
from costmodels.size import ExportedSize
from costmodels.table import CostTable, FloatArray
from costmodels.units import Metric
from hil.device import detect
from quantization.bits import FLOAT32, BitWidths
from quantization.deployment import CPU_TARGET, Target
from quantization.errors import did_you_mean
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch

BOARDS = frozenset({"tvm"})
"""Backends that measure on boards."""
_STORED = "table:"


@dataclass(frozen=True, eq=False)
class Costs:
    """A cost model for each metric that is priced; size is the exporter's own, or not priced."""

    models: Mapping[Metric, CostModel]

    @property
    def target(self) -> Target:
        """What exported files are for: a device that a backend or its table names, else the CPU."""
        return _target(self.models.values())

    def model(self, metric: Metric) -> CostModel:
        """Return the model of `metric`.

        Raises:
            BackendError: if none was given; says how to give one.
        """
        try:
            return self.models[metric]
        except KeyError:
            advice = {
                Metric.LATENCY: "add --cost table:TABLE.json or --cost ort",
                Metric.ENERGY: "add --cost energy=analytical:haq",
                Metric.SIZE: "it is the exported file's, and --no-export means that there is none",
            }
            raise BackendError(f"nothing prices {metric.value}; {advice[metric]}") from None

    def tables(self, network: Network, choices: Sequence[BitWidths]) -> dict[Metric, CostTable]:
        """Return the table of every metric, over `choices`."""
        return {m: model.table(network, choices, m) for m, model in self.models.items()}

    def tables_with_float(
        self, network: Network, choices: Sequence[BitWidths]
    ) -> dict[Metric, CostTable]:
        """Return the table of every metric but size, over `choices` and, where priced, float32.

        `replaying` them answers a search as the models themselves do.
        """
        wider = tuple(dict.fromkeys((*choices, FLOAT32)))
        found: dict[Metric, CostTable] = {}
        for metric, model in self.models.items():
            if metric is Metric.SIZE:
                continue
            try:
                found[metric] = model.table(network, wider, metric)
            except UnsupportedChoiceError:
                found[metric] = model.table(network, choices, metric)
        return found

    def replaying(self, tables: Mapping[Metric, CostTable]) -> "Costs":
        """Return the costs with `tables` instead of the models of their metrics.

        What a table does not hold, channel groups, a formula is asked for.
        """
        named = {}
        for metric, table in tables.items():
            model = self.model(metric)
            named[metric] = TableReplay(table, model.name, model)
        return Costs({**self.models, **named})

    def total(self, network: Network, policies: Sequence[Policy], metric: Metric) -> FloatArray:
        """Return the cost of each policy, (P,), in the unit of its model (`unit_of`)."""
        return self.model(metric).total(network, PolicyBatch.of(network, policies), metric)

    def float_total(self, network: Network, metric: Metric) -> float | None:
        """Return the cost of the float network, as `total` answers it.

        None where the model does not price it: published tables often hold integers alone.
        """
        try:
            return float(self.total(network, [Policy.uniform(network, FLOAT32)], metric)[0])
        except UnsupportedChoiceError:
            return None

    def float_reference(self, network: Network, metric: Metric) -> float | None:
        """Return the cost of the float network that relative budgets of a search refer to.

        It comes from the table, as every cost of a search does: a backend that measures would
        otherwise compare a table with a later measurement. Size is that of the exact file. None
        where the model does not price the float network.
        """
        if metric is Metric.SIZE:
            return self.float_total(network, metric)
        batch = PolicyBatch.of(network, [Policy.uniform(network, FLOAT32)])
        try:
            table = self.model(metric).table(network, (FLOAT32,), metric)
            return float(total(table, network, batch)[0])
        except UnsupportedChoiceError:
            return None


def stored_tables(texts: Sequence[str]) -> dict[str, CostTable]:
    """Read the tables that ``--cost`` values name, by the file as typed.

    Raises:
        BackendError: for an unknown metric.
        TableError: if a file is missing or holds no table.
    """
    specs = (_metric_of(text)[1] for text in texts)
    paths = (spec.removeprefix(_STORED) for spec in specs if spec.startswith(_STORED))
    return {path: CostTable.read(path) for path in dict.fromkeys(paths) if path}


def parse_costs(
    texts: Sequence[str],
    context: BackendContext,
    *,
    exported: bool = True,
    tables: Mapping[str, CostTable] | None = None,
) -> Costs:
    """Read ``--cost`` values: a backend, or ``METRIC=`` and a backend.

    Without ``METRIC=``, a backend prices every metric that it can and that nothing else was named
    for, size excepted. Without an exported file, nothing has a size.

    Args:
        texts: the values.
        context: of the backends.
        exported: whether there is an exported file.
        tables: to use for ``table:FILE`` instead of what the file holds, by the file as typed.

    Raises:
        BackendError: for an unknown backend or metric, or two backends for one metric.
    """
    named: dict[Metric, CostModel] = {}
    general: list[CostModel] = []
    backends = {_metric_of(text)[1].partition(":")[0] for text in texts}
    if context.remote and not backends & BOARDS:
        raise BackendError("--remote names a board, on which only --cost tvm measures")
    for text in texts:
        metric, spec = _metric_of(text)
        if metric is None:
            general.append(_backend(spec, context, tables or {}))
            continue
        if metric is Metric.SIZE:
            raise BackendError("size is not priced by a backend: it is the exported file's own")
        if metric in named:
            raise BackendError(f"two backends for {metric.value}; keep one")
        named[metric] = _backend(spec, context, tables or {})
        if metric not in named[metric].metrics:
            raise BackendError(f"{spec} does not price {metric.value}")
    found = dict(named)
    for model in general:
        for metric in sorted(model.metrics - set(named) - {Metric.SIZE}):
            if metric in found:
                raise BackendError(
                    f"two backends for {metric.value}; name one: --cost {metric.value}=BACKEND"
                )
            found[metric] = model
    target = _target(found.values())
    files = CPU_TARGET if target.own_kernels else target  # the file is ONNX, whoever compiles it
    return Costs({**found, Metric.SIZE: ExportedSize(files)} if exported else found)


def measuring_device(models: Iterable[CostModel]) -> Device:
    """Return this machine, with the accelerator that one of `models` measures, if one does."""
    told = [getattr(model, "device", None) for model in models]
    return next((d for d in told if isinstance(d, Device) and d.accelerator), None) or detect()


def _target(models: Iterable[CostModel]) -> Target:
    """What exported files are for: a device that a backend or its table names, else the CPU."""
    told = [getattr(model, "target", CPU_TARGET) for model in models]
    return next((each for each in told if each != CPU_TARGET), CPU_TARGET)


def _backend(spec: str, context: BackendContext, tables: Mapping[str, CostTable]) -> CostModel:
    if spec.startswith(_STORED) and spec.removeprefix(_STORED) in tables:
        return TableReplay(tables[spec.removeprefix(_STORED)], spec)
    return backend(spec, context)


def _metric_of(text: str) -> tuple[Metric | None, str]:
    """Split ``METRIC=BACKEND``; an equals sign behind a colon is part of the argument."""
    name, equals, spec = text.partition("=")
    if not equals or ":" in name:
        return None, text
    try:
        return Metric(name), spec
    except ValueError:
        known = [metric.value for metric in Metric]
        raise BackendError(
            f"no metric {name!r}{did_you_mean(name, known)} in --cost {text}; "
            "write METRIC=BACKEND with latency or energy"
        ) from None
