"""The second level of a search: channel groups around the widths that it gave to layers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

from costmodels.errors import UnsupportedChoiceError
from costmodels.model import CostModel
from costmodels.units import Metric
from hil.calibration import FailedPolicyError
from quantization.bits import BitWidths
from quantization.channel_groups import ChannelGroups
from quantization.deployment import misfit_of
from quantization.errors import QuantmeterError
from quantization.network import Network
from quantization.policy import IndexArray, Policy, PolicyBatch
from quantmeter.costs import Costs
from quantmeter.preparing import Prepared, Progress
from quantmeter.runs import Found, describe
from quantmeter.scoring import Score, Scorer, Totals
from search.channel_groups import Refined, channel_costs, refine
from search.exact import Solution, UnsolvedError
from search.searcher import SearchResult, Trial

_LEAVE_OUT = "leave out --channel-groups"


@dataclass(frozen=True, eq=False)
class Grouping:
    """What channel groups made of the policy that a search found.

    Args:
        before: that policy, of one width a layer.
        score: what the search maximised, of it.
        after: the policy with channel groups; None if none lowers the proxy loss.
        grouped_score: of it; None without.
        refined: the problem it was chosen from; None if that could not be solved.
        idle: budgeted metrics in which groups save nothing: every width of weights costs the same.
        unsolved: why there is none, where the solver ran out of time or it has no price as a whole.
    """

    before: Found
    score: Score
    after: Found | None = None
    grouped_score: Score | None = None
    refined: Refined | None = None
    idle: tuple[Metric, ...] = ()
    unsolved: str | None = None

    @property
    def taken(self) -> Refined | None:
        """What the run ends with, if that has channel groups: they scored better."""
        if self.grouped_score is None or self.grouped_score.value <= self.score.value:
            return None
        return self.refined

    @property
    def best(self) -> Found:
        """What the run ends with."""
        return self.before if self.taken is None or self.after is None else self.after

    def to_dict(self) -> dict[str, Any]:
        """Return both policies as JSON values, and which was taken; a rejected one scores null."""
        after, scored, refined = self.after, self.grouped_score, self.refined
        rejected = scored is not None and scored.rejected
        return {
            "taken": self.taken is not None,
            "one_width": {**self.before.to_dict(), "score": self.score.value},
            "grouped": None
            if after is None or scored is None
            else {**after.to_dict(), "score": None if rejected else scored.value},
            "layers": 0 if refined is None else refined.grouped,
            "proven": None if refined is None else refined.proven,
            "save_nothing_of": [metric.value for metric in self.idle],
            "unsolved": self.unsolved,
        }


def check_groupable(
    costs: Costs, totals: Totals | None, network: Network, choices: Sequence[BitWidths]
) -> None:
    """Raise unless some layer of `network` can have channel groups, and everything prices them.

    Args:
        costs: what prices layers.
        totals: what prices whole policies, if anything does; asked for one with groups.
        network: the network.
        choices: bit-widths.

    Raises:
        QuantmeterError: if the device has no integer kernels, or no two choices differ in the width
            of their weights alone.
        UnsupportedChoiceError: if a metric has no price for channel groups.
    """
    if costs.target.narrow.half:
        raise QuantmeterError(
            f"channel groups have integer weights, and {costs.target.name} runs none: {_LEAVE_OUT}"
        )
    trial = _trial_groups(network, choices)
    if not trial:
        raise QuantmeterError(
            "channel groups need two choices that differ in the bits of their weights alone, such "
            f"as --choices w4a8,w8a8, and layers of two channels: choose so, or {_LEAVE_OUT}"
        )
    for metric, table in costs.tables(network, trial).items():
        if table.supported.any():
            continue
        name = costs.model(metric).name
        if metric is Metric.SIZE:
            raise UnsupportedChoiceError(
                f"no channel groups of these choices can be exported: choose integer weights of 2 "
                f"to 8 bits and activations of 8, add --no-export, or {_LEAVE_OUT}"
            )
        raise UnsupportedChoiceError(
            f"{name} does not price the {metric.value} of channel groups, only of one width a "
            f"layer: take a formula, such as {metric.value}=analytical:haq, or {_LEAVE_OUT}"
        )

    for metric, model in {} if totals is None else totals.models.items():
        if not _prices_whole(model, metric, network, trial):
            raise UnsupportedChoiceError(
                f"--totals {model.name} does not price the {metric.value} of channel groups: take "
                f"another backend, or {_LEAVE_OUT}"
            )


def group_channels(
    prepared: Prepared,
    found: Found,
    index: IndexArray,
    optimum: Solution,
    scorer: Scorer,
    progress: Progress = lambda _share, _what: None,
) -> Grouping:
    """Refine a policy by channel groups under the same budgets, and score both alike.

    Args:
        prepared: what the search stood on.
        found: the policy in figures.
        index: (L,) the policy.
        optimum: of the proxy loss, of one width a layer.
        scorer: of the search.
        progress: called with the share done and what is being done.
    """
    problem, bench = prepared.problem, prepared.bench
    score, idle = scorer.of(index), _idle(prepared)
    progress(0.0, "channel groups")
    widths = sorted({bits.weights for bits in problem.choices if not bits.is_float})
    costs = channel_costs(bench.simulation, widths, bench.part("search")[0], bench.seed)
    progress(0.5, "channel groups")
    try:
        refined = refine(problem, index, costs, partial(prepared.costs.tables, bench.network))
    except UnsolvedError as error:  # what the search found outlives that
        return Grouping(found, score, idle=idle, unsolved=str(error))
    if not refined.grouped:
        return Grouping(found, score, refined=refined, idle=idle)
    wider = replace(prepared, problem=refined.problem)
    try:
        grouped = scorer.like(wider).of(refined.index)
    except UnsupportedChoiceError as error:  # of --totals, at this layer alone
        return Grouping(found, score, idle=idle, unsolved=str(error))
    after = describe(wider, found.name, refined.index, optimum, found.log, grouped)
    progress(1.0, "channel groups")
    return Grouping(found, score, after, grouped, refined, idle)


def trained_from(
    grouping: Grouping | None, prepared: Prepared, result: SearchResult, scorer: Scorer
) -> tuple[Prepared, SearchResult, Scorer]:
    """Return what is trained: the policy with channel groups alone, if that was taken.

    Args:
        grouping: what became of channel groups; None if they were not asked for.
        prepared: what the search stood on.
        result: of the search.
        scorer: of the search.
    """
    if grouping is None or grouping.grouped_score is None or grouping.taken is None:
        return prepared, result, scorer
    refined, score = grouping.taken, grouping.grouped_score
    wider, row = replace(prepared, problem=refined.problem), refined.index
    costs = {metric: float(cost[0]) for metric, cost in wider.problem.costs(row[None]).items()}
    best = Trial(row, score.value, refined.losses[1], costs, "channel groups")
    return wider, SearchResult((best,), (best,)), scorer.like(wider, {row.tobytes(): score})


def grouping_lines(grouping: Grouping) -> Iterator[str]:
    """Say what became of channel groups, for people, in a line or two."""
    before, after, scored = grouping.before, grouping.after, grouping.grouped_score
    if after is None or scored is None or grouping.refined is None:
        why = grouping.unsolved or "none saves proxy loss within the budgets"
        yield f"channel groups: {why}; one width a layer stays"
    else:
        told = [
            f"accuracy {after.search_accuracy:.2%} on the search images "
            f"({before.search_accuracy:.2%} without)",
            f"proxy loss {after.loss:.4g} ({before.loss:.4g} without)",
        ]
        if scored.value not in (-math.inf, scored.accuracy):
            told.append(f"score {scored.value:.4g} ({grouping.score.value:.4g} without)")
        verdict = "taken, they score better"
        if grouping.taken is None:
            why = "above a budget as a whole" if scored.rejected else "they score no better"
            verdict = f"not taken, {why}"
        layers = f"{grouping.refined.grouped} of {len(before.policy.layers)} layers"
        yield f"channel groups in {layers}: {', '.join(told)}: {verdict}"
    for metric in grouping.idle:
        yield (
            f"channel groups save nothing of the {metric.value}, which by its table is the same at "
            "every width of weights"
        )


def _trial_groups(network: Network, choices: Sequence[BitWidths]) -> tuple[ChannelGroups, ...]:
    """Return a grouping for each two neighbouring widths and each number of channels."""
    ordered = sorted(
        {bits for bits in choices if not bits.is_float},
        key=lambda bits: (bits.activations, bits.weights),
    )
    pairs = [
        (narrow, wide)
        for narrow, wide in pairwise(ordered)
        if narrow.activations == wide.activations
    ]
    counts = {
        layer.out_channels for layer in network.layers if layer.groupable and layer.out_channels > 1
    }
    return tuple(
        ChannelGroups(wide.activations, {narrow.weights: [0], wide.weights: range(1, count)})
        for narrow, wide in pairs
        for count in sorted(counts)
    )


def _prices_whole(
    model: CostModel, metric: Metric, network: Network, trial: Sequence[ChannelGroups]
) -> bool:
    """Whether a model prices a policy with one grouping, if it prices the one without."""
    layer, bits = next(
        (layer, bits) for bits in trial for layer in network.layers if not misfit_of(layer, bits)
    )
    widest = Policy.uniform(network, BitWidths(bits.weight_widths[-1], bits.activations))
    grouped = Policy({**widest.layers, layer.name: bits})
    for policy, told in ((widest, True), (grouped, False)):
        try:
            model.total(network, PolicyBatch.of(network, [policy]), metric)
        except UnsupportedChoiceError:
            return told
        except FailedPolicyError:
            return True
    return True


def _idle(prepared: Prepared) -> tuple[Metric, ...]:
    """Return the budgeted metrics in which channel groups cost what the widest of them does."""
    network, choices = prepared.bench.network, prepared.problem.choices
    trial = _trial_groups(network, choices)
    widest = tuple(BitWidths(bits.weight_widths[-1], bits.activations) for bits in trial)
    found = []
    for metric in prepared.problem.budgets:
        groups = prepared.costs.model(metric).table(network, trial, metric)
        table = prepared.problem.tables[metric]
        column = [table.choices.index(bits) for bits in widest]
        at = groups.supported
        same = groups.unary.value[at] == table.unary.value[:, column][at]
        if same.all():
            found.append(metric)
    return tuple(found)
