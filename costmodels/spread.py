"""From two columns, integer and float, to any choices: equal kernels cost the same.

Likewise from the columns of a stored table to channel groups.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from costmodels.cells import select
from costmodels.table import Cells, CostTable, FloatArray, Once, Provenance
from quantization.bits import FLOAT32, BitWidths, Format, formats_of
from quantization.channel_groups import ChannelGroups
from quantization.deployment import CPU_TARGET, Target, not_deployable
from quantization.network import Network

INTEGER = BitWidths(8, 8)
"""Stands for every deployable integer choice: they all execute the same kernels."""


def spread_table(
    table: CostTable,
    network: Network,
    choices: Sequence[BitWidths],
    target: Target = CPU_TARGET,
) -> CostTable:
    """Write the measured columns out over `choices`: the same kernel, the same number.

    Args:
        table: over the narrow bits of `target` (`INTEGER` on the CPU) and float32.
        network: its network.
        choices: what is asked for; what cannot run is not supported in the result.
        target: the provider that the table is of.
    """
    known = formats_of(choices)
    held = [FLOAT32 if c.reads is Format.FLOAT32 else target.narrow for c in choices]
    column = [table.choices.index(each) for each in held]
    runs = np.array(
        [[not not_deployable(layer, c, target) for c in choices] for layer in network.layers]
    )
    unary = np.where(runs, table.unary.value[:, column], np.inf)
    return CostTable(
        table.metric,
        table.unit,
        table.statistic,
        table.network,
        table.layers,
        tuple(choices),
        table.glue_names,
        table.tensors,
        Cells.of(
            unary,
            table.unary.provenance[:, column],
            kernel=table.unary.kernel[:, column],
            uncertainty=_known(table.unary)[:, column],
        ),
        _in_formats(table.glue, table.formats, known),
        _in_formats(table.conversion, table.formats, known),
        table.constant,
        table.source,
        table.measurements,
        context=table.context,
    )


def with_groups(
    table: CostTable, network: Network, choices: Sequence[BitWidths], target: Target = CPU_TARGET
) -> CostTable:
    """Return a stored table over choices some of which are channel groups that it does not hold.

    Where it was measured through ONNX Runtime (its source names the runtime), groups cost what the
    widest of them does: the kernel is the same. Elsewhere no layer supports them.

    Args:
        table: what is stored.
        network: its network.
        choices: what is asked for; of channel groups the table holds each width.
        target: the provider that the table is of.

    Raises:
        UnsupportedChoiceError: if it lacks a choice, or the widest of groups.
    """
    stands = [_one_width(bits) if bits not in table.choices else bits for bits in choices]
    held = table.restrict(tuple(dict.fromkeys(stands)))
    column = [held.choices.index(bits) for bits in stands]
    made = select(held.unary, np.ix_(range(len(held.layers)), column))
    added = np.array([bits not in table.choices for bits in choices])
    measured = "runtime" in table.source
    runs = np.array(
        [
            [measured and not not_deployable(layer, c, target) for c in choices]
            for layer in network.layers
        ]
    )
    once = held.once and Once(held.once.value, held.once.cells[:, column])
    return replace(
        held,
        choices=tuple(choices),
        unary=Cells.of(
            np.where(runs | ~added, made.value, np.inf),
            made.provenance,
            kernel=made.kernel,
            uncertainty=made.uncertainty,
        ),
        once=once,
    )


def _one_width(bits: BitWidths) -> BitWidths:
    """The widest width of channel groups; bit-widths that are none as they are."""
    widest = BitWidths(bits.weight_widths[-1], bits.activations)
    return widest if isinstance(bits, ChannelGroups) else bits


def _in_formats(cells: Cells, held: Sequence[Format], known: Sequence[Format]) -> Cells:
    """Copy glue or conversion cells into a block over other formats.

    Args:
        cells: (N, F) or (N, F, F), over `held`.
        held: the formats that the cells run over.
        known: those of the result; what `held` lacks is not supported.
    """
    position = {given: i for i, given in enumerate(held)}
    target = [i for i, given in enumerate(known) if given in position]
    source = [position[given] for given in known if given in position]
    rows, axes = range(len(cells.value)), cells.value.ndim - 1
    to, of = (np.ix_(rows, *[where] * axes) for where in (target, source))
    shape = (len(rows), *[len(known)] * axes)
    value, spread = np.full(shape, np.inf), np.zeros(shape)
    provenance = np.full(shape, Provenance.EXACT, "U16")
    value[to], spread[to] = cells.value[of], _known(cells)[of]
    provenance[to] = cells.provenance[of]
    if axes == 2:  # staying in a format is no conversion, whichever it is
        value[:, range(len(known)), range(len(known))] = 0.0
    return Cells.of(value, provenance, uncertainty=spread)


def _known(cells: Cells) -> FloatArray:
    return np.full(cells.value.shape, np.nan) if cells.uncertainty is None else cells.uncertainty
