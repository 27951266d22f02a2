"""The pictures of ``quantmeter cost --plot``: a roofline, and where the energy goes.

A metric that an accelerator prices (`costmodels.accelerator`) is drawn as its roofline (latency)
or as what its products and each operand at each memory take (energy); a metric of any other
backend, or of a policy with channel groups, as one bar a layer. Numbers of layers are those of the
printed table.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from costmodels.accelerator import Accelerator
from costmodels.analytical import Analytical
from costmodels.roofline import Roofline, energy_breakdown, roofline
from costmodels.table import FloatArray
from costmodels.units import Metric, Unit, format_quantity
from quantization.bits import BitWidths
from quantization.channel_groups import ChannelGroups
from quantization.errors import QuantmeterError
from quantization.network import Network
from quantization.policy import Policy
from quantmeter.columns import shorten
from quantmeter.cost_table import dearest
from quantmeter.costs import Costs
from quantmeter.files import require_file
from quantmeter.itemizing import Bill

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

Panel = Callable[["SubFigure"], None]
"""What draws one metric."""

_BARS = 12
"""Layers that get a bar."""
_NAMED = 8
"""Layers whose number stands beside their marker."""
_APART = np.array([36.0, 20.0])
"""Pixels across or up between two such numbers, at least."""
_NAME = 26
"""Characters of a layer's name beside its bar."""
_MARKERS = "os^Dvp*hX8<>"
_HUES = ("Blues", "Oranges", "Greens", "Purples")
"""A colour map a level of memory; its shades are weights, inputs and outputs."""


def require_plot(path: Path, *inputs: str | None) -> None:
    """Raise unless a picture can be drawn and written: asked before anything is priced.

    Args:
        path: the picture.
        inputs: files that are read, and must not be overwritten.

    Raises:
        QuantmeterError: says what is in the way.
    """
    if path.suffix.lower() != ".png":
        raise QuantmeterError(f"--plot writes PNG: name a file FILE.png, not {path}")
    if find_spec("matplotlib") is None:
        raise QuantmeterError("--plot needs matplotlib: pip install 'quantmeter[plot]'")
    require_file(path, *inputs)


def panels(
    bills: Sequence[Bill], costs: Costs, network: Network, policy: Policy
) -> tuple[Panel, ...]:
    """Return a panel for latency and for energy, as far as they are priced, else for size."""
    shown = [bill for bill in bills if bill.metric is not Metric.SIZE] or list(bills)
    return tuple(_panel(bill, _accelerator(costs, bill.metric), network, policy) for bill in shown)


def plot(path: Path, title: str, drawn: Sequence[Panel]) -> None:
    """Draw panels side by side into a PNG file.

    Raises:
        QuantmeterError: if the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5 * len(drawn), 7.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    places = figure.subfigures(1, len(drawn), squeeze=False, wspace=0.03)
    for place, panel in zip(places[0], drawn, strict=True):
        panel(place)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise QuantmeterError(f"cannot write to {path}: {error.strerror}") from None


def _accelerator(costs: Costs, metric: Metric) -> Accelerator | None:
    model = costs.model(metric)
    preset = model.preset if isinstance(model, Analytical) else None
    return preset if isinstance(preset, Accelerator) else None


def _panel(bill: Bill, accelerator: Accelerator | None, network: Network, policy: Policy) -> Panel:
    bits = [policy[layer.name] for layer in network.layers]
    if accelerator is None or any(isinstance(each, ChannelGroups) for each in bits):
        return partial(_draw_bars, bill=bill)
    name = Path(accelerator.name).name
    if bill.metric is Metric.LATENCY:
        roofs = roofline(accelerator, network.layers, bits)
        return partial(_draw_roofline, bill=bill, roofs=roofs, name=name)
    choices = tuple(dict.fromkeys(bits))
    at = np.arange(len(bits)), np.array([choices.index(b) for b in bits], np.intp)
    found = energy_breakdown(accelerator, network.layers, choices)
    parts = {"multiply-accumulates": found.macs[at]}
    for level, moved in found.levels.items():
        for operand in ("weights", "inputs", "outputs"):
            parts[f"{level}: {operand}"] = getattr(moved, operand)[at]
    return partial(_draw_breakdown, bill=bill, parts=parts, name=name)


def _draw_roofline(place: "SubFigure", bill: Bill, roofs: Roofline, name: str) -> None:
    """Draw each layer at its intensity under the roofs of its width and of the memories."""
    from matplotlib.ticker import EngFormatter

    axes = place.subplots()
    axes.set_title(f"roofline of {name}")
    peak, slope = max(roofs.peaks.values()), next(iter(roofs.bandwidths.values()))
    ends = [*roofs.intensity, peak / slope]
    low, high = min(ends) / 2, max(ends) * 2
    for level, bandwidth in roofs.bandwidths.items():
        end = peak / bandwidth
        label = f"{level}, {_rate(bandwidth, 'B/s')}"
        outermost = level == roofs.outermost
        label += "" if outermost else ", at its own intensity"
        style = "-" if outermost else "--"
        axes.plot(
            [min(low, end), end], [bandwidth * min(low, end), peak], style, c="k", label=label
        )
    for mark, (bits, colour) in enumerate(_colours(roofs.peaks).items()):
        start, limit = roofs.peaks[bits] / slope, roofs.peaks[bits]
        axes.plot([start, high], [limit, limit], "-", color=colour, linewidth=1.5)
        of_bits = [i for i, b in enumerate(roofs.computed) if b == bits]
        axes.plot(
            roofs.intensity[of_bits],
            roofs.achieved[of_bits],
            _MARKERS[mark % len(_MARKERS)],
            color=colour,
            markeredgecolor="white",
            markersize=8,
            label=f"{bits}, {len(of_bits)} layers; roof {_rate(limit, 'MAC/s')}",
        )
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    axes.set_ylim(min(roofs.achieved) / 3, peak * 2)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter(EngFormatter("MAC/s"))
    axes.set_xlabel(f"arithmetic intensity (MAC per byte to or from {roofs.outermost})")
    axes.set_ylabel("achieved multiply-accumulates per second (modelled)")
    axes.grid(alpha=0.3)
    place.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    _number(axes, bill, roofs)


def _rate(value: float, unit: str) -> str:
    """Print three significant digits with a prefix."""
    from matplotlib.ticker import EngFormatter

    text: str = EngFormatter(unit)(float(f"{value:.3g}"))
    return text


def _colours(peaks: Mapping[BitWidths, float]) -> dict[BitWidths, tuple[float, ...]]:
    """Return a colour for each width, the slowest first."""
    from matplotlib import colormaps

    ordered = sorted(peaks, key=lambda bits: (peaks[bits], bits.weights, bits.activations))
    few = colormaps["tab10"]
    many = colormaps["viridis"]
    count = len(ordered)
    return {
        bits: few(k) if count <= 10 else many(k / (count - 1)) for k, bits in enumerate(ordered)
    }


def _number(axes: "Axes", bill: Bill, roofs: Roofline) -> None:
    """Write the numbers of the dearest layers beside their markers, where there is room."""
    ranked = sorted(range(len(bill.layers)), key=lambda i: -bill.layers[i].cost)
    taken: list[FloatArray] = []
    for i in ranked[:_NAMED]:
        at = axes.transData.transform((roofs.intensity[i], roofs.achieved[i]))
        if all((np.abs(at - other) >= _APART).any() for other in taken):
            taken.append(at)
            point = roofs.intensity[i], roofs.achieved[i]
            axes.annotate(
                f"#{i + 1}", point, (6, -12), textcoords="offset points", fontsize=8, zorder=9
            )


def _draw_breakdown(
    place: "SubFigure", bill: Bill, parts: Mapping[str, FloatArray], name: str
) -> None:
    """Draw the whole network and its dearest layers as stacked bars, each on its own scale."""
    from matplotlib.patches import Patch

    positions = dearest([bill], _BARS)
    whole, layers = place.subplots(2, 1, height_ratios=[1.6, len(positions) + 1.5])
    whole.set_title(f"energy on {name} (analytical, not measured)")
    colours = _shades(list(parts))
    sums = {part: np.array([joules.sum()]) for part, joules in parts.items()}
    _stack(whole, bill, ["whole network"], sums, colours)
    ranked = sorted(positions, key=lambda i: -bill.layers[i].cost)
    picked = {part: joules[ranked] for part, joules in parts.items()}
    _stack(layers, bill, [_label(bill, i) for i in ranked], picked, colours)
    layers.set_xlabel(_axis(bill))
    handles, labels = whole.get_legend_handles_labels()
    blank = [Patch(alpha=0.0)] * 2  # a column each for the products and for every memory
    place.legend(
        [handles[0], *blank, *handles[1:]],
        [labels[0], "", "", *labels[1:]],
        loc="outside lower center",
        ncols=1 + len(parts) // 3,
        fontsize=8,
        frameon=False,
    )


def _shades(parts: Sequence[str]) -> list[tuple[float, ...]]:
    """Return grey for the products, and three shades of one hue a level of memory."""
    from matplotlib import colormaps

    shades: list[tuple[float, ...]] = [(0.35, 0.35, 0.35, 1.0)]
    for k in range(len(parts) - 1):
        shades.append(colormaps[_HUES[k // 3 % len(_HUES)]]((0.85, 0.6, 0.35)[k % 3]))
    return shades


def _stack(
    axes: "Axes",
    bill: Bill,
    names: Sequence[str],
    parts: Mapping[str, FloatArray],
    colours: Sequence[tuple[float, ...]],
) -> None:
    start = np.zeros(len(names))
    for (part, joules), colour in zip(parts.items(), colours, strict=True):
        axes.barh(range(len(names)), joules, left=start, color=colour, label=part, height=0.7)
        start = start + joules
    _finish(axes, bill, names, start)


def _draw_bars(place: "SubFigure", bill: Bill) -> None:
    """Draw what the dearest layers and all else cost, coloured by provenance."""
    from matplotlib import colormaps

    axes = place.subplots()
    axes.set_title(f"{bill.metric.value} by layer")
    ranked = sorted(dearest([bill], 2 * _BARS), key=lambda i: -bill.layers[i].cost)
    values = np.array([bill.layers[i].cost for i in ranked])
    said = [bill.layers[i].provenance for i in ranked]
    names = [_label(bill, i) for i in ranked]
    for k, kind in enumerate(sorted(set(said))):
        rows = [row for row, other in enumerate(said) if other == kind]
        colour = colormaps["tab10"](k)
        axes.barh(rows, values[rows], color=colour, label=f"layers ({kind})", height=0.7)
    left = [item.cost for i, item in enumerate(bill.layers) if i not in ranked]
    if rest := sum(left) + sum(item.cost for item in bill.others):
        axes.barh([len(names)], [rest], color="0.6", label="all else", height=0.7)
        names, values = [*names, "all else"], np.array([*values, rest])
    _finish(axes, bill, names, values)
    axes.set_xlabel(_axis(bill))
    place.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)


def _finish(axes: "Axes", bill: Bill, names: Sequence[str], ends: FloatArray) -> None:
    """Name the bars, and write what each costs and its share at its end."""
    from matplotlib.ticker import EngFormatter

    for row, value in enumerate(ends.tolist()):
        share = value / bill.total if bill.total else 0.0
        text = f" {format_quantity(value, bill.unit)}, {share:.1%}"
        axes.text(max(value, 0.0), row, text, va="center", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(min(0.0, float(ends.min())), max(float(ends.max()), 1e-30) * 1.35)
    cycles = bill.unit is Unit.CYCLES
    axes.xaxis.set_major_formatter(EngFormatter("" if cycles else bill.unit.value))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _axis(bill: Bill) -> str:
    per = "of the file" if bill.metric is Metric.SIZE else "of one run"
    return f"{bill.metric.value} {per} ({bill.unit.value}), and share of the total"


def _label(bill: Bill, position: int) -> str:
    return f"#{position + 1} {shorten(bill.layers[position].name, _NAME)}"
