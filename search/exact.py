"""The certificate: the policy of the least proxy loss within every budget, proven by a MILP."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from costmodels.errors import UnsupportedChoiceError
from costmodels.table import FloatArray
from costmodels.units import Metric, format_bound
from quantization.errors import BudgetError, QuantmeterError
from quantization.policy import IndexArray
from search.archive import Ledger
from search.problem import Problem
from search.program import Program, build
from search.quiet import discarded_output
from search.searcher import Evaluate, Progress, Record, SearchResult

_OBJECTIVE_SCALE = 1e4
"""Largest coefficient of the objective: HiGHS stops at an absolute gap of 1e-6."""

_BUDGET_SCALE = 1e3
"""What a budget is scaled to: HiGHS accepts rows that are violated by 1e-6."""

_AGREEMENT = 1e-9
_ROUNDS = 20


class DisagreementError(QuantmeterError):
    """The MILP and the pricing give one policy different costs: a defect of Quantmeter."""


class UnsolvedError(BudgetError):
    """No policy was found, though there may be one."""


class _NothingInTimeError(UnsolvedError):
    """The time was over before any policy was found."""


@dataclass(frozen=True, eq=False)
class Solution:
    """What the solver found.

    Args:
        index: (L,) the policy.
        loss: its proxy loss.
        costs: its costs as the pricing sees them.
        bound: no feasible policy has a lower proxy loss than this (`Solver.minimum`: a lower cost
            besides the constant of the table).
        proven: whether the policy is optimal, up to the solver's absolute gap (1e-10 of the largest
            loss of a layer).
        status: what the solver says.
    """

    index: IndexArray
    loss: float
    costs: Mapping[Metric, float]
    bound: float
    proven: bool
    status: str


@dataclass(frozen=True, eq=False)
class Solver:
    """The program of one problem, ready for several objectives.

    Args:
        problem: what is solved.
        seconds: wall time after which a solve stops at the best policy so far.
    """

    problem: Problem
    seconds: float = 60.0

    @cached_property
    def _metrics(self) -> tuple[Metric, ...]:
        return tuple(self.problem.tables)

    @cached_property
    def _program(self) -> Program:
        program = build(self.problem, [self.problem.tables[m] for m in self._metrics])
        if not np.isfinite(program.constant).all():
            raise UnsupportedChoiceError(
                "a glue operator that always runs in float is not supported by the tables"
            )
        return program

    def optimum(self) -> Solution:
        """Return the feasible policy of the least proxy loss.

        Raises:
            BudgetError: if no policy meets the budgets (names the minimum), or none was found in
                time.
            UnsupportedChoiceError: if no policy is supported whatever it costs.
            DisagreementError: if program and pricing differ.
        """
        solution = self._solve(self._program.loss, self.problem.budgets)
        if solution is not None:
            return solution
        if not self.problem.budgets:
            raise _unsupported()
        try:
            raise self._unreachable()
        except _NothingInTimeError:
            each = " and ".join(map(self._text, self.problem.budgets))
            raise BudgetError(
                f"{each} cannot be met; what can was not found within {self.seconds:g} s"
            ) from None

    def optimum_within(self, limits: Mapping[Metric, float]) -> Solution | None:
        """Return the policy of the least proxy loss within other budgets than the problem's.

        Args:
            limits: in the units of the tables.

        Returns:
            The policy; None if none is within the limits.

        Raises:
            UnsolvedError: if none was found in time.
            DisagreementError: if program and pricing differ.
        """
        return self._solve(self._program.loss, limits)

    def minimum(self, metric: Metric, *, within: Collection[Metric] = ()) -> Solution | None:
        """Return the supported policy that costs least.

        Args:
            metric: what is minimised.
            within: metrics whose budgets are kept.

        Returns:
            The policy, which is the cheapest if `Solution.proven`; None if no policy is within
            those budgets.

        Raises:
            UnsolvedError: if none was found in time.
            UnsupportedChoiceError: if no policy is supported whatever it costs.
            DisagreementError: if program and pricing differ.
        """
        return self._minimum(metric, {m: self.problem.budgets[m] for m in within})

    def _minimum(self, metric: Metric, limits: Mapping[Metric, float]) -> Solution | None:
        solution = self._solve(self._program.costs[self._metrics.index(metric)], limits)
        if solution is None and not limits:
            raise _unsupported()
        return solution

    def _unreachable(self) -> BudgetError:
        """Say which budgets cannot be met, and what can: whoever follows that is served."""
        budgets = self.problem.budgets
        for metric in budgets:
            others = {m: b for m, b in budgets.items() if m is not metric}
            found = self._minimum(metric, others)
            if found is None:
                continue
            least = self._least(metric, found)
            if not others:
                return BudgetError(f"{self._text(metric, found)} cannot be met; {least}")
            kept = " and ".join(map(self._text, others))
            return BudgetError(
                f"{self._text(metric, found)} cannot be met together with {kept}; {least}"
            )
        raised: dict[Metric, Solution] = {}
        limits: dict[Metric, float] = {}
        for metric in budgets:
            found = self._minimum(metric, limits)
            limits[metric] = budgets[metric]
            if found is not None and found.costs[metric] > budgets[metric] * (1 + _AGREEMENT):
                raised[metric], limits[metric] = found, found.costs[metric]
        each = " and ".join(self._text(m, raised.get(m)) for m in budgets)
        enough = " and ".join(f"{m.value} to {self._cost(m, s)}" for m, s in raised.items())
        return BudgetError(f"{each} cannot be met together; raise {enough}")

    def _text(self, metric: Metric, found: Solution | None = None) -> str:
        return f"{metric.value} budget {self._bound(metric, found, upwards=False)}"

    def _least(self, metric: Metric, found: Solution) -> str:
        cost = self._cost(metric, found)
        if found.proven:
            return f"the minimum reachable is {cost}"
        return f"{cost} is reachable, not proven to be the minimum within {self.seconds:g} s"

    def _cost(self, metric: Metric, found: Solution) -> str:
        return self._bound(metric, found, upwards=True)

    def _bound(self, metric: Metric, found: Solution | None, *, upwards: bool) -> str:
        """Print a budget rounded down or a cost above it rounded up, with digits that tell them."""
        budget, unit, digits = self.problem.budgets[metric], self.problem.tables[metric].unit, 4
        value = budget if found is None else found.costs[metric]
        if value > budget:
            digits = min(17, max(digits, 2 - math.floor(math.log10(value / budget - 1))))
        return format_bound(value if upwards else budget, unit, digits=digits, upwards=upwards)

    def _solve(self, objective: FloatArray, limits: Mapping[Metric, float]) -> Solution | None:
        """Minimise `objective` while some metrics stay within limits; None if no policy does.

        The solver may overstep a budget by its tolerance. Such a policy is cut off, and the rest
        is solved again.
        """
        cuts: list[IndexArray] = []
        while len(cuts) <= _ROUNDS:
            found = self._milp(objective, limits, cuts)
            if found is None:
                return None
            index = found.index[None]
            costs = self.problem.costs(index)
            if all(costs[m][0] <= limit * (1 + _AGREEMENT) for m, limit in limits.items()):
                return found
            cuts.append(self.problem.decide(index)[0])
        raise UnsolvedError(
            f"more than {_ROUNDS} policies lie within rounding of a budget; change it by 0.001 %"
        )

    def _milp(
        self, objective: FloatArray, limits: Mapping[Metric, float], cuts: list[IndexArray]
    ) -> Solution | None:
        program = self._program
        scale = _OBJECTIVE_SCALE / (np.abs(objective).max() or 1.0)
        constraints = [LinearConstraint(program.matrix, program.lower, program.upper)]
        for metric, limit in limits.items():
            row = self._metrics.index(metric)
            unit = _BUDGET_SCALE / limit
            room = _BUDGET_SCALE - unit * program.constant[row]
            constraints.append(LinearConstraint(unit * program.costs[row], ub=room))
        for decisions in cuts:
            columns = program.decisions[np.arange(len(decisions)), decisions]
            row_of = np.bincount(columns, minlength=program.columns).astype(np.float64)
            constraints.append(LinearConstraint(row_of, ub=len(decisions) - 1))
        with discarded_output():
            result = milp(
                scale * objective,
                integrality=program.integer,
                bounds=Bounds(0, program.most),
                constraints=constraints,
                options={"mip_rel_gap": 0.0, "time_limit": self.seconds},
            )
        if result.status == 2:
            return None
        if result.x is None:
            raise _NothingInTimeError(
                f"no policy was found within {self.seconds:g} s: {result.message}"
            )
        bound = float(result.mip_dual_bound or 0.0) / scale
        return self._verified(np.round(result.x), bound, result.status == 0, str(result.message))

    def _verified(self, x: FloatArray, bound: float, proven: bool, status: str) -> Solution:
        """Check that pricing gives the policy the costs that the program gave it."""
        program, problem = self._program, self.problem
        index = problem.expand(x[program.decisions].argmax(1)[None])
        costs = {metric: float(cost[0]) for metric, cost in problem.costs(index).items()}
        for row, metric in enumerate(self._metrics):
            terms = program.costs[row] * x
            expected = float(program.constant[row] + terms.sum())
            size = max(abs(costs[metric]), float(np.abs(terms).sum()))
            if not abs(expected - costs[metric]) <= _AGREEMENT * size:
                raise DisagreementError(
                    f"the MILP prices {metric.value} at {expected!r}, the table at "
                    f"{costs[metric]!r}; please report this network"
                )
        loss = float(problem.proxy_loss(index)[0])
        return Solution(index[0], loss, costs, bound, proven, status)


def solve(problem: Problem, *, seconds: float = 60.0) -> Solution:
    """Return the feasible policy of the least proxy loss, with its proof.

    Raises:
        BudgetError: if no policy meets the budgets: says what the minimum reachable is.
        UnsupportedChoiceError: if no policy is supported whatever it costs.
    """
    return Solver(problem, seconds).optimum()


def _unsupported() -> UnsupportedChoiceError:
    return UnsupportedChoiceError(
        "no policy is supported: every one needs an unsupported glue operator or conversion"
    )


@dataclass(frozen=True)
class Exact:
    """The exact optimum of the proxy loss, scored once.

    Args:
        seconds: wall time after which the best policy so far is taken.
    """

    seconds: float = 60.0
    name: str = "exact"

    def search(
        self,
        problem: Problem,
        evaluate: Evaluate,
        *,
        evaluations: int,
        seed: int,  # noqa: ARG002 - nothing is random here
        progress: Progress | None = None,
        record: Record | None = None,
    ) -> SearchResult:
        """See `search.searcher.Searcher`."""
        ledger = Ledger(problem, evaluate, evaluations, progress, record)
        solution = solve(problem, seconds=self.seconds)
        ledger.score(solution.index[None], self.name)
        return ledger.result(
            {
                "loss": solution.loss,
                "loss_bound": max(0.0, solution.bound),
                "proven": float(solution.proven),
                "status": solution.status,
            }
        )
