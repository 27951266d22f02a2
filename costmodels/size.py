"""Bytes of the exported file, exactly, from the exporter's own layout."""

from collections.abc import Sequence

import numpy as np

from costmodels.model import TableBackend
from costmodels.pricing import total
from costmodels.table import BoolArray, Cells, CostTable, FloatArray, Provenance
from costmodels.units import Metric, Unit
from quantization.bits import BitWidths, formats_of
from quantization.deployment import DEPLOYED_FORMATS, not_deployable
from quantization.export import Exporter
from quantization.network import Network
from quantization.policy import PolicyBatch
from quantization.ranges import made_up_ranges


class ExportedSize(TableBackend):
    """Size of the exported file in bytes.

    The table's sum is never below the file: it always counts the longest length prefix (a few
    bytes more than needed) and the function that unpacks bit planes (1.2 kB, which a file without
    weights below 8 bits does not hold). `total` is exact.
    """

    name = "size"
    metrics = frozenset({Metric.SIZE})

    def __init__(self) -> None:
        self._exporters: dict[str, Exporter] = {}
        self._tables: dict[tuple[str, tuple[BitWidths, ...]], CostTable] = {}

    def table(self, network: Network, choices: Sequence[BitWidths], metric: Metric, /) -> CostTable:
        """Return the bytes of every fragment of the exported file.

        Raises:
            BackendError: if another metric is asked for.
        """
        self.require(metric)
        key = network.digest, tuple(choices)
        if key not in self._tables:
            self._tables[key] = self._make(network, tuple(choices))
        return self._tables[key]

    def total(self, network: Network, policies: PolicyBatch, metric: Metric, /) -> FloatArray:
        """Return the exact size of each policy's file, (P,), in bytes.

        Raises:
            BackendError: if another metric is asked for.
            UnsupportedChoiceError: if a policy is not deployable.
        """
        table = self.table(network, policies.choices, metric)
        exporter = self._exporter(network)
        summed = total(table, network, policies) - table.constant
        weighted = np.array([layer.has_weights for layer in network.layers])
        packed_choice = np.array([exporter.is_packed(c) for c in policies.choices])
        packed: BoolArray = np.any(packed_choice[policies.index[:, weighted]], axis=1)
        fragments = np.rint(summed).astype(np.int64)
        return np.array(
            [
                exporter.file_bytes(int(graph), packed=bool(p))
                for graph, p in zip(fragments, packed, strict=True)
            ],
            np.float64,
        )

    def _exporter(self, network: Network) -> Exporter:
        if network.digest not in self._exporters:
            self._exporters[network.digest] = Exporter(network, made_up_ranges(network))
        return self._exporters[network.digest]

    def _make(self, network: Network, choices: tuple[BitWidths, ...]) -> CostTable:
        exporter, known = self._exporter(network), formats_of(choices)
        unary = np.array(
            [
                [
                    np.inf if not_deployable(layer, c) else exporter.layer_bytes(layer.name, c)
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
            if written not in DEPLOYED_FORMATS:
                continue
            for row, operator in enumerate(network.glue):
                if operator.integer or written.is_float:
                    glue[row, i] = exporter.glue_bytes(operator, written)
            for j, target in enumerate(known):
                if target in DEPLOYED_FORMATS and target != written:
                    for row, tensor in enumerate(network.tensors):
                        conversion[row, i, j] = (
                            0.0
                            if tensor.name in network.inner_tensors
                            else exporter.conversion_bytes(tensor, written, target)
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
            float(exporter.largest_overhead_bytes),
            {"backend": self.name, "method": "the exporter's own byte layout"},
        )
