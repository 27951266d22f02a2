"""The expected loss and costs of independent random choices, differentiable in their chances."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from costmodels.deciders import Follower, split
from costmodels.table import FloatArray
from quantization.bits import formats_of
from search.problem import Problem

_UNSUPPORTED = 10.0
"""What a cell that is not supported costs, in budgets."""


class Relaxation:
    """Expected costs when each decision is drawn on its own.

    For chances p (G, K),

        E[cost] = constant + sum_d p_d . cost_d + sum_conversions + sum_charges,

    where a conversion of a tensor from format u to f is paid with chance
    P(written in u) (1 - prod_readers P(reader does not read f)), and what is charged once with
    chance 1 - prod_d P(d does not bring it about). The format of glue that joins several sources is
    the widest: P(<= f) = prod_sources P(<= f). Where two of the factors hang on one decision, such
    as the formats of a join and of what it joins, their product is an approximation. Without joins,
    and at chances of 0 and 1, all is exact.

    Args:
        problem: G decisions, K choices, M budgets.
    """

    def __init__(self, problem: Problem) -> None:
        tables = [problem.tables[metric] for metric in problem.budgets]
        limits = np.array(list(problem.budgets.values()))
        terms = split(problem.network, problem.choices, problem.decision_of, tables)
        self._width = max(len(costs) for costs in terms.states)
        self._formats = len(formats_of(problem.choices))

        def share(costs: FloatArray) -> FloatArray:
            return np.where(np.isfinite(costs), costs / limits, _UNSUPPORTED)

        states = np.zeros((len(terms.states), self._width, len(limits)))
        for decider, costs in enumerate(terms.states):
            states[decider, : len(costs)] = share(costs)
        self._constant = torch.from_numpy(share(terms.constant))
        self._states = torch.from_numpy(states)
        self._merges = []
        for merge in terms.merges:
            sources, maps = self._maps([merge.sources], writes=True)
            self._merges.append((sources[0], maps[0].cumsum(2)))
        shape = (len(terms.conversions), self._formats, self._formats, len(limits))
        cells = [share(conversion.cells) for conversion in terms.conversions]
        self._cells = torch.from_numpy(np.array(cells).reshape(shape))
        self._writers = self._maps([(c.writer,) for c in terms.conversions], writes=True)
        self._readers = self._maps([c.readers for c in terms.conversions], writes=False)
        self._charges = [
            (charge.table, charge.value / limits[charge.table], torch.from_numpy(charge.states))
            for charge in terms.charges
        ]
        loss = np.where(problem.allowed_decisions, problem.decision_loss, 0.0)
        self._loss = torch.from_numpy(loss)

    def _maps(self, groups: Sequence[Sequence[Follower]], *, writes: bool) -> tuple[Tensor, Tensor]:
        """Return who follows what, for N groups of at most R followers.

        Returns:
            (N, R) positions of their deciders, -1 for those that follow none; (N, R, S, F) which
            format each has in each state. Groups of fewer are filled up with followers of none.
        """
        most = max((len(group) for group in groups), default=0)
        deciders = np.full((len(groups), most), -1)
        maps = np.zeros((len(groups), most, self._width, self._formats))
        for n, group in enumerate(groups):
            for r, follower in enumerate(group):
                codes = follower.writes if writes else follower.reads
                deciders[n, r] = follower.decider
                maps[n, r, np.arange(len(codes)), codes] = 1.0
        return torch.from_numpy(deciders), torch.from_numpy(maps)

    def loss(self, chances: Tensor) -> Tensor:
        """Return the expected proxy loss, a scalar, of chances (G, K)."""
        return (chances * self._loss).sum()

    def shares(self, chances: Tensor) -> Tensor:
        """Return the expected costs as shares of the budgets, (M,), of chances (G, K)."""
        fixed = chances.new_zeros(1, self._width)
        fixed[0, 0] = 1.0  # what follows no decider is in its only state; it is the row -1
        rows = list(_padded(chances, self._width))
        for sources, at_most in self._merges:
            taken = torch.stack([fixed[0] if d < 0 else rows[d] for d in sources.tolist()])
            within = torch.einsum("rs,rsf->rf", taken, at_most).prod(0)
            state = torch.diff(within, prepend=within.new_zeros(1))
            rows.append(_padded(state, self._width))
        states = torch.cat([torch.stack(rows), fixed])
        total = self._constant + torch.einsum("ds,dsm->m", states[:-1], self._states)
        if len(self._cells):
            written = torch.einsum("nrs,nrsf->nf", states[self._writers[0]], self._writers[1])
            reads = torch.einsum("nrs,nrsf->nrf", states[self._readers[0]], self._readers[1])
            asked = 1.0 - (1.0 - reads).prod(1)
            total = total + torch.einsum("nu,nf,nufm->m", written, asked, self._cells)
        for table, value, causes in self._charges:
            due = 1.0 - (1.0 - (chances * causes).sum(1)).prod()
            total = total.index_add(0, torch.tensor([table]), value * due[None])
        return total


def _padded(rows: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, width - rows.shape[-1]))
