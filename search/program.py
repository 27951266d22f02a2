"""A search problem as a mixed-integer linear program.

Columns: one-hot x[d, s] over the states of each decider d, and z[t, p, f], which is 1 exactly if
tensor t is written in format p and some consumer reads f. Only the x of decisions are integer
columns; everything else follows from them:

- a merge is the widest of its sources, stated cumulatively. With U_d[f] = "d writes f or wider",
  U_m[f] >= U_s[f] for each source s, and U_m[f] <= sum_s U_s[f];
- with W[p] = "written in p" and R_c[f] = "consumer c reads f", z >= W[p] + R_c[f] - 1 for each c,
  z <= W[p], z <= sum_c R_c[f]. The upper bounds keep conversions that gain something honest;
- with S_d = "decision d is in a state that brings about what a table charges once", y is 1 exactly
  if any is: y >= S_d for each d, y <= sum_d S_d.

A state or conversion that a table does not support has its column fixed to 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from costmodels.deciders import Charge, Conversion, Follower, Merge, Terms, split
from costmodels.table import BoolArray, CostTable, FloatArray
from search.problem import Positions, Problem


@dataclass(frozen=True)
class _Linear:
    """``constant + sum(columns)``: the sum of some one-hot columns."""

    columns: tuple[int, ...] = ()
    constant: float = 0.0


@dataclass(frozen=True, eq=False)
class Program:
    """The structure of the program; objective and budgets are added by who solves it.

    Args:
        matrix: (rows, columns) of the structural constraints.
        lower: (rows,) their lower bounds.
        upper: (rows,) their upper bounds.
        integer: (columns,) 1 where a column is integer.
        most: (columns,) upper bounds of the columns; 0 where not supported.
        costs: (M, columns) coefficients of each table.
        constant: (M,) what every policy pays.
        loss: (columns,) coefficients of the proxy loss.
        decisions: (G, K) the column of each decision at each choice.
    """

    matrix: sparse.csr_array
    lower: FloatArray
    upper: FloatArray
    integer: npt.NDArray[np.uint8]
    most: FloatArray
    costs: FloatArray
    constant: FloatArray
    loss: FloatArray
    decisions: Positions

    @property
    def columns(self) -> int:
        """Number of columns."""
        return len(self.most)


class _Rows:
    """Constraints under construction."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, int, float]] = []
        self.lower: list[float] = []
        self.upper: list[float] = []

    def add(
        self, terms: Sequence[tuple[float, _Linear]], lower: float = -np.inf, upper: float = np.inf
    ) -> None:
        """Require ``lower <= sum(factor * term) <= upper``."""
        row = len(self.lower)
        shift = sum(factor * term.constant for factor, term in terms)
        self.entries += [(row, c, factor) for factor, term in terms for c in term.columns]
        self.lower.append(lower - shift)
        self.upper.append(upper - shift)


def build(problem: Problem, tables: Sequence[CostTable]) -> Program:
    """State `problem` with the costs of `tables`; budgets are not among the constraints."""
    terms = split(problem.network, problem.choices, problem.decision_of, tables)
    rows = _Rows()
    starts = np.cumsum([0, *(len(state) for state in terms.states)])
    costs = list(np.concatenate(terms.states))
    for d in range(len(terms.states)):
        rows.add([(1.0, _Linear(tuple(range(starts[d], starts[d + 1]))))], 1.0, 1.0)
    for merge in terms.merges:
        _add_merge(rows, merge, starts, len(terms.states[merge.decider]))
    for conversion in terms.conversions:
        _add_conversion(rows, conversion, starts, costs)
    for charge in terms.charges:
        _add_charge(rows, charge, starts, costs)
    return _finish(problem, terms, rows, np.array(costs), starts)


def _when(follower: Follower, states: BoolArray, starts: Positions) -> _Linear:
    """Return "the follower's decider is in one of `states`" as a sum of columns."""
    if follower.decider < 0:
        return _Linear((), float(states[0]))
    return _Linear(tuple(int(c) for c in starts[follower.decider] + np.flatnonzero(states)))


def _add_merge(rows: _Rows, merge: Merge, starts: Positions, formats: int) -> None:
    own = starts[merge.decider]
    for code in range(1, formats):
        wider = _Linear(tuple(range(own + code, own + formats)))
        sources = [_when(source, source.writes >= code, starts) for source in merge.sources]
        for source in sources:
            rows.add([(1.0, wider), (-1.0, source)], lower=0.0)
        rows.add([(1.0, wider), *((-1.0, source) for source in sources)], upper=0.0)


def _add_conversion(
    rows: _Rows, conversion: Conversion, starts: Positions, costs: list[FloatArray]
) -> None:
    writer, readers = conversion.writer, conversion.readers
    asked = np.unique(np.concatenate([reader.reads for reader in readers]))
    for p in np.unique(writer.writes):
        for f in asked:
            if not conversion.cells[p, f].any():
                continue
            z = _Linear((len(costs),))
            costs.append(conversion.cells[p, f])
            written = _when(writer, writer.writes == p, starts)
            reads = [_when(r, r.reads == f, starts) for r in readers if (r.reads == f).any()]
            for read in reads:
                rows.add([(1.0, z), (-1.0, written), (-1.0, read)], lower=-1.0)
            rows.add([(1.0, z), (-1.0, written)], upper=0.0)
            rows.add([(1.0, z), *((-1.0, read) for read in reads)], upper=0.0)


def _add_charge(rows: _Rows, charge: Charge, starts: Positions, costs: list[FloatArray]) -> None:
    y = _Linear((len(costs),))
    costs.append(np.where(np.arange(len(costs[0])) == charge.table, charge.value, 0.0))
    causes = [
        _Linear(tuple(int(c) for c in starts[d] + np.flatnonzero(charge.states[d])))
        for d in charge.involved
    ]
    for cause in causes:
        rows.add([(1.0, y), (-1.0, cause)], lower=0.0)
    rows.add([(1.0, y), *((-1.0, cause) for cause in causes)], upper=0.0)


def _finish(
    problem: Problem, terms: Terms, rows: _Rows, costs: FloatArray, starts: Positions
) -> Program:
    columns = len(costs)
    row, column, value = zip(*rows.entries, strict=True)
    decisions = starts[: terms.decisions, None] + np.arange(len(problem.choices))
    integer = np.zeros(columns, np.uint8)
    integer[decisions] = 1
    supported: BoolArray = np.logical_and.reduce(np.isfinite(costs), axis=1)
    supported[decisions] &= problem.allowed_decisions
    loss = np.zeros(columns)
    loss[decisions] = np.where(problem.allowed_decisions, problem.decision_loss, 0.0)
    return Program(
        matrix=sparse.csr_array((value, (row, column)), shape=(len(rows.lower), columns)),
        lower=np.array(rows.lower),
        upper=np.array(rows.upper),
        integer=integer,
        most=np.asarray(supported, np.float64),
        costs=np.where(supported[:, None], costs, 0.0).T,
        constant=terms.constant,
        loss=loss,
        decisions=decisions,
    )
