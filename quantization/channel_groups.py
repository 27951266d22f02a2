"""Output channels of a layer in groups, each with a weight width of its own."""

import operator
import re
from collections.abc import Iterable, Mapping
from functools import cached_property

from quantization.bits import BitWidths, Groups
from quantization.errors import BitWidthError

_GROUP = re.compile(r"(w\d+a\d+)\[([^\[\]]*)\]")
_SPAN = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")
IN_FILE = 'channel groups are written as {"w2a8": "0-11,13", "w4a8": "12,14-15"}'
"""What is said of channel groups in a policy file that are none."""

_IN_TEXT = "channel groups are written as w2a8[0-11,13]+w4a8[12,14-15]"


class ChannelGroups(BitWidths):
    """Bit-widths of a layer whose output channels have weights of different widths.

    All groups read the same input activations. There is no one `weights`: what takes one width for
    a layer gets an error, not one of them.

    Args:
        activations: bits of an input activation, as of `BitWidths`.
        channels: weight bits to the output channels that have them; at least two widths, every
            channel from 0 on exactly once.

    Attributes:
        groups: the same, narrowest first.

    Raises:
        BitWidthError: for a width that is none or of floats, or channels that are missing or twice.

    >>> mixed = ChannelGroups(8, {4: [0, 2, 3], 2: [1]})
    >>> str(mixed), mixed.channel_count, mixed.mean_weights
    ('w2a8[1]+w4a8[0,2-3]', 4, 3.5)
    >>> parse_bits("w2a8[1]+w4a8[0,2-3]") == mixed
    True
    """

    groups: Groups

    def __init__(self, activations: int, channels: Mapping[int, Iterable[int]]) -> None:
        try:
            listed = {
                operator.index(width): tuple(sorted(map(operator.index, each)))
                for width, each in channels.items()
            }
        except TypeError:
            raise BitWidthError("widths and channels of groups are whole numbers") from None
        every = sorted(channel for each in listed.values() for channel in each)
        if len(listed) < 2 or not all(listed.values()):
            raise BitWidthError(
                "channel groups are at least two widths with a channel each; a single width is "
                'written as "w4a8"'
            )
        if any(BitWidths(width, activations).is_float for width in listed):
            raise BitWidthError("channel groups have integer weights; a layer is float as a whole")
        if every != list(range(len(every))):
            place, odd = next((i, c) for i, c in enumerate(every) if c != i)
            what = f"channel {place} is in none" if odd > place else f"channel {odd} is there twice"
            raise BitWidthError(
                f"channel groups hold every channel from 0 on once, and {what}; mend the channels"
            )
        object.__setattr__(self, "activations", operator.index(activations))
        object.__setattr__(self, "half", False)
        object.__setattr__(self, "groups", tuple(sorted(listed.items())))

    @property
    def weights(self) -> int:
        """There is none.

        Raises:
            BitWidthError: always.
        """
        widths = " and ".join(map(str, self.weight_widths))
        raise BitWidthError(
            f"one weight width a layer is expected here, and a layer of {self.channel_count} "
            f"channels has channel groups of {widths} bits; give that layer one width, such as "
            f'"w{self.weight_widths[-1]}a{self.activations}"'
        )

    @property
    def rank(self) -> tuple[int, int, bool, Groups]:
        """What bit-widths are sorted by."""
        return self.groups[-1][0], self.activations, False, self.groups

    @property
    def weight_widths(self) -> tuple[int, ...]:
        """Every width that weights of the layer have, narrowest first."""
        return tuple(width for width, _ in self.groups)

    @property
    def is_float(self) -> bool:
        """Never: weights are integers."""
        return False

    @cached_property
    def channel_count(self) -> int:
        """Output channels of all groups."""
        return sum(len(channels) for _, channels in self.groups)

    @property
    def mean_weights(self) -> float:
        """Mean bits of a weight: output channels of a layer have equally many weights."""
        return sum(width * len(each) for width, each in self.groups) / self.channel_count

    @property
    def texts(self) -> dict[str, str]:
        """Bit-widths of each group to its channels, such as ``0-11,13``."""
        return {f"w{width}a{self.activations}": _spans(each) for width, each in self.groups}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ChannelGroups):
            return NotImplemented
        return (self.activations, self.groups) == (other.activations, other.groups)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.activations, self.groups))

    def __str__(self) -> str:
        return "+".join(f"{bits}[{channels}]" for bits, channels in self.texts.items())

    def __repr__(self) -> str:
        return f"ChannelGroups({self.activations}, {dict(self.groups)})"


def parse_groups(texts: Mapping[str, str]) -> ChannelGroups:
    """Read channel groups from what `ChannelGroups.texts` returns.

    Raises:
        BitWidthError: if a text is none, or the groups differ in their activations; says how groups
            are written in a policy file.
    """
    return _of_spans(texts, IN_FILE)


def _of_spans(texts: Mapping[str, object], expected: str) -> ChannelGroups:
    """Read channel groups; `expected` says how they are written."""
    listed = {bits: each for bits, each in texts.items() if isinstance(each, str)}
    if len(listed) != len(texts):
        raise BitWidthError(expected)
    found = {BitWidths.parse(bits): _parse_spans(each, expected) for bits, each in listed.items()}
    activations = {bits.activations for bits in found}
    if len(activations) > 1:
        raise BitWidthError("channel groups of a layer read the same activations, at one width")
    if len(found) != len(texts) or any(bits.is_float for bits in found):
        raise BitWidthError(expected)
    widths = {bits.weights: each for bits, each in found.items()}
    return ChannelGroups(activations.pop() if activations else 8, widths)


def parse_bits(text: str) -> BitWidths:
    """Read bit-widths, or channel groups as they are printed.

    Raises:
        BitWidthError: if `text` is neither.
    """
    if "[" not in text:
        return BitWidths.parse(text)
    matches = [_GROUP.fullmatch(part.strip()) for part in text.split("+")]
    found = {match[1]: match[2] for match in matches if match is not None}
    if len(found) != len(matches):
        raise BitWidthError(f"{text!r}: {_IN_TEXT}")
    return _of_spans(found, _IN_TEXT)


def brief(bits: BitWidths) -> str:
    """Return bit-widths as a table has room for them: of channel groups, how many channels.

    >>> brief(ChannelGroups(8, {4: [0, 2, 3], 2: [1]})), brief(BitWidths(4, 8))
    ('1 w2a8 + 3 w4a8', 'w4a8')
    """
    if not isinstance(bits, ChannelGroups):
        return str(bits)
    return " + ".join(f"{len(each)} w{width}a{bits.activations}" for width, each in bits.groups)


def _parse_spans(text: str, expected: str) -> list[int]:
    """Read ``0-11,13``."""
    channels: list[int] = []
    for part in text.split(","):
        match = _SPAN.fullmatch(part.strip())
        if match is None:
            raise BitWidthError(f"{text!r} lists no channels; {expected}")
        channels += range(int(match[1]), int(match[2] or match[1]) + 1)
    return channels


def _spans(channels: Iterable[int]) -> str:
    """Write channels in order as ``0-11,13``."""
    spans: list[list[int]] = []
    for channel in channels:
        if spans and channel == spans[-1][1] + 1:
            spans[-1][1] = channel
        else:
            spans.append([channel, channel])
    return ",".join(f"{a}-{b}" if a != b else str(a) for a, b in spans)
