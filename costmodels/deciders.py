"""Who decides the format of each operator, and what each decision alone or together costs.

A *decider* has a state that settles formats. Decisions (a layer, or layers tied together) are
deciders whose state is a choice; they also settle the glue that follows their format. Glue that
joins several deciders is a decider of its own, a *merge*, whose state is the widest format among
its sources. Every cost of a table then belongs to the states of one decider, or is a conversion
between the formats of two or more, or is charged once for some states: what the pricing looks up,
the MILP states, and the environment of the search adds up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from costmodels.table import BoolArray, CostTable, FloatArray
from quantization.bits import BitWidths, Format, formats_of
from quantization.formats import CodeArray, float_glue_codes, wiring
from quantization.network import Network

JointStates = Mapping[int, npt.NDArray[np.integer]] | npt.NDArray[np.integer]
"""The states (P,) of deciders, by position: a mapping, or an array (deciders, P)."""


@dataclass(frozen=True, eq=False)
class Follower:
    """An operator that follows a decider.

    Args:
        decider: position among the deciders; -1 if its format never changes.
        reads: format code that it reads, by the decider's state.
        writes: format code that it writes, by the decider's state.
    """

    decider: int
    reads: CodeArray
    writes: CodeArray


@dataclass(frozen=True, eq=False)
class Merge:
    """Glue between several deciders; its state is the widest format code of its sources.

    Args:
        decider: its own position among the deciders.
        sources: what writes its inputs, each from an earlier decider.
    """

    decider: int
    sources: tuple[Follower, ...]

    @property
    def inputs(self) -> frozenset[int]:
        """The deciders that it joins."""
        return frozenset(source.decider for source in self.sources) - {-1}

    def state(self, states: JointStates) -> CodeArray:
        """Return its state (P,) for states (P,) of each decider that it joins."""
        widest = state_of(self.sources[0], self.sources[0].writes, states)
        for source in self.sources[1:]:
            widest = np.maximum(widest, state_of(source, source.writes, states))
        return widest


@dataclass(frozen=True, eq=False)
class Conversion:
    """The conversions of one tensor; each format that is asked for and not written is paid once.

    Args:
        writer: what writes the tensor.
        readers: what reads it.
        cells: (F, F, M) cost of written and asked format in each of M tables.
    """

    writer: Follower
    readers: tuple[Follower, ...]
    cells: FloatArray

    @cached_property
    def involved(self) -> tuple[int, ...]:
        """The deciders of its formats, in ascending order."""
        return tuple(sorted({f.decider for f in (self.writer, *self.readers)} - {-1}))

    def costs(self, states: JointStates) -> FloatArray:
        """Return the cost, (P, M), for states (P,) of each involved decider."""
        written = state_of(self.writer, self.writer.writes, states)
        asked = np.zeros((1, self.cells.shape[0]), bool)
        for reader in self.readers:
            reads = state_of(reader, reader.reads, states)
            asked = asked | (reads[:, None] == np.arange(self.cells.shape[0]))
        # infinite cells that are not asked for must not become NaN
        paid: FloatArray = np.where(asked[:, :, None], self.cells[written], 0.0).sum(1)
        return paid


def state_of(follower: Follower, lut: CodeArray, states: JointStates) -> CodeArray:
    """Return format codes (P,) of a follower, or (1,) if its format never changes."""
    return lut[:1] if follower.decider < 0 else lut.take(states[follower.decider])


@dataclass(frozen=True, eq=False)
class Charge:
    """What one table charges once, if any decision is in one of some states.

    Args:
        table: position of the table.
        value: what is paid.
        states: (G, K) the states of each decision that bring it about.
    """

    table: int
    value: float
    states: BoolArray

    @cached_property
    def involved(self) -> tuple[int, ...]:
        """The decisions that may bring it about."""
        return tuple(int(decision) for decision in np.flatnonzero(self.states.any(1)))

    def due(self, states: JointStates) -> BoolArray:
        """Return whether it is paid, (P,), for states (P,) of each involved decision."""
        due: BoolArray = self.states[self.involved[0]].take(states[self.involved[0]])
        for decision in self.involved[1:]:
            due = due | self.states[decision].take(states[decision])
        return due


@dataclass(frozen=True, eq=False)
class Terms:
    """The costs of M tables of one network, split over deciders.

    Args:
        decisions: how many deciders are decisions; the others are merges, in execution order.
        merges: those others.
        constant: (M,) what every policy pays.
        states: for each decider (states, M): what a state costs by itself.
        conversions: the conversions that two deciders or more settle.
        charges: what tables charge once.
    """

    decisions: int
    merges: tuple[Merge, ...]
    constant: FloatArray
    states: tuple[FloatArray, ...]
    conversions: tuple[Conversion, ...]
    charges: tuple[Charge, ...]


def split(
    network: Network,
    choices: Sequence[BitWidths],
    decision_of: npt.NDArray[np.intp],
    tables: Sequence[CostTable],
) -> Terms:
    """Split the costs of `tables` over the deciders of `network`.

    Args:
        network: L layers.
        choices: K bit-widths; each table is over exactly these.
        decision_of: (L,) the decision, from 0, that each layer belongs to.
        tables: M tables of `network`.
    """
    known, decisions = formats_of(choices), int(decision_of.max(initial=-1)) + 1
    followers, merges = _follow(network, choices, decision_of)
    wires = wiring(network)
    m = len(tables)
    constant = np.array([table.constant for table in tables], np.float64)
    unary = _stack([table.unary.value for table in tables], (len(decision_of), len(choices), m))
    states = [unary[decision_of == decision].sum(0) for decision in range(decisions)]
    states += [np.zeros((len(known), m)) for _ in merges]
    for position, row in enumerate(wires.glue_rows):
        follower = followers[row]
        cells = _stack([table.glue.value[position] for table in tables], (len(known), m))
        cost = cells[follower.reads]
        if follower.decider < 0:
            constant = constant + cost[0]
        else:
            states[follower.decider] = states[follower.decider] + cost
    conversions = []
    for tensor, writer_row in enumerate(wires.tensor_writers):
        cells = _stack(
            [table.conversion.value[tensor] for table in tables], (len(known), len(known), m)
        )
        readers = _distinct([followers[row] for row in wires.tensor_readers[tensor]])
        conversion = Conversion(followers[writer_row], readers, cells)
        if not _matters(conversion):
            continue
        if len(conversion.involved) > 1:
            conversions.append(conversion)
        elif conversion.involved:
            (only,) = conversion.involved
            own = conversion.costs({only: np.arange(len(states[only]))})
            states[only] = states[only] + own
        else:
            constant = constant + conversion.costs({})[0]
    charges = tuple(
        Charge(
            column,
            table.once.value,
            np.array([table.once.cells[decision_of == d].any(0) for d in range(decisions)]),
        )
        for column, table in enumerate(tables)
        if table.once is not None
    )
    return Terms(decisions, merges, constant, tuple(states), tuple(conversions), charges)


def _follow(
    network: Network, choices: Sequence[BitWidths], decision_of: npt.NDArray[np.intp]
) -> tuple[tuple[Follower, ...], tuple[Merge, ...]]:
    """Find what each row of the wiring follows, and the glue that joins several deciders."""
    wires, known = wiring(network), formats_of(choices)
    decisions = int(decision_of.max(initial=-1)) + 1
    code = {f: i for i, f in enumerate(known)}
    identity = np.arange(len(known), dtype=np.uint8)
    in_float = float_glue_codes(known)
    reads = np.array([code[c.reads] for c in choices], np.uint8)
    writes = np.array([code[c.writes] for c in choices], np.uint8)
    rows = [_fixed(code[Format.FLOAT32])] * wires.rows
    merges: list[Merge] = []
    decision = dict(zip(wires.layer_rows, decision_of, strict=True))
    glue = dict(zip(wires.glue_rows, range(len(wires.glue_rows)), strict=True))
    for row in range(1, wires.rows):
        if row in decision:
            rows[row] = Follower(int(decision[row]), reads, writes)
            continue
        sources = [rows[s] for s in wires.glue_sources[glue[row]]] or [rows[0]]
        own = identity if wires.glue_integer[glue[row]] else in_float
        floor = max(int(source.writes.min()) for source in sources)
        top = max(int(source.writes.max()) for source in sources)
        deciders = {source.decider for source in sources} - {-1}
        if len(set(own[floor : top + 1])) == 1:
            rows[row] = _fixed(int(own[top]))
        elif len(deciders) == 1:
            widest = np.maximum.reduce(np.broadcast_arrays(*[s.writes for s in sources]))
            rows[row] = Follower(deciders.pop(), own[widest], own[widest])
        else:
            merges.append(Merge(decisions + len(merges), _distinct(sources)))
            rows[row] = Follower(merges[-1].decider, own, own)
    return tuple(rows), tuple(merges)


def _fixed(code: int) -> Follower:
    codes = np.array([code], np.uint8)
    return Follower(-1, codes, codes)


def _distinct(followers: Sequence[Follower]) -> tuple[Follower, ...]:
    """Return each follower once: equal ones ask for, and write, the same."""
    seen = {(f.decider, f.reads.tobytes(), f.writes.tobytes()): f for f in followers}
    return tuple(seen.values())


def _stack(arrays: Sequence[FloatArray], shape: tuple[int, ...]) -> FloatArray:
    return np.stack(arrays, axis=-1) if arrays else np.zeros(shape)


def _matters(conversion: Conversion) -> bool:
    """Whether any conversion that can occur costs anything."""
    written = np.unique(conversion.writer.writes)
    asked = np.unique(np.concatenate([r.reads for r in conversion.readers] or [written[:0]]))
    return bool(conversion.cells[np.ix_(written, asked)].any())
