"""What ``quantmeter search`` tells people about what it found."""

import argparse
import math
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from quantmeter.commands.options import console, table
from quantmeter.commands.search_training import candidates_table, trained_lines

if TYPE_CHECKING:
    from quantmeter.search_outcome import SearchReport


def print_report(report: "SearchReport", arguments: argparse.Namespace) -> None:
    """Print what was found, for people."""
    from quantization.channel_groups import brief
    from quantmeter.certificate import (
        certificate_lines,
        dearest_table,
        front_table,
        pattern_table,
    )
    from quantmeter.grouping import grouping_lines

    found, out = report.found, console()
    whole = not out.is_terminal  # lines are cut at words on a terminal only
    if report.read_back:
        out.print(f"went on with an ended search: {report.read_back} of its trials were read back")
    rows = table("Best policy", "layer", "bits")
    for name, bits in found.policy.layers.items():
        rows.add_row(name, brief(bits))
    out.print(rows)
    test, searched = found.test_accuracy, f"{found.search_accuracy:.2%} on the search images"
    floats = report.summary["float_search_accuracy"]
    what = "agreement with the float network" if floats is None else "accuracy"
    if floats is not None:
        searched += f" (float {floats:.2%})"
    if test is None:  # its network was trained to be scored, and not kept
        out.print(f"{what}: {searched}, after short training")
    else:
        interval = f"[{test.low:.2%}, {test.high:.2%}]"
        out.print(f"{what}: {searched}, {test.share:.2%} {interval} on the test images")
    if found.divergence is not None:
        told = f"{found.divergence:.4g} nats from the float network on the search images"
        out.print(f"divergence: {told}", soft_wrap=whole)
    if report.trained is not None:
        if len(report.trained.candidates) > 1:
            out.print(candidates_table(report.trained))
        for line in trained_lines(report.trained):
            out.print(line, soft_wrap=whole)
    if report.grouping is not None:
        for line in grouping_lines(report.grouping):
            out.print(line, soft_wrap=whole, markup=False)
    for line in _effort(report):
        out.print(line, soft_wrap=whole)
    for line in _costs(report):
        out.print(line, soft_wrap=whole)
    for line in certificate_lines(report.explanation.certificate):
        out.print(line, soft_wrap=whole)
    out.print(dearest_table(report.explanation.certificate, out.width), crop=False)
    out.print(pattern_table(report.explanation.patterns), crop=False)
    written = "policy.json, trials.jsonl, result.json"
    front = report.explanation.front
    if front is not None:
        out.print(front_table(front.points, front.metric, front.unit), crop=False)
        for line in _about_front(report, arguments.front):
            out.print(line, soft_wrap=whole)
        written += f", front-1.policy.json to front-{len(front.points)}.policy.json"
    if report.explanation.unsolved is not None:
        out.print(f"no front: {report.explanation.unsolved}", soft_wrap=whole, markup=False)
    if report.trained is not None:
        written += "".join(f", {name}" for name in report.trained.files())
    if arguments.task is not None:
        written += ", model.onnx"
    if arguments.method == "reinforce":
        written += ", agent.npz (for --init-from)"
    out.print(f"written: {arguments.out}/{written}")
    if arguments.no_export or arguments.task is not None:
        return
    out.print(f"measure it: {bench_command(arguments)}", soft_wrap=True, markup=False)


def bench_command(arguments: argparse.Namespace) -> str:
    """Return the command that measures what was found, where its costs were measured.

    With the same seed: another split would test on images that the search saw.
    """
    words = ["quantmeter", "bench", arguments.model, f"{arguments.out}/policy.json"]
    words += ["--data", arguments.data, "--seed", str(arguments.seed)]
    backends = [*arguments.cost, arguments.totals or ""]
    if any(text.rpartition("=")[2].strip() == "ort:cuda" for text in backends):
        words += ["--device", "cuda"]
    return shlex.join([*words, "--vs", "float", "--vs", "w8a8"])


def _about_front(report: "SearchReport", asked: str) -> Iterator[str]:
    """Say why a front is short, what lies beyond the budget, and what scores better."""
    from quantmeter.search_options import parse_front

    front, best = report.explanation.front, report.result.archive[0]
    assert front is not None
    if len(front.points) < (count := parse_front(asked).count):
        yield f"{len(front.points)} budgets of {count}: the others have the same optimum"
    budget = report.summary["budgets"].get(front.metric.value)
    limit = math.inf if budget is None else budget["limit"]
    beyond = [n for n, point in enumerate(front.points, 1) if point.budget > limit]
    if beyond:
        yield f"front-{beyond[0]} and those behind it may cost more than the budget of the search"
    for number, point in enumerate(front.points, start=1):
        if number not in beyond and point.score is not None and point.score > best.score:
            yield (
                f"front-{number} scores {point.score:.4g} within the budget, more than what the "
                f"search found ({best.score:.4g}): --warm exact starts from such policies"
            )


def _effort(report: "SearchReport") -> Iterator[str]:
    """Say how much was tried, and whether the agent kept trying what is new."""
    log = report.result.log
    rejected = log.get("rejected_as_measured", 0.0)
    above = f", {rejected:.0f} of them rejected as measured" if rejected else ""
    yield f"tried: {report.result.evaluations} distinct policies{above}"
    if "collapsed_share" in log:
        learned = "" if log["steps"] else "; fewer episodes than its rollouts: it learned nothing"
        yield (
            f"agent: {log['episodes']:.0f} episodes in {log['updates']:.0f} updates, "
            f"{log['collapsed_share']:.0%} of which found little new (sampling temperature up to "
            f"{log['highest_temperature']:.3g}){learned}"
        )
    if log.get("refitted_to"):
        yield f"proxy loss: {report.summary['proxy']}, in units of the score"
    if log.get("gave_up"):
        yield "ended before its evaluations were spent: nothing new was proposed any more"
    pareto = report.explanation.pareto
    if len(pareto.trials) > 1:
        metrics = ", ".join(metric.value for metric in pareto.trials[0].costs)
        volume = "" if pareto.volume is None else f"; hypervolume {pareto.volume:.3f}"
        yield f"Pareto front of score, {metrics}: {len(pareto.trials)} policies{volume}"


def _costs(report: "SearchReport") -> Iterator[str]:
    """Say what the best policy costs in each budgeted metric, and as a whole."""
    from costmodels.units import Metric, Unit, format_quantity

    found, summary = report.found, report.summary
    for name, budget in summary["budgets"].items():
        unit = Unit(budget["unit"])
        cost, limit = (
            format_quantity(v, unit) for v in (found.costs[Metric(name)], budget["limit"])
        )
        said = summary["costs_from"][name]
        exact = name == Metric.SIZE.value
        yield f"{name}: {'exactly' if exact else 'predicted'} {cost} of {limit}" + (
            "" if exact else f", {said}"
        )
    for metric, measured in found.measured.items():
        totals = summary["totals"]
        unit = Unit(totals["units"][metric.value])
        limit = totals["limits"].get(metric.value)
        within = "" if limit is None else f" of {format_quantity(limit, unit)}"
        named = totals["backends"][metric.value]
        yield f"{metric.value} as a whole: {format_quantity(measured, unit)}{within}, by {named}"
