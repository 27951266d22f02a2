"""The trials of a search: where they are written, and which of them say how good a policy is."""

from dataclasses import replace
from functools import partial

from quantmeter.journal import Journal, encode
from quantmeter.preparing import Prepared
from quantmeter.run_folder import TRIALS, Earlier, RunFolder
from quantmeter.runs import costs_from
from quantmeter.scoring import Scorer
from search.searcher import SearchResult, Trial


def run_to_the_end(result: SearchResult, scorer: Scorer) -> SearchResult:
    """Return the result without trials whose score is an estimate.

    Each has what it costs as a whole, where that was looked at.
    """
    scored = [(trial, scorer.of(trial.index)) for trial in result.trials]
    trials = tuple(
        replace(trial, costs={**trial.costs, **score.measured})
        for trial, score in scored
        if not score.abandoned
    )
    return replace(result, trials=trials)


def as_accuracies(result: SearchResult, scorer: Scorer) -> tuple[Trial, ...]:
    """Return the trials of `run_to_the_end` with their accuracy, where it is known, as score."""
    scored = [(trial, scorer.of(trial.index).accuracy) for trial in result.trials]
    return tuple(replace(trial, score=known) for trial, known in scored if known is not None)


def open_journal(
    folder: RunFolder, left: Earlier | None, prepared: Prepared, scorer: Scorer
) -> Journal:
    """Open the file of trials of a run, behind those that it holds already."""
    line = partial(
        encode,
        layers=prepared.bench.network.layer_names,
        choices=prepared.problem.choices,
        said=costs_from(prepared.problem.tables),
    )
    return Journal(
        folder.path / TRIALS,
        () if left is None else left.trials,
        0 if left is None else left.size,
        lambda trial: line(trial, scorer.of(trial.index)),
    )
