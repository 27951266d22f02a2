"""What a multiply-accumulate costs at each pair of widths, by each named rule."""

import math

import numpy as np
import pytest

from costmodels.errors import CostError
from costmodels.quantity import CoefficientUnit, Quantity, Source, SourceKind
from costmodels.width_rules import Rule, WidthRule
from quantization.bits import BitWidths, parse_choices

SAID = Source("a test", "here", SourceKind.PUBLISHED)
GUESSED = Source("a test", "here", SourceKind.ASSUMED)


def joules(picojoules: float, source: Source = SAID) -> Quantity:
    return Quantity(picojoules * 1e-12, CoefficientUnit.JOULES_PER_MAC, source)


def rate(macs_per_second: float) -> Quantity:
    return Quantity(macs_per_second, CoefficientUnit.MACS_PER_SECOND, SAID)


def cost(rule: WidthRule, text: str) -> float | None:
    """In picojoules."""
    reading = rule.at(BitWidths.parse(text))
    return None if reading is None else reading.value * 1e12


def test_the_product_rule_is_in_proportion_to_both_widths() -> None:
    rule = WidthRule(Rule.PRODUCT, {8: joules(0.64)})
    found = [cost(rule, text) for text in ("w8a8", "w4a8", "w8a4", "w3a5", "w16a16")]
    assert found == pytest.approx([0.64, 0.32, 0.32, 0.15, 2.56])


def test_fused_units_price_5_to_8_bits_alike_and_2_bits_as_a_sixteenth() -> None:
    rule = WidthRule(Rule.FUSED_POWERS_OF_TWO, {8: joules(0.64)})
    alike = [cost(rule, f"w{w}a{a}") for w in range(5, 9) for a in range(5, 9)]
    assert alike == pytest.approx([0.64] * 16)
    assert [cost(rule, t) for t in ("w2a2", "w2a8", "w3a3", "w4a4", "w16a8")] == pytest.approx(
        [0.04, 0.16, 0.16, 0.16, 1.28]
    )


def test_only_listed_widths_are_priced_and_the_wider_operand_decides() -> None:
    rule = WidthRule(Rule.LISTED, {4: joules(0.1), 8: joules(0.4)}, single=joules(4.6))
    found = [cost(rule, text) for text in ("w4a4", "w4a8", "w8a8", "w32a32")]
    assert found == pytest.approx([0.1, 0.4, 0.4, 4.6])
    assert [cost(rule, text) for text in ("w2a2", "w6a6", "w16a16", "fp16")] == [None] * 4


def test_narrow_widths_are_widened_to_the_next_listed_one() -> None:
    rule = WidthRule(Rule.NEXT_LISTED, {8: joules(0.4), 16: joules(1.6)})
    assert [cost(rule, t) for t in ("w2a2", "w7a8", "w8a16")] == pytest.approx([0.4, 0.4, 1.6])


def test_between_entries_the_logarithm_is_linear_and_the_reading_assumed() -> None:
    rule = WidthRule(Rule.INTERPOLATED, {4: joules(0.1), 8: joules(0.4)})
    reading = rule.at(BitWidths(6, 6))
    assert reading is not None
    assert reading.value == pytest.approx(math.sqrt(0.1 * 0.4) * 1e-12)
    assert reading.assumed
    assert cost(rule, "w2a2") is None
    assert cost(rule, "w16a16") is None


def test_a_rate_is_read_as_seconds_per_multiply_accumulate() -> None:
    rule = WidthRule(Rule.PRODUCT, {1: rate(6.4e12)})
    reading = rule.at(BitWidths(8, 8))
    assert reading is not None
    assert reading.value == pytest.approx(64 / 6.4e12)


def test_many_choices_are_read_at_once_with_what_is_assumed() -> None:
    rule = WidthRule(Rule.LISTED, {4: joules(0.1, GUESSED), 8: joules(0.4)})
    values, assumed = rule.read(parse_choices("w2a2,w4a4,w8a8"))
    np.testing.assert_allclose(values, [np.inf, 1e-13, 4e-13])
    assert assumed.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("rule", "integer", "message"),
    [
        (Rule.LISTED, {}, "no entry"),
        (Rule.LISTED, {4: joules(1), 8: rate(1e12)}, "different units"),
        (Rule.LISTED, {8: Quantity(2.0, CoefficientUnit.RATIO, SAID)}, "given in 1, expected J/M"),
        (Rule.PRODUCT, {4: joules(1), 8: joules(4)}, "takes one integer entry"),
        (Rule.LISTED, {4: joules(4), 8: joules(1)}, "a wider operand costs less"),
        (Rule.LISTED, {4: rate(1e12), 8: rate(2e12)}, "a wider operand costs less"),
    ],
)
def test_entries_that_do_not_fit_the_rule_cannot_be_built(
    rule: Rule, integer: dict[int, Quantity], message: str
) -> None:
    with pytest.raises(CostError, match=message):
        WidthRule(rule, integer)
