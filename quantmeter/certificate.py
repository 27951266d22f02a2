"""The certificate of a search, as lines and tables for people."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from costmodels.units import Metric, Unit, format_quantity
from quantization.channel_groups import brief, parse_bits
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


def dearest_table(certificate: Certificate, count: int = 5) -> Table:
    """Return the layers that cost most in any metric, each with its share of the total.

    Args:
        certificate: of the policy.
        count: how many layers of each metric are listed.
    """
    metrics = list(certificate.layers)
    names = dict.fromkeys(
        layer.name
        for position in range(count)
        for metric in metrics
        for layer in certificate.layers[metric][position : position + 1]
    )
    made = _plain("Layers that cost most, with their part of glue and conversions")
    made.add_column("layer", no_wrap=True)
    made.add_column("bits", justify="right")
    for metric in metrics:
        made.add_column(metric.value, justify="right")
        made.add_column("share", justify="right")
        made.add_column("itself", justify="right")
    by_name = {m: {layer.name: layer for layer in certificate.layers[m]} for m in metrics}
    for name in names:
        row = [name, brief(parse_bits(next(iter(by_name.values()))[name].bits))]
        for metric in metrics:
            layer, unit = by_name[metric][name], certificate.units[metric]
            total = certificate.totals[metric]
            share = f"{layer.cost / total:.1%}" if total else "-"
            row += [format_quantity(layer.cost, unit), share, format_quantity(layer.unary, unit)]
        made.add_row(*row)
    return made


def pattern_table(patterns: Patterns) -> Table:
    """Return which groups of layers got which bits, beside the mean of the network."""
    over = "one policy" if patterns.policies == 1 else f"{patterns.policies} policies"
    made = _plain(f"Bits of each kind of layer, mean over {over}")
    made.caption = (
        f"a pattern differs by more than chance gives (layers permuted, p adjusted for the number "
        f"of groups at most {ALPHA:g}); p: of the group alone"
    )
    made.caption_justify = "left"
    made.add_column("layers")
    made.add_column("count", justify="right")
    for width in ("weights", "activations"):
        made.add_column(width, justify="right")
        made.add_column("beside mean", justify="right")
        made.add_column("p", justify="right")
        made.add_column("")
    weight, activation = f"{patterns.weight_mean:.2f}", f"{patterns.activation_mean:.2f}"
    made.add_row("all", str(patterns.layers), weight, "", "", "", activation, "", "", "")
    weights = {group.group: group for group in patterns.weights}
    for group in patterns.activations:
        cells = [*_bits(weights.get(group.group)), *_bits(group)]
        made.add_row(group.group, str(group.layers), *cells)
    return made


def _bits(group: GroupBits | None) -> list[str]:
    if group is None:
        return ["", "", "", ""]
    p = "" if group.p is None else "<0.001" if group.p < 0.001 else f"{group.p:.3f}"
    return [
        f"{group.mean:.2f}",
        f"{group.difference:+.2f}",
        p,
        "pattern" if group.pattern else "",
    ]


def front_table(points: Sequence[FrontPoint], metric: Metric, unit: Unit) -> Table:
    """Return one row for each budget of a front: the exact optimum, and the run's best trial."""
    made = _plain(f"Best within each {metric.value} budget")
    made.add_column("budget", justify="right")
    made.add_column("proxy optimum", justify="right")
    made.add_column("costs", justify="right")
    tried = any(point.trial is not None for point in points)
    if tried:
        made.add_column("best trial", justify="right")
        made.add_column("its proxy loss", justify="right")
        made.add_column("costs", justify="right")
    for point in points:
        found, trial = point.solution, point.trial
        row = [
            format_quantity(point.budget, unit),
            f"{found.loss:.4g}" + ("" if found.proven else " (not proven)"),
            format_quantity(found.costs[metric], unit),
        ]
        if trial is not None:
            cost = format_quantity(trial.costs[metric], unit)
            row += [f"{trial.score:.4g}", f"{trial.loss:.4g}", cost]
        elif tried:
            row += ["none", "", ""]
        made.add_row(*row)
    return made


def _plain(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE, header_style="bold")
