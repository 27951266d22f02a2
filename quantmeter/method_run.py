"""One search method run on what was prepared, and what to say where it finds nothing."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from quantization.errors import BudgetError
from quantization.policy import IndexArray
from quantmeter.agent_knobs import Knobs
from quantmeter.preparing import Prepared, Progress
from quantmeter.refitting import joined
from quantmeter.scoring import Scorer
from quantmeter.search_options import CONSTRAINTS
from search import methods
from search.exact import solve
from search.problem import Problem
from search.reinforce_config import Constraint, ReinforceConfig
from search.searcher import Searcher, SearchResult, Trial
from search.starting import accepted_start, greedy_start

if TYPE_CHECKING:
    from search.transfer import SavedAgent

_LOGGER = logging.getLogger(__name__)


def configured(
    method: str,
    start: IndexArray | None = None,
    constraint: str = CONSTRAINTS[0],
    inherited: "tuple[SavedAgent, ...]" = (),
    trained: "Callable[[SavedAgent], None] | None" = None,
    knobs: Knobs = MappingProxyType({}),
) -> Searcher:
    """Return the search method called `method`; see `search.methods`.

    Args:
        method: one of `search.methods.METHODS`.
        start: (L,) policy that an iterative method starts from; None starts cold.
        constraint: see `quantmeter.search_options.Objective`.
        inherited: agents that REINFORCE continues.
        trained: is handed the agent of REINFORCE when its search ends.
        knobs: of REINFORCE's agent that differ from what it has by default.

    Raises:
        QuantmeterError: if there is none; names close matches.
    """
    agent: ReinforceConfig | None = None
    agents_own = constraint in ("mask", "soft")
    if agents_own or knobs:
        base = ReinforceConfig() if start is None else ReinforceConfig.warm()
        chosen = cast(Constraint, constraint) if agents_own else base.constraint
        agent = replace(base, constraint=chosen, **knobs)  # type: ignore[arg-type]
    settings = methods.MethodSettings(
        start=start,
        repair=constraint != "reject",
        agent=agent,
        inherited=inherited,
        trained=trained,
    )
    return methods.make_searcher(method, settings)


def run_method(
    prepared: Prepared,
    method: str,
    *,
    scorer: Scorer | None = None,
    episodes: int = 600,
    seed: int = 0,
    start: IndexArray | None = None,
    searcher: Searcher | None = None,
    first: SearchResult | None = None,
    record: Callable[[Trial], None] | None = None,
    progress: Progress = lambda _share, _what: None,
) -> SearchResult:
    """Run one search method.

    Args:
        prepared: see `quantmeter.preparing.prepare`.
        method: one of `search.methods.METHODS`.
        scorer: what is maximised; None for accuracy.
        episodes: policies to try at most.
        seed: of every random choice.
        start: (L,) policy that iterative methods start from; None starts cold.
        searcher: the method itself, configured; None makes it with `start`.
        first: what an earlier stage found; both are returned as one result.
        record: called with each trial when it is made.
        progress: called with the share done.

    Raises:
        BudgetError: if neither the method nor the earlier stage found a policy within the budgets.
    """
    scorer = scorer or Scorer(prepared, "accuracy")
    result = (searcher or configured(method, start)).search(
        prepared.problem,
        scorer,
        evaluations=episodes,
        seed=seed,
        progress=progress,
        record=record,
    )
    if first is not None:
        result = joined(prepared, first, result)
    if result.best is None:
        raise BudgetError(_nothing_found(method, result) + scorer.closest())
    return result


def _nothing_found(method: str, result: SearchResult) -> str:
    """Say why no policy was found, and what to do next."""
    if not result.trials:
        return f"{method} found no policy within the budgets; try --method exact"
    if not methods.METHODS[method].iterative:
        return above_as_a_whole(method)
    return (
        f"all {len(result.trials)} policies that {method} tried are above a budget, or their "
        "answers are no numbers: give a larger budget, or more --episodes and --anew"
    )


def above_as_a_whole(method: str) -> str:
    """Say that the one policy of `method` was rejected, and what to do next."""
    return (
        f"what {method} found is above a budget as a whole; take an iterative method, such as "
        "--method reinforce --warm"
    )


def start_policy(
    problem: Problem,
    warm: str | None,
    scorer: Scorer,
    record: Callable[[Trial], None] | None = None,
) -> IndexArray | None:
    """Return the policy that a search starts from, (L,).

    Where policies are priced as a whole, one that is within the budgets so, see
    `search.starting.accepted_start`.

    Args:
        problem: what is searched.
        warm: one of `quantmeter.search_options.STARTS`, or None.
        scorer: of the search.
        record: called with each start that was rejected as measured: a search that goes on must
            not measure it again.

    Returns:
        None to start cold, or if nothing is found within the budgets, which is logged.
    """
    if warm is None:
        return None

    def accepts(index: IndexArray) -> bool:
        score = scorer.of(index)
        if score.rejected and record is not None:
            loss = float(problem.proxy_loss(index[None])[0])
            costs = {metric: float(cost[0]) for metric, cost in problem.costs(index[None]).items()}
            record(Trial(index, score.value, loss, costs, f"{warm} start"))
        return not score.rejected

    found: IndexArray | None
    if scorer.limited:
        found = accepted_start(problem, _STARTS[warm], accepts, scorer.limited)
    else:
        found = _STARTS[warm](problem)
    if found is None:
        other = "" if warm == "exact" else "; --warm exact starts from the optimum of the proxy"
        _LOGGER.warning("%s search finds no start within the budgets: a cold one%s", warm, other)
    return found


_STARTS: Mapping[str, Callable[[Problem], IndexArray | None]] = {
    "greedy": greedy_start,
    "exact": lambda problem: solve(problem).index,
}
"""By the names of `quantmeter.search_options.STARTS`."""
