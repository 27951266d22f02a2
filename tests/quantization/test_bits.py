"""Bit-widths: what can be written, and which formats follow."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.bits import (
    DEFAULT_CHOICES,
    FLOAT32,
    INTEGER_WIDTHS,
    BitWidths,
    Format,
    formats_of,
    parse_choices,
)
from quantization.errors import BitWidthError

EVERY = [
    BitWidths(w, a)
    for w, a in product([*sorted(INTEGER_WIDTHS), 32], repeat=2)
    if w != 32 or a == 32
] + [BitWidths(16, 16, half=True)]
ANY = st.sampled_from(EVERY)


@given(ANY)
def test_what_is_printed_reads_back(bits: BitWidths) -> None:
    assert BitWidths.parse(str(bits)) == bits
    assert BitWidths.parse(f" {str(bits).upper()} ") == bits


def test_no_two_bit_widths_are_printed_alike() -> None:
    assert len({str(bits) for bits in EVERY}) == len(EVERY)


@pytest.mark.parametrize(
    "text", ["", "8", "w8", "a8", "w8a", "w1a8", "w9a9", "w8a1", "w32a8", "fp32", "w8a8x", "w-8a8"]
)
def test_what_is_no_bit_width_is_an_error_that_says_what_is(text: str) -> None:
    with pytest.raises(BitWidthError, match="write wNaM"):
        BitWidths.parse(text)


@pytest.mark.parametrize("widths", [(0, 8), (8, 0), (32, 8), (12, 12), (8.5, 8), ("8", 8)])
def test_invalid_widths_cannot_be_built(widths: tuple[Any, Any]) -> None:
    with pytest.raises(BitWidthError):
        BitWidths(*widths)


def test_numpy_integers_become_plain_ones_and_floats_are_refused() -> None:
    bits = BitWidths(np.int64(4), np.uint8(8))  # type: ignore[arg-type]
    assert type(bits.weights) is int
    assert bits == BitWidths(4, 8)
    with pytest.raises(BitWidthError, match="whole numbers"):
        BitWidths(8.0, 8.0)  # type: ignore[arg-type]


def test_half_precision_is_not_int16() -> None:
    half, integer = BitWidths.parse("fp16"), BitWidths.parse("w16a16")
    assert half != integer
    assert (half.is_float, integer.is_float) == (True, False)
    assert (half.reads, integer.reads) == (Format.FLOAT16, Format.INT16)
    assert Format.FLOAT16.bits == Format.INT16.bits == 16


@pytest.mark.parametrize(
    ("text", "reads", "writes", "is_float"),
    [
        ("w4a4", Format.INT4, Format.INT8, False),
        ("w2a8", Format.INT8, Format.INT8, False),
        ("w8a16", Format.INT16, Format.INT16, False),
        ("w4a32", Format.FLOAT32, Format.FLOAT32, False),
        ("fp16", Format.FLOAT16, Format.FLOAT16, True),
        ("w32a32", Format.FLOAT32, Format.FLOAT32, True),
    ],
)
def test_the_formats_that_a_layer_reads_and_writes(
    text: str, reads: Format, writes: Format, is_float: bool
) -> None:
    bits = BitWidths.parse(text)
    assert (bits.reads, bits.writes, bits.is_float) == (reads, writes, is_float)


@given(st.lists(ANY, max_size=6))
def test_the_formats_of_choices_rise_and_hold_float32_and_all_that_is_read_or_written(
    choices: list[BitWidths],
) -> None:
    known = formats_of(choices)
    assert list(known) == sorted(set(known))
    assert known[-1] is Format.FLOAT32
    assert {c.reads for c in choices} | {c.writes for c in choices} <= set(known)


@given(st.lists(ANY, min_size=1, max_size=6, unique=True))
def test_a_list_of_choices_reads_back_in_its_order(choices: list[BitWidths]) -> None:
    assert parse_choices(",".join(map(str, choices))) == tuple(choices)


def test_the_default_choices_are_those_that_onnx_runtime_executes() -> None:
    assert parse_choices("w2a8,w3a8,w4a8,w6a8,w8a8,w32a32") == DEFAULT_CHOICES
    assert FLOAT32 in DEFAULT_CHOICES


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no choices"), (" , ", "no choices"), ("w8a8,w8a8", "twice: w8a8"), ("w8a8,x", "'x'")],
)
def test_a_list_that_is_no_list_of_choices_is_an_error(text: str, message: str) -> None:
    with pytest.raises(BitWidthError, match=message):
        parse_choices(text)
