"""A search that first scores some policies near the optimum of its proxy, and refits the proxy."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from quantmeter.preparing import Prepared
from search.exact import Solution
from search.neighbourhood import Neighbourhood
from search.refit import refit
from search.searcher import Evaluate, Progress, Record, SearchResult, Trial


def refitted(
    prepared: Prepared,
    optimum: Solution,
    evaluate: Evaluate,
    *,
    exact: Callable[[Trial], bool] = lambda _trial: True,
    evaluations: int,
    seed: int,
    progress: Progress | None = None,
    record: Record | None = None,
) -> tuple[Prepared, SearchResult]:
    """Score changed copies of the proxy's optimum, and fit the losses of layers to their scores.

    Args:
        prepared: what the search stands on.
        optimum: of its proxy loss.
        evaluate: scores of policies.
        exact: whether the score of a trial is no estimate; to others nothing is fitted.
        evaluations: how many are scored.
        seed: of the changes.
        progress: told how far this is.
        record: called with each trial.

    Returns:
        The same with the refitted proxy loss, in units of the score, and what was found on the way.
    """
    searcher = Neighbourhood(optimum.index)
    first = searcher.search(
        prepared.problem,
        evaluate,
        evaluations=evaluations,
        seed=seed,
        progress=progress,
        record=record,
    )
    fitted = [trial for trial in first.trials if exact(trial)]
    index = np.array([trial.index for trial in fitted], np.uint8)
    scores = np.array([trial.score for trial in fitted])
    shape = len(scores), len(optimum.index)
    loss = refit(prepared.problem.loss, index.reshape(shape), scores)
    problem = replace(prepared.problem, loss=loss)
    name, count = prepared.proxy, 0
    if loss is not prepared.problem.loss:  # else there was too little to fit
        name, count = f"{name}, refitted to {len(scores)} policies", len(scores)
    log = {**first.log, "refitted_to": float(count)}
    return replace(prepared, problem=problem, proxy=name), replace(first, log=log)


def joined(prepared: Prepared, first: SearchResult, later: SearchResult) -> SearchResult:
    """Return both as one result; proxy losses are those of the refitted proxy."""
    again = {t.index.tobytes() for t in first.trials}
    rest = [t for t in later.trials if t.index.tobytes() not in again]
    trials = (*_priced(prepared, first.trials), *rest)
    by_row = {t.index.tobytes(): t for t in trials}
    rows = dict.fromkeys(t.index.tobytes() for t in (*first.archive, *later.archive))
    archive = sorted((by_row[row] for row in rows if row in by_row), key=_rank)
    log = {**later.log, "refitted_to": first.log["refitted_to"]}
    return SearchResult(tuple(archive), trials, log)


def _priced(prepared: Prepared, trials: tuple[Trial, ...]) -> tuple[Trial, ...]:
    if not trials:
        return ()
    losses = prepared.problem.proxy_loss(np.array([t.index for t in trials], np.uint8))
    return tuple(replace(t, loss=float(x)) for t, x in zip(trials, losses, strict=True))


def _rank(trial: Trial) -> tuple[float, float]:
    return -trial.score, trial.loss
