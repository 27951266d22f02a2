"""Which decision settles which cost, and what the decisions to come cost at least."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from costmodels.deciders import Conversion, Merge, Terms
from costmodels.table import BoolArray, FloatArray

States = npt.NDArray[np.intp]

_LARGEST_TABLE = 4096
"""Joint states of the deciders of a tensor up to which its conversions are looked up."""


@dataclass(frozen=True, eq=False)
class Lookup:
    """What the joint state of some deciders costs: (joint states, M)."""

    deciders: tuple[int, ...]
    sizes: tuple[int, ...]
    costs: FloatArray

    def charge(self, states: States) -> FloatArray:
        """Return the cost (B, M) of states (deciders, B)."""
        joint = states[self.deciders[0]]
        for decider, size in zip(self.deciders[1:], self.sizes[1:], strict=True):
            joint = joint * size + states[decider]
        paid: FloatArray = self.costs[joint]
        return paid

    def least(self, allowed: Sequence[BoolArray]) -> FloatArray:
        """Return the least cost (M,) over the allowed states of its deciders."""
        met: BoolArray = np.ones(1, bool)
        for decider in self.deciders:
            met = (met[:, None] & allowed[decider]).ravel()
        least: FloatArray = self.costs[met].min(0)
        return least


@dataclass(frozen=True, eq=False)
class Fan:
    """Conversions of a tensor among too many deciders for a table."""

    conversion: Conversion

    def charge(self, states: States) -> FloatArray:
        """Return the cost (B, M) of states (deciders, B)."""
        return self.conversion.costs(states)

    def least(self, _allowed: Sequence[BoolArray]) -> FloatArray:
        """Return a bound (M,): of each format written, only conversions that gain something."""
        least: FloatArray = np.minimum(self.conversion.cells, 0.0).sum(1).min(0)
        return least


@dataclass(frozen=True, eq=False)
class Step:
    """What one decision settles: merges in order, then costs."""

    merges: tuple[Merge, ...]
    charges: tuple[Lookup | Fan, ...]


def plan(terms: Terms) -> tuple[Step, ...]:
    """Sort merges and costs by the decision that settles them; decisions are made in order."""
    step_of = list(range(terms.decisions))
    merges: list[list[Merge]] = [[] for _ in step_of]
    for merge in terms.merges:
        step_of.append(max(step_of[d] for d in merge.inputs))
        merges[step_of[-1]].append(merge)
    sizes = [len(costs) for costs in terms.states]
    tables: dict[tuple[int, ...], FloatArray] = {(d,): c for d, c in enumerate(terms.states)}
    fans: list[Conversion] = []
    for conversion in terms.conversions:
        shape = [sizes[d] for d in conversion.involved]
        if math.prod(shape) > _LARGEST_TABLE:
            fans.append(conversion)
            continue
        grid = dict(
            zip(conversion.involved, np.indices(shape).reshape(len(shape), -1), strict=True)
        )
        known = tables.get(conversion.involved)
        added = conversion.costs(grid)
        tables[conversion.involved] = added if known is None else known + added
    charges: list[list[Lookup | Fan]] = [[] for _ in range(terms.decisions)]
    for involved, costs in _absorbed(tables, sizes, step_of).items():
        shape_of = tuple(sizes[d] for d in involved)
        charges[max(step_of[d] for d in involved)].append(Lookup(involved, shape_of, costs))
    for fan in fans:
        charges[max(step_of[d] for d in fan.involved)].append(Fan(fan))
    return tuple(Step(tuple(m), tuple(c)) for m, c in zip(merges, charges, strict=True))


def still_needed(terms: Terms, steps: Sequence[Step], allowed: BoolArray) -> FloatArray:
    """Return what the decisions from each one on cost at least, (G + 1, M); the last row is 0.

    An admissible bound: no policy whose choices are allowed pays less. Each cost, conversions
    included, takes its least value over the states of its own deciders, whatever the others take;
    what is paid once counts only if it is a gain. So the bound is reached where nothing converts.

    Args:
        terms: costs of M tables.
        steps: `plan` of them.
        allowed: (G, K) the choices of each decision.
    """
    states = [*allowed, *(np.ones(len(c), bool) for c in terms.states[terms.decisions :])]
    needed: FloatArray = np.zeros((len(steps) + 1, len(terms.constant)))
    for once in terms.charges:
        needed[:-1, once.table] += min(once.value, 0.0)
    for at in reversed(range(len(steps))):
        own = sum((c.least(states) for c in steps[at].charges), np.zeros(needed.shape[1]))
        needed[: at + 1] += own
    return needed


def _absorbed(
    tables: dict[tuple[int, ...], FloatArray], sizes: Sequence[int], step_of: Sequence[int]
) -> dict[tuple[int, ...], FloatArray]:
    """Add each table to one of the same step over more deciders, if any; drop empty ones."""
    kept = {key: costs for key, costs in tables.items() if costs.any()}
    for key in sorted(kept, key=len):
        step = max(step_of[d] for d in key)
        for larger in kept:
            if set(key) < set(larger) and max(step_of[d] for d in larger) == step:
                own = kept.pop(key).reshape(*(sizes[d] if d in key else 1 for d in larger), -1)
                grid = kept[larger].reshape(*(sizes[d] for d in larger), -1) + own
                kept[larger] = grid.reshape(-1, grid.shape[-1])
                break
    return kept
