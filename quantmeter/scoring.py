"""What a search maximises: each policy is scored once; scores read back are taken as they are."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from costmodels.model import BackendContext, CostModel, unit_of
from costmodels.table import FloatArray
from costmodels.units import SI_UNIT, Metric, Unit, format_quantity
from hil.calibration import FailedPolicyError
from quantization.bits import FLOAT32
from quantization.errors import BudgetError
from quantization.network import Network
from quantization.policy import IndexArray, Policy, PolicyBatch
from quantmeter.costs import parse_costs
from quantmeter.preparing import Prepared
from quantmeter.rewards import check_reward
from search.budgets import BudgetRequest
from search.oracle import AccuracyOracle
from search.racing import RacingOracle


@dataclass(frozen=True)
class Score:
    """What is known of one policy.

    Args:
        value: what the search maximises; ``-inf`` rejects the policy as infeasible when measured.
        accuracy: on the search part; None where it was not asked for.
        divergence: of class probabilities from the float network's there, in nats; None where
            that is not what is maximised.
        measured: what the policy costs as a whole, by metric; empty where nothing measures it.
        abandoned: whether it was not run on all images: then the accuracy is an estimate.
    """

    value: float
    accuracy: float | None = None
    measured: Mapping[Metric, float] = field(default_factory=dict)
    abandoned: bool = False
    divergence: float | None = None

    @property
    def rejected(self) -> bool:
        """Whether it is infeasible as measured."""
        return self.value == -math.inf


@dataclass(frozen=True, eq=False)
class Totals:
    """Whole policies are priced, not summed up: by a backend that measures them, say.

    Args:
        models: what prices whole policies, by metric.
        limits: the most that a metric may cost so; a policy above is rejected.
        units: that a model answers in, where that is not the SI unit: a table may count cycles.
    """

    models: Mapping[Metric, CostModel]
    limits: Mapping[Metric, float]
    units: Mapping[Metric, Unit] = field(default_factory=dict)

    def unit(self, metric: Metric) -> Unit:
        """Return the unit of a metric's costs and limit."""
        return self.units.get(metric, SI_UNIT[metric])

    def costs(self, policy: PolicyBatch, prepared: Prepared) -> dict[Metric, float] | None:
        """Return what one policy costs; None if it could not be built, run or timed."""
        network = prepared.bench.network
        try:
            return {
                metric: float(model.total(network, policy, metric)[0])
                for metric, model in self.models.items()
            }
        except FailedPolicyError:
            return None

    def met(self, costs: Mapping[Metric, float]) -> bool:
        """Whether every limit is met."""
        return not any(costs[m] > limit for m, limit in self.limits.items())


def open_totals(
    text: str,
    context: BackendContext,
    budgets: Sequence[BudgetRequest],
    network: Network,
) -> Totals:
    """Read ``--totals``: what prices whole policies, and what they may cost.

    A budget that is a fraction of the float network refers to the same backend's cost of it.

    Args:
        text: a backend, or ``METRIC=`` and a backend.
        context: of the backend; policies are timed briefly.
        budgets: of the search.
        network: the network.

    Raises:
        BackendError: if there is no such backend, or it prices no metric.
        BudgetError: if no budget is in a metric that it prices, or one is in a unit that it does
            not answer in.
    """
    brief = replace(context, brief=True, progress=lambda _share, _what: None)
    models = dict(parse_costs([text], brief, exported=False).models)
    if models.keys().isdisjoint({budget.metric for budget in budgets}):
        priced = " and ".join(sorted(models))
        raise BudgetError(
            f"--totals {text} prices {priced}, which no budget limits: add --budget "
            f"{min(models)}=0.7x, or leave out --totals"
        )
    floats = PolicyBatch.of(network, [Policy.uniform(network, FLOAT32)])
    limits, units = {}, {}
    for budget in budgets:
        if budget.metric not in models:
            continue
        model = models[budget.metric]
        unit = units[budget.metric] = unit_of(model, network, (FLOAT32,), budget.metric)
        if budget.relative:
            limits[budget.metric] = budget.resolve(
                float(model.total(network, floats, budget.metric)[0])
            )
        elif budget.unit is unit:
            limits[budget.metric] = budget.value
        else:
            raise BudgetError(
                f"{budget} cannot be compared with totals in {unit.value}; give a fraction, such "
                f"as {budget.metric.value}=0.7x"
            )
    return Totals(models, limits, units)


class Scorer:
    """The `Evaluate` of a search; remembers what it found of each policy.

    Args:
        prepared: see `quantmeter.preparing.prepare`.
        reward: one of `quantmeter.rewards.REWARDS`.
        totals: prices whole policies; None leaves costs to the tables. A policy above a limit is
            rejected before its accuracy is looked at.
        known: scores that an earlier run found, by the bytes of the policy's row, in the order in
            which it found them.
        race: how many best policies are scored on all images, see `search.racing`; 0 for all.
        weights: of each metric: what a cost as large as its budget takes off the score.
        oracle: finds accuracies, where nothing races; None takes that of `prepared`.

    Attributes:
        asked: how many policies were scored here: not those that were known.

    Raises:
        QuantmeterError: for another reward.
    """

    def __init__(
        self,
        prepared: Prepared,
        reward: str,
        totals: Totals | None = None,
        known: Mapping[bytes, Score] | None = None,
        race: int = 0,
        weights: Mapping[Metric, float] | None = None,
        oracle: AccuracyOracle | None = None,
    ) -> None:
        check_reward(reward)
        self._weights = dict(weights or {})
        for metric in self._weights:
            if metric not in prepared.problem.budgets:
                raise BudgetError(
                    f"a weight of {metric.value} needs a budget for {metric.value} as its scale"
                )
        self._prepared, self._reward, self._totals = prepared, reward, totals
        self._known = dict(known or {})
        self._oracle: AccuracyOracle = oracle or prepared.oracle
        self.asked = 0
        self._racing: RacingOracle | None = None
        if race:
            self._racing = RacingOracle(prepared.oracle, keep=race, seed=prepared.bench.seed)
            self._racing.restore(self._accuracies())

    def like(self, prepared: Prepared, known: Mapping[bytes, Score] | None = None) -> "Scorer":
        """Return what scores the policies of another problem alike, all of them to the end."""
        return Scorer(
            prepared,
            self._reward,
            self._totals,
            known,
            weights=self._weights,
            oracle=self._oracle,
        )

    @property
    def limited(self) -> frozenset[Metric]:
        """The costs of whole policies above which a policy is rejected."""
        return frozenset() if self._totals is None else frozenset(self._totals.limits)

    def closest(self) -> str:
        """Say how close to the limits policies came as a whole; "" where nothing was measured."""
        said = []
        if self._totals is None:
            return ""
        for metric, limit in self._totals.limits.items():
            unit = self._totals.unit(metric)
            measured = [s.measured[metric] for s in self._known.values() if metric in s.measured]
            if measured:
                least, most = (format_quantity(x, unit) for x in (min(measured), limit))
                said.append(f"; the least {metric.value} of a whole policy was {least} of {most}")
        return "".join(said)

    def without_limits(self) -> "Scorer":
        """Return what scores alike, all to the end, whatever a policy costs as a whole."""
        known = {row: s for row, s in self._known.items() if not (s.rejected or s.abandoned)}
        return Scorer(
            self._prepared, self._reward, None, known, weights=self._weights, oracle=self._oracle
        )

    def __call__(self, index: IndexArray) -> FloatArray:
        """Return the scores (P,) of policies (P, L)."""
        return np.array([self.of(row).value for row in index], np.float64)

    def of(self, row: IndexArray) -> Score:
        """Return what is known of one policy, (L,); finds it out now if nothing is."""
        key = np.ascontiguousarray(row, np.uint8).tobytes()
        if key not in self._known:
            self._known[key] = self._find(row[None])
            self.asked += 1
        return self._known[key]

    def _find(self, index: IndexArray) -> Score:
        batch = self._prepared.batch(index)
        measured: Mapping[Metric, float] = {}
        if self._totals is not None:
            found = self._totals.costs(batch, self._prepared)
            if found is None:
                return Score(-math.inf)
            if not self._totals.met(found):
                return Score(-math.inf, measured=found)
            measured = found
        paid = self._paid(index, measured)
        if self._reward == "proxy":
            loss = float(self._prepared.problem.proxy_loss(index)[0])
            return Score(-loss - paid, measured=measured)
        if self._racing is None:
            accuracy = float(self._oracle.accuracy(batch)[0])
            if self._reward == "kl":
                divergence = float(self._prepared.oracle.divergence(batch)[0])
                if not math.isfinite(divergence):  # float16 overflowed: as good as never
                    return Score(-math.inf, measured=measured)
                return Score(-divergence - paid, accuracy, measured, divergence=divergence)
            return Score(accuracy - paid, accuracy, measured)
        policy = batch[0]
        accuracy = self._racing.score(policy)
        return Score(accuracy - paid, accuracy, measured, self._racing.is_abandoned(policy))

    def _paid(self, index: IndexArray, measured: Mapping[Metric, float]) -> float:
        """What the costs of one policy, (1, L), take off its score; measured ones, if there are."""
        if not self._weights:
            return 0.0
        problem, paid = self._prepared.problem, 0.0
        priced = problem.costs(index)
        for metric, weight in self._weights.items():
            if metric in measured and self._totals is not None:
                share = measured[metric] / self._totals.limits[metric]
            else:
                share = float(priced[metric][0]) / problem.budgets[metric]
            paid += weight * share
        return paid

    def _accuracies(self) -> Iterator[tuple[Policy, float]]:
        """What is known of policies that were not rejected before they were run on images."""
        for row, score in self._known.items():
            if score.accuracy is not None:
                yield self._prepared.batch(np.frombuffer(row, np.uint8)[None])[0], score.accuracy
