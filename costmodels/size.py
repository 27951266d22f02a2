"""Bytes of the exported file, exactly, from the exporter's own layout."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from costmodels.model import TableBackend
from costmodels.pricing import total
from costmodels.table import BoolArray, Cells, CostTable, FloatArray, Once, Provenance
from costmodels.units import Metric, Unit
from quantization.bits import BitWidths, formats_of
from quantization.deployment import CPU_TARGET, Target, not_deployable
from quantization.export import Exporter
from quantization.network import Network
from quantization.policy import PolicyBatch
from quantization.ranges import made_up_ranges


class ExportedSize(TableBackend):
    """Size of the exported file in bytes.

    The table counts every byte: what every file holds as `constant`, and the function that unpacks
    bit planes as what is paid `once`, if any layer's weights have fewer than 8 bits. One thing is
    no sum: the length of the graph is written in seven bits a byte, so that it takes a byte more
    from 2 MiB on (16 KiB, 256 MiB). The table counts as many bytes as the largest possible graph
    needs: its sum is exact for a network whose smallest and largest graphs need equally many, else
    at most that difference (mostly one byte) above the file, never below. `total` is always exact.

    Args:
        target: the provider that the files are for.
    """

    name = "size"
    metrics = frozenset({Metric.SIZE})

    def __init__(self, target: Target = CPU_TARGET) -> None:
        self._target = target
        self._exporters: dict[str, Exporter] = {}
        self._tables: dict[tuple[str, tuple[BitWidths, ...]], tuple[CostTable, CostTable]] = {}

    def table(self, network: Network, choices: Sequence[BitWidths], metric: Metric, /) -> CostTable:
        """Return the bytes of every fragment of the exported file, and of what surrounds them.

        Raises:
            BackendError: if another metric is asked for.
        """
        self.require(metric)
        return self._made(network, tuple(choices))[1]

    def total(self, network: Network, policies: PolicyBatch, metric: Metric, /) -> FloatArray:
        """Return the exact size of each policy's file, (P,), in bytes.

        Raises:
            BackendError: if another metric is asked for.
            UnsupportedChoiceError: if a policy is not deployable.
        """
        self.require(metric)
        exporter = self._exporter(network)
        parts, whole = self._made(network, policies.choices)
        fragments = np.rint(total(parts, network, policies))
        none = np.zeros(len(policies), np.bool_)
        packed = none if whole.once is None else whole.once.due(policies.index)
        return np.array(
            [
                exporter.file_bytes(int(graph), packed=p)
                for graph, p in zip(fragments, packed.tolist(), strict=True)
            ],
            np.float64,
        )

    def _made(
        self, network: Network, choices: tuple[BitWidths, ...]
    ) -> tuple[CostTable, CostTable]:
        """Return the table of the fragments alone, and the one of the whole file."""
        key = network.digest, choices
        if key not in self._tables:
            exporter, fragments = self._exporter(network), self._fragments(network, choices)
            most = _most(fragments)
            plain, packing = (exporter.file_bytes(most, packed=p) for p in (False, True))
            marked = _packed(exporter, network, choices) & fragments.supported
            once = Once(packing - plain, marked) if marked.any() else None
            self._tables[key] = fragments, replace(fragments, constant=plain - most, once=once)
        return self._tables[key]

    def _exporter(self, network: Network) -> Exporter:
        if network.digest not in self._exporters:
            made = Exporter(network, made_up_ranges(network), target=self._target)
            self._exporters[network.digest] = made
        return self._exporters[network.digest]

    def _fragments(self, network: Network, choices: tuple[BitWidths, ...]) -> CostTable:
        exporter, known = self._exporter(network), formats_of(choices)
        target, deployed = self._target, self._target.formats
        unary = np.array(
            [
                [
                    np.inf
                    if not_deployable(layer, c, target)
                    else exporter.layer_bytes(layer.name, c)
                    for c in choices
                ]
                for layer in network.layers
            ],
            np.float64,
        )
        glue = np.full((len(network.glue), len(known)), np.inf)
        conversion = np.full((len(network.tensors), len(known), len(known)), np.inf)
        for i, written in enumerate(known):
            conversion[:, i, i] = 0.0
            if written not in deployed:
                continue
            for row, operator in enumerate(network.glue):
                if operator.integer or written.is_float:
                    glue[row, i] = exporter.glue_bytes(operator, written)
            for j, read in enumerate(known):
                if read in deployed and read != written:
                    for row, tensor in enumerate(network.tensors):
                        conversion[row, i, j] = (
                            0.0
                            if tensor.name in network.inner_tensors
                            else exporter.conversion_bytes(tensor, written, read)
                        )
        return CostTable(
            Metric.SIZE,
            Unit.BYTES,
            "exact",
            network.digest,
            network.layer_names,
            choices,
            tuple(g.name for g in network.glue),
            tuple(t.name for t in network.tensors),
            Cells.of(unary, Provenance.EXACT),
            Cells.of(glue, Provenance.EXACT),
            Cells.of(conversion, Provenance.EXACT),
            source={"backend": self.name, "method": "the exporter's own byte layout"},
        )


def _packed(exporter: Exporter, network: Network, choices: tuple[BitWidths, ...]) -> BoolArray:
    """(L, K): where a layer's weights are stored as bit planes."""
    weighted = np.array([layer.has_weights for layer in network.layers], np.bool_)
    return np.logical_and.outer(weighted, [exporter.is_packed(choice) for choice in choices])


def _most(table: CostTable) -> int:
    """Return the bytes that no policy's fragments exceed.

    Of the conversions of a tensor those of one written format are paid, each target once.
    """
    unary, glue, conversion = (
        np.where(cells.supported, cells.value, 0.0)
        for cells in (table.unary, table.glue, table.conversion)
    )
    return int(unary.max(1).sum() + glue.max(1).sum() + conversion.sum(2).max(1).sum())
