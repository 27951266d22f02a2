"""The certificate of a search: the proved optimum, gaps, what each budget is worth, dear layers.

The worth of a budget is found by solving the integer program again with the budget a step wider and
a step tighter. The dual of the linear relaxation is *not* it: the relaxation mixes choices within a
layer, and the least loss of the integer program is a staircase over the budget, whose slope is
either 0 or none. So a price always belongs to a step, which is told with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from costmodels.units import Metric, Unit
from quantization.errors import BudgetError
from quantization.policy import IndexArray
from search.exact import Solution, Solver, UnsolvedError
from search.layer_costs import LayerCost, layer_costs
from search.problem import Problem
from search.searcher import Trial
from search.slope import Slope, measured_slope


@dataclass(frozen=True)
class ShadowPrice:
    """What one budget is worth in proxy loss, over one step to either side.

    Args:
        metric: of the budget.
        unit: of budget, cost and step.
        budget: the most that the metric may cost.
        cost: of the optimum.
        step: how far the budget was moved.
        loss: least proxy loss within the budgets.
        looser: least proxy loss with this budget a step wider, the others as they are.
        tighter: least proxy loss with it a step tighter; None if no policy meets that.
        reachable: the least that the metric can cost within the other budgets.
        proven: whether all these are proven.
    """

    metric: Metric
    unit: Unit
    budget: float
    cost: float
    step: float
    loss: float
    looser: float
    tighter: float | None
    reachable: float
    proven: bool

    @property
    def bought(self) -> float:
        """Proxy loss that a step more saves."""
        return self.loss - self.looser

    @property
    def given_up(self) -> float | None:
        """Proxy loss that a step less adds; None if no policy meets that."""
        return None if self.tighter is None else self.tighter - self.loss

    def to_dict(self) -> dict[str, Any]:
        """Return the price as JSON values; losses per unit are those over the step."""
        given_up = self.given_up
        return {
            "unit": self.unit.value,
            "budget": self.budget,
            "cost": self.cost,
            "minimum_reachable": self.reachable,
            "step": self.step,
            "loss": self.loss,
            "loss_with_a_step_more": self.looser,
            "loss_with_a_step_less": self.tighter,
            "saved_per_unit": self.bought / self.step,
            "added_per_unit": None if given_up is None else given_up / self.step,
            "proven": self.proven,
            "from": "integer programs solved again at the moved budget",
        }


@dataclass(frozen=True)
class Certificate:
    """What is known for sure beside what a search found.

    Args:
        optimum: least proxy loss that the solver found.
        bound: no feasible policy has less.
        proven: whether `optimum` is the least.
        status: what the solver says.
        loss: proxy loss of the policy that is judged.
        prices: of each budget whose price could be solved.
        layers: by metric, what each layer of that policy costs, the dearest first.
        totals: by metric, what that policy costs.
        units: of each metric.
        slope: how much score goes with proxy loss, if trials were given that tell.
        unsolved: why a budget has no price, by metric.
        grouped: whether that policy may have channel groups, and so lie below the optimum, which is
            that of one width a layer.
    """

    optimum: float
    bound: float
    proven: bool
    status: str
    loss: float
    prices: tuple[ShadowPrice, ...]
    layers: Mapping[Metric, tuple[LayerCost, ...]]
    totals: Mapping[Metric, float]
    units: Mapping[Metric, Unit]
    slope: Slope | None = None
    unsolved: Mapping[Metric, str] = field(default_factory=dict)
    grouped: bool = False

    @property
    def gap(self) -> float | None:
        """Proxy loss of the policy over the optimum, less 1; None if the optimum is 0."""
        return self._above(self.optimum)

    @property
    def gap_at_most(self) -> float | None:
        """Proxy loss of the policy over the bound, less 1; None if the bound is not positive."""
        return self._above(self.bound)

    def _above(self, loss: float) -> float | None:
        if loss <= 0:
            return None
        share = self.loss / loss - 1.0
        return share if self.grouped else max(share, 0.0)

    def score_of(self, loss: float) -> tuple[float, float, float] | None:
        """Return the score that goes with so much proxy loss, with its interval; None if not told.

        An estimate: the slope is that of the trials, the loss is the proxy's.
        """
        if self.slope is None or not self.slope.told:
            return None
        return loss * self.slope.mid, loss * self.slope.low, loss * self.slope.high

    def to_dict(self) -> dict[str, Any]:
        """Return the certificate as JSON values."""
        budgets: dict[str, Any] = {metric.value: None for metric in self.unsolved}
        for price in self.prices:
            score = self.score_of(price.bought)
            told = None if score is None else {"mid": score[0], "interval": list(score[1:])}
            budgets[price.metric.value] = {**price.to_dict(), "score_that_a_step_buys": told}
        return {
            "proxy_optimum": self.optimum,
            "bound": self.bound,
            "proven": self.proven,
            "status": self.status,
            "proxy_loss": self.loss,
            "gap": self.gap,
            "gap_at_most": self.gap_at_most,
            "grouped": self.grouped,
            "budgets": budgets,
            "unsolved": {metric.value: why for metric, why in self.unsolved.items()},
            "slope": None if self.slope is None else self.slope.to_dict(),
            "layers": {m.value: [c.to_dict() for c in costs] for m, costs in self.layers.items()},
            "totals": {m.value: total for m, total in self.totals.items()},
            "units": {m.value: unit.value for m, unit in self.units.items()},
        }


def certify(
    problem: Problem,
    solution: Solution,
    policy: IndexArray | None = None,
    *,
    trials: Sequence[Trial] = (),
    step: float = 0.05,
    seconds: float = 60.0,
    refined: Problem | None = None,
) -> Certificate:
    """Return the certificate of a policy.

    Args:
        problem: what was searched.
        solution: of `search.exact.solve` for that problem.
        policy: (L,) what is judged; None judges the solution.
        trials: whose scores are accuracies, to tell what proxy loss is worth; () tells nothing.
        step: how far each budget is moved to either side, as a share of it.
        seconds: of each of the three solves that a budget takes; one that finds nothing in time
            leaves the budget without a price.
        refined: the same problem with channel groups among its choices, if `policy` is one of it.

    Raises:
        BudgetError: if the step is not between 0 and 1.
    """
    if not 0 < step < 1:
        raise BudgetError(f"a budget is moved by a share between 0 and 1, not {step}")
    judged = solution.index if policy is None else policy
    within = problem if refined is None else refined
    costs = {metric: float(cost[0]) for metric, cost in within.costs(judged[None]).items()}
    solver = Solver(problem, seconds)
    prices, unsolved = [], {}
    for metric in problem.budgets:
        try:
            prices.append(_price(solver, solution, metric, step))
        except UnsolvedError as error:
            unsolved[metric] = str(error)
    return Certificate(
        solution.loss,
        max(0.0, solution.bound),  # losses are not negative, whatever a stopped solver can tell
        solution.proven,
        solution.status,
        float(within.proxy_loss(judged[None])[0]),
        tuple(prices),
        {
            metric: tuple(sorted(layer_costs(within, judged, metric), key=lambda c: -c.cost))
            for metric in within.tables
        },
        costs,
        {metric: table.unit for metric, table in problem.tables.items()},
        measured_slope(trials),
        unsolved,
        grouped=refined is not None,
    )


def _price(solver: Solver, solution: Solution, metric: Metric, share: float) -> ShadowPrice:
    problem = solver.problem
    budget = problem.budgets[metric]
    step = share * budget
    looser = solver.optimum_within({**problem.budgets, metric: budget + step})
    assert looser is not None  # the solution is within a wider budget
    tighter = solver.optimum_within({**problem.budgets, metric: budget - step})
    others = [m for m in problem.budgets if m is not metric]
    least = solver.minimum(metric, within=others)
    assert least is not None  # the solution is within the other budgets
    solved = [solution, looser, least, *([tighter] if tighter else [])]
    return ShadowPrice(
        metric,
        problem.tables[metric].unit,
        budget,
        solution.costs[metric],
        step,
        solution.loss,
        min(looser.loss, solution.loss),  # the solution is within a wider budget too
        None if tighter is None else max(tighter.loss, solution.loss),
        least.costs[metric],
        all(one.proven for one in solved),
    )
