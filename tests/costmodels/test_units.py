"""Quantities are read and printed in one place, with units."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from costmodels.errors import CostError
from costmodels.units import (
    EXAMPLES,
    METRIC_OF,
    SI_UNIT,
    UNITS,
    Metric,
    Unit,
    format_bound,
    format_quantity,
    parse_coefficient_unit,
    parse_duration,
    parse_quantity,
    parse_unit,
)
from quantization.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "metric", "value"),
    [
        ("8ms", Metric.LATENCY, 8e-3),
        ("8 ms", Metric.LATENCY, 8e-3),
        (" 1.5us ", Metric.LATENCY, 1.5e-6),
        ("1.5µs", Metric.LATENCY, 1.5e-6),
        ("1.5\N{GREEK SMALL LETTER MU}s", Metric.LATENCY, 1.5e-6),
        ("2e-3s", Metric.LATENCY, 2e-3),
        ("2mJ", Metric.ENERGY, 2e-3),
        ("640pJ", Metric.ENERGY, 640e-12),
        ("4MB", Metric.SIZE, 4e6),
        ("4MiB", Metric.SIZE, 4 * 2**20),
        ("75947B", Metric.SIZE, 75947),
        (".5kB", Metric.SIZE, 500),
    ],
)
def test_a_quantity_is_read_in_si(text: str, metric: Metric, value: float) -> None:
    found, unit = parse_quantity(text, metric)
    assert found == pytest.approx(value, rel=1e-12)
    assert unit is SI_UNIT[metric]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("20000000cycles", 2e7),
        ("20 Mcycles", 2e7),
        ("1.5kcycles", 1500),
        ("2e7 cycles", 2e7),
        ("39,624,933 cycles", 39_624_933),
        ("39,624,933cycles", 39_624_933),
    ],
)
def test_cycles_are_read_as_people_and_tools_write_them(text: str, value: float) -> None:
    assert parse_quantity(text, Metric.LATENCY) == (value, Unit.CYCLES)


@pytest.mark.parametrize(
    ("text", "metric"),
    [
        ("8cycles", Metric.ENERGY),
        ("8mcycles", Metric.LATENCY),  # milli is never meant; mega is
        ("8cycle", Metric.LATENCY),
        ("1,5ms", Metric.LATENCY),
        ("1,500ms", Metric.LATENCY),  # one and a half, or 1500?
        ("1,50 cycles", Metric.LATENCY),
        ("8", Metric.LATENCY),
        ("8mJ", Metric.LATENCY),
        ("8ms", Metric.ENERGY),
        ("8MJ", Metric.ENERGY),  # mega is never meant; milli is
        ("-8ms", Metric.LATENCY),
        ("0ms", Metric.LATENCY),
        ("8Ms", Metric.LATENCY),
        ("4mB", Metric.SIZE),
        ("4Mb", Metric.SIZE),
        ("nans", Metric.LATENCY),
        ("9e999s", Metric.LATENCY),
        ("", Metric.SIZE),
    ],
)
def test_what_is_no_quantity_of_the_metric_is_an_error_with_an_example(
    text: str, metric: Metric
) -> None:
    with pytest.raises(BudgetError, match="write a positive number with unit"):
        parse_quantity(text, metric)


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60), ("5m", 300), ("5min", 300), ("1h", 3600)]
)
def test_a_duration_is_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["60", "s", "-1s", "0s", "1d", "9" * 400 + "s"])
def test_what_is_no_duration_is_an_error(text: str) -> None:
    with pytest.raises(BudgetError, match="no duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0, Unit.SECONDS, "0.00 s"),
        (0.00999996, Unit.SECONDS, "10.0 ms"),
        (0.09996, Unit.SECONDS, "100 ms"),
        (0.9999, Unit.SECONDS, "1.00 s"),
        (999, Unit.BYTES, "999 B"),
        (999_960, Unit.BYTES, "1.00 MB"),
        (-1.5e-6, Unit.SECONDS, "-1.50 µs"),
        (4.6e-12, Unit.JOULES, "4.60 pJ"),
        (1234567, Unit.CYCLES, "1,234,567 cycles"),
    ],
)
def test_a_value_is_printed_with_three_significant_digits(
    value: float, unit: Unit, text: str
) -> None:
    assert format_quantity(value, unit) == text


@given(st.floats(1e-12, 999.0), st.sampled_from([Metric.LATENCY, Metric.ENERGY]))
@example(0.9995, Metric.LATENCY)
@example(9.995e-4, Metric.LATENCY)
@example(9.996e-9, Metric.ENERGY)
def test_what_was_printed_reads_back_to_three_digits(value: float, metric: Metric) -> None:
    printed = format_quantity(value, SI_UNIT[metric])
    number = printed.split()[0]
    assert len(number.replace(".", "").lstrip("0")) <= 3
    assert math.isclose(parse_quantity(printed, metric)[0], value, rel_tol=0.0051)


@given(st.integers(1, 10**12))
def test_printed_bytes_read_back_to_three_digits(size: int) -> None:
    printed = format_quantity(size, Unit.BYTES)
    assert math.isclose(parse_quantity(printed, Metric.SIZE)[0], size, rel_tol=0.0051)


@given(
    st.floats(1e-12, 1e12),
    st.sampled_from(list(Unit)),
    st.integers(1, 17),
)
@example(999_999.5, Unit.BYTES, 4)
@example(0.00099996, Unit.SECONDS, 4)
@example(239_093.0, Unit.BYTES, 17)
@example(39_624_933.0, Unit.CYCLES, 3)
def test_a_bound_reads_back_on_its_side_and_within_its_digits(
    value: float, unit: Unit, digits: int
) -> None:
    read = [
        parse_quantity(format_bound(value, unit, digits=digits, upwards=up), METRIC_OF[unit])
        for up in (False, True)
    ]
    assert {found for _, found in read} == {unit}
    low, high = (bound for bound, _ in read)
    rounding = 1e-15
    assert low <= value * (1 + rounding)
    assert high >= value * (1 - rounding)
    assert high - low <= value * (10.0 ** (1 - digits) + 2 * rounding)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (239_093, Unit.BYTES, "239.1 kB"),
        (1000, Unit.BYTES, "1 kB"),
        (999_990, Unit.BYTES, "1 MB"),
        (0.0015300001, Unit.SECONDS, "1.531 ms"),
        (1_234_567, Unit.CYCLES, "1,235,000 cycles"),
    ],
)
def test_a_bound_is_printed_rounded_upwards(value: float, unit: Unit, text: str) -> None:
    assert format_bound(value, unit, digits=4, upwards=True) == text


def test_every_metric_has_its_si_unit_among_its_units() -> None:
    assert set(SI_UNIT) == set(UNITS) == set(Metric)
    assert all(SI_UNIT[metric] in UNITS[metric] for metric in Metric)


def test_every_unit_is_of_one_metric_and_has_an_example_that_is_read() -> None:
    assert sum(len(units) for units in UNITS.values()) == len(METRIC_OF) == len(Unit)
    assert {u: parse_quantity(text, METRIC_OF[u])[1] for u, text in EXAMPLES.items()} == {
        unit: unit for unit in Unit
    }


@pytest.mark.parametrize(
    ("text", "unit", "factor"),
    [
        ("s", Unit.SECONDS, 1.0),
        (" ms ", Unit.SECONDS, 1e-3),
        ("µs", Unit.SECONDS, 1e-6),
        ("\N{GREEK SMALL LETTER MU}s", Unit.SECONDS, 1e-6),
        ("pJ", Unit.JOULES, 1e-12),
        ("cycles", Unit.CYCLES, 1.0),
        ("Gcycles", Unit.CYCLES, 1e9),
        ("KiB", Unit.BYTES, 1024.0),
    ],
)
def test_a_unit_is_read_with_its_prefix(text: str, unit: Unit, factor: float) -> None:
    assert parse_unit(text) == (unit, factor)


@pytest.mark.parametrize("text", ["", "m", "M", "S", "Ms", "j", "mcycles", "cycle", "8ms", "x"])
def test_what_is_no_unit_is_an_error_with_examples(text: str) -> None:
    with pytest.raises(CostError, match="is no unit; write for example cycles, s, ms"):
        parse_unit(text)


@pytest.mark.parametrize(
    ("text", "unit", "factor"),
    [
        ("pJ/MAC", "J/MAC", 1e-12),
        ("pJ/OP", "J/MAC", 2e-12),
        ("pJ/B", "J/B", 1e-12),
        ("pJ/bit", "J/bit", 1e-12),
        ("pJ/word32", "J/bit", 1e-12 / 32),
        ("pJ/word64", "J/bit", 1e-12 / 64),
        ("GB/s", "bit/s", 8e9),
        ("Gbit/s", "bit/s", 1e9),
        ("GiB/s", "bit/s", 8 * 2**30),
        ("TOP/s", "MAC/s", 5e11),
        ("GMAC/s", "MAC/s", 1e9),
        ("KiB", "bit", 8192),
        ("Mbit", "bit", 1e6),
        ("ns/B", "s/B", 1e-9),
        ("s/MAC", "s/MAC", 1),
        ("1", "1", 1),
    ],
)
def test_units_of_coefficients_as_sources_print_them(text: str, unit: str, factor: float) -> None:
    found = parse_coefficient_unit(text)
    assert found[0] == unit
    assert found[1] == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(
    "text", ["", "TOPS", "pj/MAC", "pJ/word", "GB/", "/s", "GB/ms", "xB", "mB", "2", "J/MAC/s"]
)
def test_what_is_no_unit_of_a_coefficient(text: str) -> None:
    with pytest.raises(CostError, match="is no unit of a coefficient"):
        parse_coefficient_unit(text)
