"""The certificate of a search, as lines and tables for people."""

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from costmodels.units import Metric, Unit, format_quantity
from quantization.channel_groups import brief, parse_bits
from quantmeter.columns import Column, column_table, fitted
from search.certificate import Certificate, ShadowPrice
from search.pareto import FrontPoint
from search.patterns import ALPHA, GroupBits, Patterns


def certificate_lines(certificate: Certificate) -> list[str]:
    """Return what is proven of the policy, and what each budget is worth, one line each."""
    lines = [_optimum(certificate)]
    for price in certificate.prices:
        lines += _worth(certificate, price)
    for metric, why in certificate.unsolved.items():
        lines.append(f"{metric.value} budget: what it is worth could not be solved: {why}")
    if certificate.prices:
        lines.append(
            "(a budget's worth is the proxy loss of the integer program, solved again with the "
            "budget moved by that step"
            + ("" if all(p.proven for p in certificate.prices) else "; some solves ran out of time")
            + ")"
        )
    slope = certificate.slope
    if slope is not None and slope.told:
        lines.append(
            f"(points: estimated with the slope measured on {slope.trials} trials, "
            f"{slope.mid:.3g} of accuracy per unit of proxy loss, 95 % interval "
            f"[{slope.low:.3g}, {slope.high:.3g}])"
        )
    elif slope is not None:
        lines.append(
            f"(no points: over {slope.trials} trials accuracy was not seen to fall with proxy loss)"
        )
    return lines


def _optimum(certificate: Certificate) -> str:
    loss, best = certificate.loss, certificate.optimum
    if certificate.proven:
        gap = certificate.gap
        above = "above" if gap is None else f"{gap:.2%} above"
        if loss <= best:
            above = "equal to"
        if certificate.grouped and loss < best and gap is not None:
            above = f"by channel groups {-gap:.2%} below"
        of = " of one width a layer" if certificate.grouped else ""
        return f"proxy loss {loss:.4g}: {above} the proved optimum {best:.4g}{of}"
    bound = f"no policy has less than {certificate.bound:.4g}"
    if certificate.grouped:
        bound += " with one width a layer"
    elif certificate.gap_at_most is not None:
        bound += f", so the policy is at most {certificate.gap_at_most:.2%} above the optimum"
    return f"proxy loss {loss:.4g}: the solver found {best:.4g} in time; {bound}"


def _worth(certificate: Certificate, price: ShadowPrice) -> Iterator[str]:
    """Say what a step more and a step less of one budget do."""

    def show(value: float) -> str:
        return format_quantity(value, price.unit)

    step, share = show(price.step), price.step / price.budget
    yield (
        f"{price.metric.value} budget {show(price.budget)}: the optimum uses {show(price.cost)}, "
        f"the minimum reachable is {show(price.reachable)}"
    )
    if price.bought > 0:
        more = f"saves {price.bought:.3g} of proxy loss{_points(certificate, price.bought)}"
    else:
        more = "saves nothing"
    if price.given_up is None:
        less = "cannot be met"
    elif price.given_up > 0:
        less = f"adds {price.given_up:.3g}{_points(certificate, price.given_up)}"
    else:
        less = "adds nothing"
    yield f"  {step} more ({share:.0%}) {more}; {step} less {less}"


def _points(certificate: Certificate, loss: float) -> str:
    score = certificate.score_of(loss)
    if score is None:
        return ""
    mid, low, high = (100 * value for value in score)
    return f", about {mid:.2g} points [{low:.2g}, {high:.2g}]"


def dearest_table(certificate: Certificate, width: int, count: int = 5) -> Table:
    """Return the layers that cost most in any metric, each with its share of the total.

    Where the terminal is too narrow, what layers cost by themselves is left out, and then names are
    shortened.

    Args:
        certificate: of the policy.
        width: columns of the terminal.
        count: how many layers of each metric are listed.
    """
    metrics = list(certificate.layers)
    names = dict.fromkeys(
        layer.name
        for position in range(count)
        for metric in metrics
        for layer in certificate.layers[metric][position : position + 1]
    )
    by_name = {m: {layer.name: layer for layer in certificate.layers[m]} for m in metrics}
    first = next(iter(by_name.values()))
    columns = [
        Column("layer", tuple(names), left=True),
        Column("bits", tuple(brief(parse_bits(first[name].bits)) for name in names)),
    ]
    for metric in metrics:
        layers, unit = [by_name[metric][name] for name in names], certificate.units[metric]
        total = certificate.totals[metric]
        shares = (f"{layer.cost / total:.1%}" if total else "-" for layer in layers)
        columns += [
            Column(metric.value, tuple(format_quantity(layer.cost, unit) for layer in layers)),
            Column("share", tuple(shares)),
            Column("itself", tuple(format_quantity(layer.unary, unit) for layer in layers)),
        ]
    going = [k for k, column in enumerate(columns) if column.title == "itself"][::-1]
    kept, _ = fitted(columns, 0, width, going=going, whole=True)
    return column_table(kept, "Layers that cost most, with their part of glue and conversions")


def pattern_table(patterns: Patterns) -> Table:
    """Return which groups of layers got which bits, beside the mean of the network."""
    over = "one policy" if patterns.policies == 1 else f"{patterns.policies} policies"
    groups = patterns.activations
    weights = {group.group: group for group in patterns.weights}
    columns = [
        Column("layers", ("all", *(group.group for group in groups)), left=True),
        Column("#", (str(patterns.layers), *(str(group.layers) for group in groups))),
    ]
    for title, mean, found in (
        ("weights", patterns.weight_mean, [weights.get(group.group) for group in groups]),
        ("activations", patterns.activation_mean, groups),
    ):
        cells = [_bits(group) for group in found]
        columns += [
            Column(title, (f"{mean:.2f}", *(cell[0] for cell in cells))),
            Column("beside\nmean", ("", *(cell[1] for cell in cells))),
            Column("p ", ("", *(cell[2] for cell in cells))),
        ]
    made = column_table(columns, f"Bits of each kind of layer, mean over {over}")
    made.caption = Text(
        "*: a pattern, which differs by more than chance gives (layers permuted, p adjusted for "
        f"the number of groups at most {ALPHA:g}); p: of the group alone"
    )
    made.caption_justify = "left"
    return made


def _bits(group: GroupBits | None) -> tuple[str, str, str]:
    """Mean bits, how far from those of the network, and the probability of that by chance."""
    if group is None:
        return "", "", ""
    p = "" if group.p is None else "<0.001" if group.p < 0.001 else f"{group.p:.3f}"
    mark = "*" if group.pattern else " "
    return f"{group.mean:.2f}", f"{group.difference:+.2f}", p + mark


def front_table(points: Sequence[FrontPoint], metric: Metric, unit: Unit) -> Table:
    """Return one row for each budget of a front: the exact optimum, and the run's best trial."""
    found = [point.solution for point in points]
    scores = ("" if p.score is None else f"{p.score:.4g}" for p in points)
    optima = (f"{s.loss:.4g}" + ("" if s.proven else " (not proven)") for s in found)
    columns = [
        Column("budget", tuple(format_quantity(point.budget, unit) for point in points)),
        Column("proxy\noptimum", tuple(optima)),
        Column("its\nscore", tuple(scores)),
        Column("costs", tuple(format_quantity(s.costs[metric], unit) for s in found)),
    ]
    trials = [point.trial for point in points]
    if any(trials):
        costs = ("" if t is None else format_quantity(t.costs[metric], unit) for t in trials)
        columns += [
            Column("best\ntried", tuple("none" if t is None else f"{t.score:.4g}" for t in trials)),
            Column("its proxy\nloss", tuple("" if t is None else f"{t.loss:.4g}" for t in trials)),
            Column("costs", tuple(costs)),
        ]
    return column_table(columns, f"Best within each {metric.value} budget")
