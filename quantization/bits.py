"""Bit-widths of a layer, and the number formats that they imply for tensors."""

import enum
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, total_ordering

from quantization.errors import BitWidthError

INTEGER_WIDTHS = frozenset({2, 3, 4, 5, 6, 7, 8, 16})
_FLOAT32_BITS = 32
_TOKEN = re.compile(r"w(\d+)a(\d+)")


class Format(enum.IntEnum):
    """The number format of a tensor, ordered from the narrowest to the widest.

    The order matters: a glue operator runs in the widest format among its inputs.
    """

    INT2 = 2
    INT3 = 3
    INT4 = 4
    INT5 = 5
    INT6 = 6
    INT7 = 7
    INT8 = 8
    INT16 = 16
    FLOAT16 = 17
    FLOAT32 = 32

    @property
    def is_float(self) -> bool:
        """Whether values are floating-point numbers."""
        return self >= Format.FLOAT16

    @property
    def bits(self) -> int:
        """Bits of one element."""
        return 16 if self is Format.FLOAT16 else int(self)

    @property
    def label(self) -> str:
        """The name in lower case, such as ``int8``."""
        return self.name.lower()


Groups = tuple[tuple[int, tuple[int, ...]], ...]
"""Weight widths, narrowest first, each with its output channels in order."""


@total_ordering
@dataclass(frozen=True)
class BitWidths:
    """The bits of one layer: `weights` on 2^N levels, input activations on 2^M levels.

    Args:
        weights: bits of a weight, 2..8 or 16; 32 is float32.
        activations: bits of an input activation, 2..8 or 16; 32 is float32.
        half: half precision (`fp16`): both widths are 16 and both are floating point.

    Raises:
        BitWidthError: for any other value, and for float weights with integer activations.

    >>> BitWidths.parse("w4a8")
    BitWidths(weights=4, activations=8, half=False)
    >>> str(BitWidths.parse("fp16")), str(BitWidths(32, 32))
    ('fp16', 'w32a32')
    """

    weights: int
    activations: int
    half: bool = False

    def __post_init__(self) -> None:
        try:
            widths = (operator.index(self.weights), operator.index(self.activations))
        except TypeError:
            raise BitWidthError(f"bit-widths are whole numbers; {_EXPECTED}") from None
        object.__setattr__(self, "weights", widths[0])
        object.__setattr__(self, "activations", widths[1])
        if self.half:
            valid = widths == (16, 16)
        else:
            valid = all(w in INTEGER_WIDTHS or w == _FLOAT32_BITS for w in widths) and (
                self.weights != _FLOAT32_BITS or self.activations == _FLOAT32_BITS
            )
        if not valid:
            raise BitWidthError(
                f"no such bit-width: weights {self.weights}, activations {self.activations}"
                f"{', half precision' if self.half else ''}; {_EXPECTED}"
            )

    @classmethod
    def parse(cls, text: str) -> "BitWidths":
        """Read ``wNaM`` or ``fp16``.

        Raises:
            BitWidthError: if `text` is neither.
        """
        token = text.strip().lower()
        if token == "fp16":
            return cls(16, 16, half=True)
        match = _TOKEN.fullmatch(token)
        if match is None:
            raise BitWidthError(f"{text!r} is no bit-width; {_EXPECTED}")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return "fp16" if self.half else f"w{self.weights}a{self.activations}"

    def __lt__(self, other: "BitWidths") -> bool:
        return self.rank < other.rank

    @property
    def rank(self) -> tuple[int, int, bool, Groups]:
        """What bit-widths are sorted by: the widest weights, activations, half, channel groups."""
        return self.weights, self.activations, self.half, ()

    @property
    def weight_widths(self) -> tuple[int, ...]:
        """Every width that weights of the layer have, narrowest first."""
        return (self.weights,)

    @property
    def mean_weights(self) -> float:
        """Mean bits of a weight of the layer."""
        return self.weights

    @property
    def is_float(self) -> bool:
        """Whether the layer computes in floating point with unquantized weights."""
        return self.half or self.weights == _FLOAT32_BITS

    @cached_property
    def reads(self) -> Format:
        """The format in which the layer takes its input activations."""
        if self.half:
            return Format.FLOAT16
        return Format(self.activations)

    @cached_property
    def writes(self) -> Format:
        """The format in which the layer leaves its output.

        An integer layer requantizes its accumulator to 8 bits (16 if it reads 16); a consumer that
        reads fewer bits narrows the stored tensor itself, which is a conversion like any other.
        """
        if self.reads.is_float or self.reads is Format.INT16:
            return self.reads
        return Format.INT8


_EXPECTED = "write wNaM with N and M in 2..8 or 16, w32a32 for float32, or fp16"
FLOAT32 = BitWidths(_FLOAT32_BITS, _FLOAT32_BITS)
DEFAULT_CHOICES: tuple[BitWidths, ...] = tuple(
    BitWidths.parse(text) for text in ("w2a8", "w3a8", "w4a8", "w6a8", "w8a8", "w32a32")
)


def parse_choices(text: str) -> tuple[BitWidths, ...]:
    """Read a comma-separated list of bit-widths.

    Raises:
        BitWidthError: if an entry is no bit-width, occurs twice, or the list is empty.
    """
    choices = tuple(BitWidths.parse(part) for part in text.split(",") if part.strip())
    if not choices:
        raise BitWidthError("no choices given; write for example w4a8,w8a8,w32a32")
    repeated = sorted({str(c) for c in choices if choices.count(c) > 1})
    if repeated:
        raise BitWidthError(f"choices given twice: {', '.join(repeated)}")
    return choices


def formats_of(choices: Iterable[BitWidths]) -> tuple[Format, ...]:
    """Return every format that a tensor can take under `choices`, narrowest first.

    Float32 is always among them: network inputs and outputs have it.
    """
    found = {Format.FLOAT32}
    for choice in choices:
        found |= {choice.reads, choice.writes}
    return tuple(sorted(found))
