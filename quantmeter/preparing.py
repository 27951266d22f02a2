"""What every search stands on: priced choices, budgets, sensitivities and an accuracy oracle."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from costmodels.errors import UnsupportedChoiceError
from costmodels.pricing import uniform_totals
from costmodels.table import CostTable
from costmodels.units import EXAMPLES, Metric, format_quantity
from quantization.bits import BitWidths
from quantization.errors import BudgetError, DataError
from quantization.network import Network
from quantization.policy import IndexArray, Policy, PolicyBatch
from quantization.ties import resolve_ties
from quantmeter.costs import Costs
from quantmeter.workbench import Workbench
from search.budgets import BudgetRequest
from search.exact import solve
from search.oracle import PostTrainingOracle
from search.problem import Problem
from search.sensitivity import (
    SENSITIVITIES,
    Sensitivity,
    Setting,
    as_loss,
    check_sensitivity,
    measure,
)

_TOLD = ("kl", "accuracy-drop")
"""The sensitivities that runs tell: those of `search.sensitivity.Sensitivity`, in order."""

Progress = Callable[[float, str], None]


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything that a search needs, made once for any number of methods.

    Args:
        bench: network and data.
        costs: what prices which metric.
        problem: choices, tables, budgets and proxy loss: the sum of the layers' sensitivities.
        sensitivity: of each layer at each choice; None where only the proxy's was measured.
        proxy: name of the sensitivity that the proxy loss sums up.
        oracle: accuracy on the search part.
    """

    bench: Workbench
    costs: Costs
    problem: Problem
    sensitivity: Sensitivity | None
    oracle: PostTrainingOracle
    proxy: str = SENSITIVITIES[0]

    def batch(self, index: IndexArray) -> PolicyBatch:
        """Return policies (P, L) of the problem's choices as a batch."""
        return PolicyBatch(self.bench.network.layer_names, self.problem.choices, index)

    def policy(self, index: IndexArray) -> Policy:
        """Return one policy, (L,); its options say how ranges were chosen, if not by default."""
        return replace(self.batch(index[None])[0], options=self.bench.policy_options)


def prepare(
    bench: Workbench,
    costs: Costs,
    budgets: Sequence[BudgetRequest],
    choices: Sequence[BitWidths],
    *,
    ties: Sequence[Sequence[str]] = (),
    sensitivity: str = SENSITIVITIES[0],
    told: bool = True,
    kept: Path | None = None,
    progress: Progress = lambda _share, _what: None,
) -> Prepared:
    """Price the choices, resolve the budgets and measure sensitivities.

    Args:
        bench: network and data.
        costs: what prices which metric.
        budgets: at most one per metric.
        choices: bit-widths; float32 is what relative budgets refer to and need not be among them.
        ties: groups of layers that must get equal bits, beside the network's own
            (`quantization.ties.resolve_ties`).
        sensitivity: name of the one that the proxy loss sums up, see `search.sensitivity`.
        told: whether those that every run tells are measured too; each runs every layer at every
            choice.
        kept: folder of sensitivities: what was measured on the same setting is not measured again.
        progress: called with the share done and what is being done.

    Raises:
        BackendError: if nothing prices a budgeted metric.
        BudgetError: if a budget cannot be met; says what the minimum reachable is.
        DataError: without data, or if the network does not classify.
        QuantmeterError: if there is no such sensitivity.
    """
    check_sensitivity(sensitivity)
    network = bench.network
    if not bench.classifies:
        raise DataError("a search needs a network whose output is (N, classes)")
    images, labels = bench.part("search")
    for budget in budgets:
        costs.model(budget.metric)
    tables = costs.tables(network, tuple(choices))
    limits = {b.metric: _limit(b, tables[b.metric], network, costs) for b in budgets}
    shape = (len(network.layers), len(choices))
    tied = network.tied(resolve_ties(network, ties))
    try:  # fails early, with the minimum reachable, if the budgets cannot be met
        solve(Problem(tied, tuple(choices), tables, limits, np.zeros(shape)))
    except (BudgetError, UnsupportedChoiceError) as error:
        raise type(error)(f"{error}{_not_exported(tables)}") from None
    setting = Setting(bench.simulation, choices, images, labels, bench.seed, progress)
    names = (*_TOLD, sensitivity) if told else (sensitivity,)
    measured = measure(dict.fromkeys(names), setting, kept)
    problem = Problem(tied, tuple(choices), tables, limits, as_loss(measured[sensitivity]))
    oracle = PostTrainingOracle(bench.simulation, images, labels)
    beside = Sensitivity(*(measured[name] for name in _TOLD)) if told else None
    return Prepared(bench, costs, problem, beside, oracle, sensitivity)


def _limit(budget: BudgetRequest, table: CostTable, network: Network, costs: Costs) -> float:
    """Return the most that a metric may cost, in the unit of its table.

    Raises:
        BudgetError: if the budget is in another unit, or a fraction of what the table does not
            price; says what the table prices instead.
    """
    if not budget.relative:
        if budget.unit is table.unit:
            return budget.value
        problem = f"cannot be compared with a table in {table.unit.value}"
    else:
        reference = costs.float_reference(network, budget.metric)
        if reference is not None:
            return budget.resolve(reference)
        problem = "is a fraction of the float model, which its table does not price"
    example = f"{budget.metric.value}={EXAMPLES[table.unit]}"
    raise BudgetError(
        f"{budget} {problem}; write for example {example}{_dearest_uniform(table, network)}"
    )


def _not_exported(tables: Mapping[Metric, CostTable]) -> str:
    """Say which choices are masked only because they cannot be exported; "" if none."""
    size = tables.get(Metric.SIZE)
    others = [table for metric, table in tables.items() if metric is not Metric.SIZE]
    if size is None or not others:
        return ""
    priced = np.logical_and.reduce([table.supported for table in others])
    masked = priced.any(0) & ~size.supported.any(0)
    names = [str(bits) for bits, only in zip(size.choices, masked, strict=True) if only]
    if not names:
        return ""
    return f"; {', '.join(names)} cannot be exported here: --no-export allows what is for elsewhere"


def _dearest_uniform(table: CostTable, network: Network) -> str:
    """Say what the dearest uniform policy costs; "" where the table supports none."""
    totals = uniform_totals(table, network)
    if not np.isfinite(totals).any():
        return ""
    dearest = int(np.where(np.isfinite(totals), totals, -np.inf).argmax())
    cost = format_quantity(float(totals[dearest]), table.unit)
    return f" (uniform {table.choices[dearest]} costs {cost})"
