"""Budgets as people write them: ``latency=0.7x``, ``latency=20Mcycles``, ``size=2MB``."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from costmodels.units import SI_UNIT, UNITS, Metric, Unit, parse_quantity
from quantization.errors import BudgetError, did_you_mean

_FRACTION = re.compile(r"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*[xX]")
_EXPECTED = "write METRIC=VALUE, such as latency=0.7x, size=2MB or energy=2mJ"


@dataclass(frozen=True)
class BudgetRequest:
    """What one metric may cost at most.

    Args:
        metric: what is limited.
        value: in `unit`; a fraction of the float model if `relative`.
        relative: whether `value` is a fraction of the float model.
        unit: of the value, by default the SI unit of the metric; None if `relative`.

    Raises:
        BudgetError: if the value is not positive and finite, or the unit is none of the metric.

    >>> BudgetRequest(Metric.LATENCY, 0.5, relative=True).resolve(0.010)
    0.005
    """

    metric: Metric
    value: float
    relative: bool = False
    unit: Unit | None = None

    def __post_init__(self) -> None:
        if self.relative and self.unit is not None:
            raise BudgetError(f"a fraction of the float model is not in {self.unit.value}")
        if not self.relative and self.unit is None:
            object.__setattr__(self, "unit", SI_UNIT[self.metric])
        if self.unit is not None and self.unit not in UNITS[self.metric]:
            raise BudgetError(f"{self.metric.value} is not measured in {self.unit.value}")
        if not (math.isfinite(self.value) and self.value > 0):
            raise BudgetError(f"{self} is no budget: it is not positive and finite; {_EXPECTED}")

    def __str__(self) -> str:
        unit = "x" if self.unit is None else self.unit.value
        return f"{self.metric.value}={repr(self.value).removesuffix('.0')}{unit}"

    def resolve(self, float_total: float) -> float:
        """Return the limit in the unit of the table.

        Args:
            float_total: what the float model costs, in the unit of the table; not looked at by an
                absolute budget.

        Raises:
            BudgetError: if the budget is relative and the float model's cost is not positive.
        """
        if not self.relative:
            return self.value
        if not (math.isfinite(float_total) and float_total > 0):
            raise BudgetError(
                f"{self.metric.value}={self.value:g}x needs the cost of the float model, which is "
                f"{float_total}; give the budget with a unit instead"
            )
        return self.value * float_total


def parse_budget(text: str) -> BudgetRequest:
    """Read ``METRIC=VALUE``; the value has a unit, or is a fraction of the float model (``0.7x``).

    Raises:
        BudgetError: if the text is no budget.

    >>> parse_budget("size=2MB").value
    2000000.0
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not value:
        raise BudgetError(f"{text!r} is no budget; {_EXPECTED}")
    try:
        metric = Metric(name.lower())
    except ValueError:
        known = [m.value for m in Metric]
        raise BudgetError(
            f"no metric {name!r}{did_you_mean(name, known)}; budgets are on {', '.join(known)}"
        ) from None
    if fraction := _FRACTION.fullmatch(value):
        return BudgetRequest(metric, float(fraction[1]), relative=True)
    quantity, unit = parse_quantity(value, metric)
    return BudgetRequest(metric, quantity, unit=unit)


def parse_budgets(texts: Iterable[str]) -> tuple[BudgetRequest, ...]:
    """Read several budgets, at most one for each metric.

    Raises:
        BudgetError: if a text is no budget, or a metric has two.
    """
    budgets = tuple(parse_budget(text) for text in texts)
    metrics = [budget.metric for budget in budgets]
    if repeated := sorted({m.value for m in metrics if metrics.count(m) > 1}):
        raise BudgetError(f"two budgets for {', '.join(repeated)}; give one for each metric")
    return budgets
