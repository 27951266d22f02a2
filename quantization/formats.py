"""The one rule that says in which format every tensor and every glue operator is.

The exporter, the pricing, the accuracy simulation and the MILP all follow it:

1. A layer *reads* its input activations at its own activation width. A float layer reads floats.
2. A layer *writes* float if it reads float, else 8-bit integers (16 if it reads 16): an integer
   accumulator is requantized at once.
3. A glue operator with an integer kernel reads and writes the widest format among those its inputs
   were written in. One without an integer kernel reads and writes floats: float32, unless its
   widest input is float16.
4. Inputs and outputs of the network are float32.
5. Where a tensor was written in another format than a consumer reads, it is *converted*; once per
   tensor and target format, however many consumers ask for that target.

The rule only looks backwards, so one pass in execution order applies it, and a MILP can state it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from quantization.bits import BitWidths, Format, formats_of
from quantization.network import OUTPUT, Network
from quantization.policy import Policy

CodeArray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Formats:
    """What `formats` answers.

    Args:
        reads: node name to the format in which it takes its inputs.
        writes: tensor name to the format in which it is written.
        conversions: (tensor, written format, target format), each once.
    """

    reads: Mapping[str, Format]
    writes: Mapping[str, Format]
    conversions: tuple[tuple[str, Format, Format], ...]


@dataclass(frozen=True)
class Wiring:
    """A network as row numbers, for the vectorised form of the rule.

    Row 0 is the outside world (network inputs and outputs, float32); row i + 1 is the i-th node in
    execution order.

    Args:
        layer_rows: row of each layer.
        glue_rows: row of each glue operator, in execution order.
        glue_sources: for each glue operator the rows that write its inputs.
        glue_integer: for each glue operator whether it has an integer kernel.
        tensor_names: the tensors.
        tensor_writers: row that writes each tensor.
        tensor_readers: rows that read each tensor.
    """

    layer_rows: tuple[int, ...]
    glue_rows: tuple[int, ...]
    glue_sources: tuple[tuple[int, ...], ...]
    glue_integer: tuple[bool, ...]
    tensor_names: tuple[str, ...]
    tensor_writers: tuple[int, ...]
    tensor_readers: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return 1 + len(self.layer_rows) + len(self.glue_rows)


@lru_cache(maxsize=64)
def wiring(network: Network) -> Wiring:
    """Return the wiring of `network` (kept for the most recent networks)."""
    row_of: dict[str | None, int] = {None: 0, OUTPUT: 0}
    for row, node in enumerate(network.execution_order, start=1):
        row_of[node.name] = row
    writer = {tensor.name: row_of[tensor.producer] for tensor in network.tensors}
    return Wiring(
        layer_rows=tuple(row_of[layer.name] for layer in network.layers),
        glue_rows=tuple(row_of[glue.name] for glue in network.glue),
        glue_sources=tuple(tuple(writer[name] for name in glue.inputs) for glue in network.glue),
        glue_integer=tuple(glue.integer for glue in network.glue),
        tensor_names=tuple(tensor.name for tensor in network.tensors),
        tensor_writers=tuple(writer.values()),
        tensor_readers=tuple(tuple(row_of[c] for c in t.consumers) for t in network.tensors),
    )


def float_glue_codes(known: Sequence[Format]) -> CodeArray:
    """Return the code of the format that float-only glue runs in, by its widest input's code."""
    floats = [f if f.is_float else Format.FLOAT32 for f in known]
    return np.array([known.index(f) for f in floats], np.uint8)


def format_codes(
    network: Network,
    index: npt.NDArray[np.uint8],
    choices: Sequence[BitWidths],
    known: Sequence[Format],
) -> tuple[CodeArray, CodeArray]:
    """Apply the rule to many policies at once.

    Args:
        network: the network.
        index: (layers, policies), contiguous along the policies: the choice of each layer.
        choices: what the indices point into.
        known: formats in ascending order; a code is a position in it. Holds every format that
            `choices` imply (`quantization.bits.formats_of`).

    Returns:
        Two arrays (rows of the wiring, policies) of codes: what each node reads, what it writes.
    """
    wires = wiring(network)
    code = {f: i for i, f in enumerate(known)}
    reads = np.empty((wires.rows, index.shape[1]), np.uint8)
    writes = np.empty_like(reads)
    reads[0] = writes[0] = code[Format.FLOAT32]
    layer_reads = np.array([code[c.reads] for c in choices], np.uint8)
    layer_writes = np.array([code[c.writes] for c in choices], np.uint8)
    in_float = float_glue_codes(known)
    column = dict(zip(wires.layer_rows, range(len(wires.layer_rows)), strict=True))
    glue = dict(zip(wires.glue_rows, range(len(wires.glue_rows)), strict=True))
    for row in range(1, wires.rows):
        if row in column:
            picked = index[column[row]]
            reads[row] = layer_reads[picked]
            writes[row] = layer_writes[picked]
            continue
        sources = wires.glue_sources[glue[row]]
        widest = writes[sources[0]] if sources else writes[0]
        for other in sources[1:]:
            widest = np.maximum(widest, writes[other])
        reads[row] = writes[row] = widest if wires.glue_integer[glue[row]] else in_float[widest]
    return reads, writes


def formats(network: Network, policy: Policy) -> Formats:
    """Return the format of every tensor and glue operator of `network` under `policy`.

    Ties play no part: the sensitivity of a tied layer is that of the layer alone.

    Raises:
        PolicyError: if the policy does not fit the network's layers.
    """
    policy.check_layers(network)
    choices = sorted({policy[name] for name in network.layer_names})
    known = formats_of(choices)
    column = [[choices.index(policy[name])] for name in network.layer_names]
    reads, writes = format_codes(network, np.array(column, np.uint8), choices, known)
    wires = wiring(network)
    read_of = {
        node.name: known[int(reads[row, 0])]
        for row, node in enumerate(network.execution_order, start=1)
    }
    write_of: dict[str, Format] = {}
    conversions = []
    for name, writer, readers in zip(
        wires.tensor_names, wires.tensor_writers, wires.tensor_readers, strict=True
    ):
        write_of[name] = known[int(writes[writer, 0])]
        targets = {known[int(reads[reader, 0])] for reader in readers} - {write_of[name]}
        conversions += [(name, write_of[name], target) for target in sorted(targets)]
    return Formats(read_of, write_of, tuple(conversions))
