import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.units import UNITS, Metric, Unit
from quantization.errors import BudgetError
from search.budgets import BudgetRequest, parse_budget, parse_budgets


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("latency=0.7x", BudgetRequest(Metric.LATENCY, 0.7, relative=True)),
        ("latency=8ms", BudgetRequest(Metric.LATENCY, 0.008)),
        ("latency=8ms", BudgetRequest(Metric.LATENCY, 0.008, unit=Unit.SECONDS)),
        ("latency=20Mcycles", BudgetRequest(Metric.LATENCY, 2e7, unit=Unit.CYCLES)),
        ("latency=20,000,000 cycles", BudgetRequest(Metric.LATENCY, 2e7, unit=Unit.CYCLES)),
        ("size=2MB", BudgetRequest(Metric.SIZE, 2e6)),
        ("size = 2 MiB", BudgetRequest(Metric.SIZE, 2.0**21)),
        ("energy=2mJ", BudgetRequest(Metric.ENERGY, 0.002)),
        ("Energy=1e-3x", BudgetRequest(Metric.ENERGY, 0.001, relative=True)),
    ],
)
def test_budgets_are_read_as_people_write_them(text, expected):
    assert parse_budget(text) == expected


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("latency", "latency=0.7x"),
        ("latency=", "latency=0.7x"),
        ("latncy=8ms", "did you mean 'latency'"),
        ("latency=8", "8ms"),
        ("latency=8MB", "8ms"),
        ("energy=8Mcycles", "2mJ"),
        ("size=2mB", "4MB"),
        ("latency=-1x", "8ms"),
        ("latency=0x", "not positive"),
        ("latency=nanx", "8ms"),
        ("latency=1e999s", "8ms"),
        ("latency=1e999x", "not positive and finite"),
        ("size=0.0MB", "4MB"),
    ],
)
def test_what_is_no_budget_is_one_clear_line(text, hint):
    with pytest.raises(BudgetError) as caught:
        parse_budget(text)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


@given(
    st.sampled_from(Metric),
    st.floats(min_value=1e-300, max_value=1e300, allow_subnormal=False),
    st.data(),
)
def test_a_printed_budget_is_read_back(metric, value, data):
    unit = data.draw(st.sampled_from([None, *sorted(UNITS[metric])]))
    budget = BudgetRequest(metric, value, relative=unit is None, unit=unit)
    assert budget.unit is unit
    assert parse_budget(str(budget)) == budget


def test_a_budget_has_a_unit_of_its_metric_or_is_a_fraction():
    with pytest.raises(BudgetError, match="energy is not measured in cycles"):
        BudgetRequest(Metric.ENERGY, 1.0, unit=Unit.CYCLES)
    with pytest.raises(BudgetError, match="a fraction of the float model is not in s"):
        BudgetRequest(Metric.LATENCY, 0.7, relative=True, unit=Unit.SECONDS)


@given(st.floats(1e-3, 1e3), st.floats(1e-9, 1e9))
def test_a_fraction_is_of_the_float_model_and_a_quantity_is_not(value, total):
    relative = BudgetRequest(Metric.LATENCY, value, relative=True)
    assert relative.resolve(total) == value * total
    assert BudgetRequest(Metric.LATENCY, value).resolve(total) == value


def test_a_fraction_of_nothing_is_an_error():
    with pytest.raises(BudgetError, match="give the budget with a unit"):
        parse_budget("latency=0.7x").resolve(0.0)


def test_a_metric_has_one_budget():
    assert len(parse_budgets(["latency=0.7x", "size=2MB"])) == 2
    with pytest.raises(BudgetError, match="two budgets for size"):
        parse_budgets(["size=1MB", "latency=0.7x", "size=0.5x"])
