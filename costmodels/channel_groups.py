"""Layers with channel groups priced by their parts: each group is a layer of its own.

Groups run one after the other. Multiply-accumulates, weights and outputs are split among them, to
the last one. Inputs are not: a group reads all that its channels need, as if nothing stayed in a
buffer from the group before, which is an upper bound. A depthwise channel needs its own input only.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from costmodels.cells import BoolArray, FloatArray
from quantization.bits import BitWidths
from quantization.channel_groups import ChannelGroups
from quantization.deployment import misfit_of
from quantization.network import Layer

Price = Callable[[Sequence[Layer], Sequence[BitWidths]], tuple[FloatArray, BoolArray]]
"""Prices L layers at K widths: (L, K) costs, infinite where none; (K,) whether any is assumed."""


def parts(layer: Layer, bits: ChannelGroups) -> tuple[tuple[BitWidths, Layer], ...]:
    """Return what the groups of a layer are made of: layers, each at one width.

    A grouped convolution of which a width takes some output channels of this group and more of that
    one becomes a part for each number of channels, so that every part is a layer.

    Args:
        layer: a layer with weights that `bits` fit.
        bits: its channel groups.
    """
    found = []
    for width, channels in bits.groups:
        per_group = Counter(c // (layer.out_channels // layer.groups) for c in channels)
        for taken, groups in sorted(Counter(per_group.values()).items()):
            part = replace(
                layer,
                in_channels=layer.in_channels // layer.groups * groups,
                out_channels=taken * groups,
                groups=groups,
                bias_count=taken * groups if layer.bias_count else 0,
            )
            found.append((BitWidths(width, bits.activations), part))
    return tuple(found)


def price_parts(
    price: Price, layers: Sequence[Layer], choices: Sequence[BitWidths]
) -> tuple[FloatArray, BoolArray]:
    """Price layers at choices some of which are channel groups.

    Args:
        price: what prices choices that are none.
        layers: L layers.
        choices: K bit-widths.

    Returns:
        As of `price`; a layer that channel groups do not fit has no price at them.
    """
    grouped = [(k, c) for k, c in enumerate(choices) if isinstance(c, ChannelGroups)]
    if not grouped:
        return price(layers, choices)
    plain = [c for c in choices if not isinstance(c, ChannelGroups)]
    of_groups = [BitWidths(w, c.activations) for _, c in grouped for w in c.weight_widths]
    widths = list(dict.fromkeys([*plain, *of_groups]))
    value = np.full((len(layers), len(choices)), np.inf)
    guessed = np.zeros(len(choices), np.bool_)
    whole, assumed = price(layers, widths)
    column = {bits: position for position, bits in enumerate(widths)}
    for k, bits in enumerate(choices):
        if not isinstance(bits, ChannelGroups):
            value[:, k], guessed[k] = whole[:, column[bits]], assumed[column[bits]]
    at, listed, of_width = [], [], []
    for k, bits in grouped:
        guessed[k] = any(
            assumed[column[BitWidths(w, bits.activations)]] for w in bits.weight_widths
        )
        for row, layer in enumerate(layers):
            if misfit_of(layer, bits):
                continue
            value[row, k] = 0.0
            for width, part in parts(layer, bits):
                at.append((row, k))
                listed.append(part)
                of_width.append(column[width])
    if listed:
        costs = price(listed, widths)[0][np.arange(len(listed)), of_width]
        np.add.at(value, tuple(np.array(at).T), costs)
    return value, guessed
