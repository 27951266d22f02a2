"""The contract of a search method, as one test class that every searcher inherits.

    class TestMine(SearcherContract):
        @classmethod
        def searcher(cls, settings: MethodSettings) -> Searcher:
            return Mine(settings.start, settings.repair)

A contract test cannot be overridden. What a method does not promise, it says:
``exemptions = {"test_the_start_is_scored_first": "it needs no start"}``. Needs pytest.
"""
# ruff: noqa: D102 - the name of a test is its sentence

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest

from costmodels.errors import UnsupportedChoiceError
from costmodels.sketch import example_network
from costmodels.table import Cells, CostTable, FloatArray, Provenance
from costmodels.units import SI_UNIT, Metric
from quantization.bits import formats_of, parse_choices
from quantization.errors import BudgetError
from quantization.policy import IndexArray
from search.greedy import greedy_policy
from search.methods import MethodSettings
from search.problem import Problem
from search.searcher import Searcher, SearchResult, Trial

EVALUATIONS = 24
"""Policies that a search of the contract may score."""

WITHOUT_START = {
    "test_the_start_is_scored_first": "it needs no start",
    "test_an_infeasible_start_is_never_scored": "it needs no start",
    "test_without_repair_nothing_is_repaired": "it repairs nothing",
}
"""Exemptions of a method that scores only a few policies, found without evaluating any."""


def example_problem(seed: int = 0, latency: float = 0.7, size: float = 0.5) -> Problem:
    """Draw a problem with a tie, masked choices, conversions that cost or gain, and two budgets.

    Args:
        seed: of the costs and losses.
        latency: budget as a fraction of what the float network costs.
        size: likewise.
    """
    network = example_network().tied([("point", "smooth")])
    choices = parse_choices("w2a8,w4a8,w8a8,w32a32")
    rng = np.random.default_rng(seed)
    bits = np.array([choice.weights for choice in choices])
    cells = (len(network.layers), len(choices))
    masked = rng.random(cells) < 0.15
    masked[:, -1] = False
    tables = {}
    for metric in (Metric.LATENCY, Metric.SIZE):
        known = len(formats_of(choices))
        unary = (
            rng.uniform(0.5, 2.0, (cells[0], 1)) * (0.2 + bits / 32) * rng.uniform(0.8, 1, cells)
        )
        conversion = rng.uniform(-0.1, 0.3, (len(network.tensors), known, known))
        conversion[:, range(known), range(known)] = 0.0
        tables[metric] = CostTable(
            metric=metric,
            unit=SI_UNIT[metric],
            statistic="model",
            network=network.digest,
            layers=network.layer_names,
            choices=choices,
            glue_names=tuple(node.name for node in network.glue),
            tensors=tuple(tensor.name for tensor in network.tensors),
            unary=Cells.of(np.where(masked, np.inf, unary), Provenance.ASSUMED),
            glue=Cells.of(rng.uniform(0.0, 0.2, (len(network.glue), known)), Provenance.ASSUMED),
            conversion=Cells.of(conversion, Provenance.ASSUMED),
        )
    loss = rng.lognormal(0.0, 1.0, (cells[0], 1)) * 0.25 ** bits.clip(max=16)
    loss = np.where(bits == bits.max(), 0.0, loss * rng.uniform(0.7, 1.3, cells))
    free = Problem(network, choices, tables, {}, loss)
    totals = free.costs(np.full((1, cells[0]), len(choices) - 1, np.uint8))
    shares = {Metric.LATENCY: latency, Metric.SIZE: size}
    limits = {metric: share * float(totals[metric][0]) for metric, share in shares.items()}
    return Problem(network, choices, tables, limits, loss)


@dataclass
class Run:
    """One search, watched.

    Args:
        problem: what was searched.
        asked: the policies that were scored, in order.
        recorded: the trials as they were made.
        shares: what the progress was told.
    """

    problem: Problem
    asked: list[IndexArray] = field(default_factory=list)
    recorded: list[Trial] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    def search(
        self,
        searcher: Searcher,
        evaluations: int = EVALUATIONS,
        seed: int = 0,
        rejected: int | None = None,
    ) -> SearchResult:
        """Search for a low proxy loss.

        Args:
            searcher: the method.
            evaluations: at most.
            seed: of the search.
            rejected: of every two scored policies, the one at this position, 0 or 1, is infeasible
                as measured; 2 rejects both.
        """

        def evaluate(index: IndexArray) -> FloatArray:
            scores = -self.problem.proxy_loss(index)
            for position, row in enumerate(index):
                if rejected is not None and rejected in (2, len(self.asked) % 2):
                    scores[position] = -np.inf
                self.asked.append(row.copy())
            return scores

        return searcher.search(
            self.problem,
            evaluate,
            evaluations=evaluations,
            seed=seed,
            progress=lambda share, _what: self.shares.append(share),
            record=self.recorded.append,
        )


class SearcherContract:
    """What every search method promises; inherit, name the class ``Test...``, define `searcher`."""

    exemptions: ClassVar[Mapping[str, str]] = {}
    """Name of a contract test to the reason why this method does not keep it."""

    @classmethod
    def searcher(cls, settings: MethodSettings) -> Searcher:
        """Return the method; quick: its search of 24 evaluations should take below a second."""
        raise NotImplementedError

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        contract = {name for name in vars(SearcherContract) if name.startswith("test_")}
        if overridden := sorted(contract & set(vars(cls))):
            raise TypeError(f"contract tests are exempted, not overridden: {overridden}")
        if unknown := sorted(set(cls.exemptions) - contract):
            raise TypeError(f"exemptions from tests that do not exist: {unknown}")
        if not all(cls.exemptions.values()):
            raise TypeError("an exemption needs its reason")

    @pytest.fixture(autouse=True)
    def _exempt(self, request: pytest.FixtureRequest) -> None:
        name = getattr(request.node, "originalname", request.node.name)
        if reason := self.exemptions.get(name):
            pytest.skip(f"exempt: {reason}")

    def test_it_has_a_name(self) -> None:
        assert self.searcher(MethodSettings()).name

    @pytest.mark.parametrize("evaluations", [0, 1, EVALUATIONS])
    def test_it_never_scores_more_policies_than_it_may(self, evaluations: int) -> None:
        run = Run(example_problem())
        result = run.search(self.searcher(MethodSettings()), evaluations)
        assert len(run.asked) == result.evaluations <= evaluations
        assert evaluations > 0 or result.best is None

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("repaired", [True, False])
    def test_it_scores_only_what_is_feasible_tied_and_supported(
        self, seed: int, repaired: bool
    ) -> None:
        made = example_problem(seed)
        run = Run(made)
        result = run.search(self.searcher(MethodSettings(repair=repaired)), seed=seed)
        for index in (*run.asked, *(trial.index for trial in result.archive)):
            assert made.allowed[np.arange(len(index)), index].all()
            assert made.feasible(index[None])[0]

    def test_it_finds_something_within_budgets_that_can_be_met(self) -> None:
        for seed in range(3):
            assert (
                Run(example_problem(seed)).search(self.searcher(MethodSettings())).best is not None
            )

    def test_it_scores_no_policy_twice(self) -> None:
        run = Run(example_problem())
        run.search(self.searcher(MethodSettings()))
        assert len({index.tobytes() for index in run.asked}) == len(run.asked)

    def test_trials_are_recorded_as_they_are_made(self) -> None:
        run = Run(example_problem())
        result = run.search(self.searcher(MethodSettings()))
        assert tuple(run.recorded) == result.trials
        assert [t.index.tolist() for t in result.trials] == [a.tolist() for a in run.asked]
        assert run.shares == sorted(run.shares)
        assert all(0 < share <= 1 for share in run.shares)

    def test_a_trial_holds_what_was_scored_and_what_it_costs(self) -> None:
        run = Run(example_problem())
        result = run.search(self.searcher(MethodSettings()))
        for trial in (*result.trials, *result.archive):
            index = trial.index[None]
            assert trial.loss == pytest.approx(run.problem.proxy_loss(index)[0])
            assert trial.score == pytest.approx(-trial.loss)
            costs = {m: cost[0] for m, cost in run.problem.costs(index).items()}
            assert trial.costs == pytest.approx(costs)
            assert trial.origin

    def test_the_archive_ranks_distinct_policies_by_score(self) -> None:
        result = Run(example_problem()).search(self.searcher(MethodSettings()))
        scores = [trial.score for trial in result.archive]
        assert scores == sorted(scores, reverse=True)
        assert len({trial.index.tobytes() for trial in result.archive}) == len(scores)
        if result.trials:
            assert scores[0] == max(trial.score for trial in result.trials)

    def test_the_same_seed_finds_the_same_policies(self) -> None:
        first, again = (
            Run(example_problem()).search(self.searcher(MethodSettings()), seed=7) for _ in range(2)
        )
        assert [t.index.tolist() for t in first.trials] == [t.index.tolist() for t in again.trials]
        assert [t.score for t in first.archive] == [t.score for t in again.archive]
        assert first.log == again.log

    @pytest.mark.parametrize("rejected", [0, 1, 2])
    def test_what_is_infeasible_as_measured_is_never_the_best(self, rejected: int) -> None:
        result = Run(example_problem()).search(self.searcher(MethodSettings()), rejected=rejected)
        assert result.trials, "nothing was scored"
        assert all(np.isfinite(trial.score) for trial in result.archive)
        assert (result.best is None) == all(trial.rejected for trial in result.trials)

    def test_the_start_is_scored_first(self) -> None:
        made = example_problem()
        found = greedy_policy(made)
        assert found is not None
        run = Run(made)
        result = run.search(self.searcher(MethodSettings(start=found[0])))
        assert run.asked[0].tolist() == found[0].tolist()
        assert "start" in result.trials[0].origin
        assert result.archive[0].score >= -made.proxy_loss(found)[0]
        assert len(run.asked) > 1, "nothing but the start was scored"

    def test_an_infeasible_start_is_never_scored(self) -> None:
        made = example_problem()
        assert not made.feasible(made.lowest_loss)[0]
        run = Run(made)
        run.search(self.searcher(MethodSettings(start=made.lowest_loss[0])))
        assert run.asked
        assert made.feasible(np.array(run.asked)).all()

    def test_without_repair_nothing_is_repaired(self) -> None:
        """The budgets allow about one random policy in seven."""
        result = Run(example_problem()).search(self.searcher(MethodSettings(repair=False)))
        assert result.log["repaired_share"] == 0
        assert float(result.log["rejected_share"]) > 0

    def test_budgets_that_cannot_be_met_raise_or_leave_nothing_found(self) -> None:
        run = Run(example_problem(latency=0.01))
        try:
            result = run.search(self.searcher(MethodSettings()))
        except (BudgetError, UnsupportedChoiceError):
            pass
        else:
            assert result.best is None
        assert not run.asked

    def test_it_ends_by_itself_when_every_policy_was_seen(self) -> None:
        made = example_problem(latency=0.5, size=0.4)
        every = np.indices([len(made.choices)] * len(made.groups)).reshape(len(made.groups), -1).T
        possible = int(made.feasible(made.expand(every.astype(np.uint8))).sum())
        assert 1 < possible < 200
        run = Run(made)
        run.search(self.searcher(MethodSettings()), evaluations=10**6)
        assert len(run.asked) <= possible

    def test_it_leaves_the_global_generators_alone(self) -> None:
        import torch

        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002 - it is the global one that is watched
        expected = torch.get_rng_state(), np.random.get_state(legacy=False)  # noqa: NPY002
        Run(example_problem()).search(self.searcher(MethodSettings()))
        assert torch.equal(torch.get_rng_state(), expected[0])
        assert repr(np.random.get_state(legacy=False)) == repr(expected[1])  # noqa: NPY002
