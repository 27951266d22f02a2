"""Choice at run time: an exported policy that is cheap first, a dear one where it is unsure."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from costmodels.errors import BackendError
from costmodels.model import BackendContext, unit_of
from costmodels.table import FloatArray
from costmodels.units import Unit
from hil.ort import Runner
from hil.sequential import signed_rank_interval
from quantization.errors import DataError, PolicyError
from quantization.policy import Policy
from quantization.quantizer import Float32Array
from quantmeter.costs import parse_costs
from quantmeter.data import Data, Labels
from quantmeter.preparing import Progress
from quantmeter.workbench import Workbench, open_workbench
from search.dynamic import (
    Cascade,
    CascadeReport,
    Stage,
    choose_cascade,
    report_cascade,
    run_cascade,
)

_MOST_TIMED = 100
"""Images of one timed turn."""
_LEVEL = 0.05


@dataclass(frozen=True)
class Measured:
    """A cascade run whole, beside its policies alone: mean seconds of an image, median of rounds.

    Args:
        whole_s: of the cascade, deciding included.
        cheap_s: of its cheap policy alone.
        dear_s: of its dear policy alone.
        ratio: cascade over dear policy alone, with its 95 % interval: low, mid, high.
    """

    whole_s: float
    cheap_s: float
    dear_s: float
    ratio: tuple[float, float, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the times as JSON values."""
        low, mid, high = self.ratio
        times = {"whole_s": self.whole_s, "cheap_s": self.cheap_s, "dear_s": self.dear_s}
        return {**times, "over_dear": mid, "over_dear_interval": [low, high]}


@dataclass(frozen=True, eq=False)
class CascadeResult:
    """What `cascade` returns.

    Args:
        unit: of the costs.
        costs: of one image by policy, in the order given.
        searched: share of right answers by policy on the search part, which chose.
        report: of the chosen cascade on the test part.
        single: the cheapest policy that alone meets the same rule.
        labelled: whether right answers are those of labels, not the float network's.
        measured: the cascade run whole; None where a model says what policies cost, or one policy
            is the best choice.
    """

    unit: Unit
    costs: Mapping[str, float]
    searched: Mapping[str, float]
    report: CascadeReport
    single: str
    labelled: bool
    measured: Measured | None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "unit": self.unit.value,
            "accuracy_is": "right answers" if self.labelled else "agreement with the float network",
            "policies": {
                name: {"cost": cost, "search_accuracy": self.searched[name]}
                for name, cost in self.costs.items()
            },
            "cascade": self.report.to_dict(),
            "single": {"name": self.single, "cost": self.costs[self.single]},
            "measured": None if self.measured is None else self.measured.to_dict(),
        }


@dataclass(frozen=True, eq=False)
class LoadedPolicy:
    """An exported policy, loaded into ONNX Runtime.

    Args:
        name: of the policy.
        runner: the session.
        feed: name of the input.
    """

    name: str
    runner: Runner
    feed: str

    def __call__(self, image: Float32Array) -> Float32Array:
        """Return the logits, (1, classes), of one image, (1, ...)."""
        logits: Float32Array = self.runner.run({self.feed: image})[0]
        return logits

    def logits(self, images: Sequence[Float32Array]) -> Float32Array:
        """Return the logits, (N, classes), of N images, run one at a time."""
        return np.concatenate([self(image).reshape(1, -1) for image in images])


def cascade(
    model: str | Path,
    data: str | Path | Data,
    policies: Sequence[str | Path],
    *,
    cost: str | None = None,
    tolerance: float = 0.0,
    rounds: int = 20,
    threads: int = 1,
    seed: int = 0,
    progress: Progress = lambda _share, _what: None,
) -> CascadeResult:
    """Choose a pair of policies and a threshold of confidence, and say what that is worth.

    Chosen on the search part: the least mean cost whose accuracy is that of the best policy, less
    the tolerance. Told on the test part. See `search.dynamic`.

    Args:
        model: path of the float ONNX file.
        data: images as a search got them; without labels the float network's answers are right.
        policies: files of at least two policies, or folders of runs with a front.
        cost: backend that says what a policy costs, such as ``energy=analytical:haq``; None times
            the exported files here, and the cascade as a whole.
        tolerance: share of right answers that may be lost, 0..1.
        rounds: of timing, at least 6.
        threads: of the runtime.
        seed: of the split, as in the search, and of the order of turns.
        progress: called with the share done and what is being done.

    Raises:
        QuantmeterError: what is wrong with the model, the data, a policy or the backend.
    """
    if not 0 <= tolerance < 1:
        raise DataError(f"a tolerance is a share from 0 to 1, not {tolerance:g}")
    if rounds < 6:
        raise DataError(f"an interval needs at least 6 rounds, not {rounds}")
    named = _named_policies(policies)
    bench = open_workbench(model, data, seed=seed)
    if not bench.classifies:
        raise DataError("a cascade needs a network whose output is (N, classes)")
    parts = {name: _part(bench, name, threads) for name in ("search", "test")}
    files = []
    for number, (name, policy) in enumerate(named.items()):
        progress(0.5 * number / len(named), f"exports {name}")
        files.append(load_policy(bench, name, policy, threads))
    images, labels = parts["search"]
    if cost is None:
        unit = Unit.SECONDS
        turns = {file.name: _alone(file, images[:_MOST_TIMED]) for file in files}
        times = _timed(turns, rounds, seed, lambda share: progress(0.5 + share / 4, "times files"))
        costs = {name: float(np.median(taken)) for name, taken in times.items()}
    else:
        unit, costs = _priced(bench, cost, named, threads)
    stages = [Stage(file.name, costs[file.name], file.logits(images)) for file in files]
    chosen = choose_cascade(stages, labels, tolerance=tolerance)
    single = cheapest_single(stages, labels, tolerance)
    searched = {stage.name: float(stage.right(labels).mean()) for stage in stages}
    images, labels = parts["test"]
    unseen = [Stage(file.name, costs[file.name], file.logits(images)) for file in files]
    report = report_cascade(chosen, unseen, labels)
    measured = None
    if cost is None and chosen.threshold:
        by_name = {file.name: file for file in files}
        pair = by_name[chosen.cheap], by_name[chosen.dear]
        measured = _measured(chosen, *pair, images, rounds, seed, progress)
    labelled = bench.part("test")[1] is not None
    return CascadeResult(unit, costs, searched, report, single, labelled, measured)


def cheapest_single(stages: Sequence[Stage], labels: Labels, tolerance: float = 0.0) -> str:
    """Return the name of the cheapest stage that alone stays within the tolerance of the best."""
    accuracy = {stage.name: float(stage.right(labels).mean()) for stage in stages}
    floor = max(accuracy.values()) - tolerance - 1e-12
    return min((s for s in stages if accuracy[s.name] >= floor), key=lambda s: s.cost).name


def _named_policies(given: Sequence[str | Path]) -> dict[str, Policy]:
    """Read policy files, and those of the fronts of runs; names are as short as they can be."""
    paths: list[Path] = []
    for each in map(Path, given):
        if not each.is_dir():
            paths.append(each)
            continue
        front = sorted(each.glob("front-*.policy.json"), key=_number)
        if not front:
            raise PolicyError(f"{each} holds no front: search with --front METRIC=COUNT")
        paths += front
    short = [path.name.removesuffix(".json").removesuffix(".policy") for path in paths]
    names = short if len(set(short)) == len(short) else [str(path) for path in paths]
    found = {name: Policy.read(path) for name, path in zip(names, paths, strict=True)}
    if len(found) < 2:
        raise PolicyError("a cascade chooses among two policies or more")
    return found


def _number(path: Path) -> tuple[int, str]:
    digits = re.search(r"\d+", path.name)
    return int(digits[0]) if digits else 0, path.name


def _part(bench: Workbench, name: str, threads: int) -> tuple[list[Float32Array], Labels]:
    """Images of a part of the split, (1, ...) each, and their right classes."""
    images, labels = bench.part(name)
    single = [np.ascontiguousarray(image[None]) for image in images]
    if labels is None:
        labels = load_policy(bench, "float", Policy({}), threads).logits(single).argmax(1)
    return single, labels


def load_policy(bench: Workbench, name: str, policy: Policy, threads: int = 1) -> LoadedPolicy:
    """Export a policy and load the file.

    Raises:
        PolicyError: if the policy does not fit the network or is not deployable.
    """
    feed = bench.network.input_names[0]
    runner = Runner(bench.export(policy), threads, {feed: bench.part("ranges")[0][:1]})
    return LoadedPolicy(name, runner, feed)


def _priced(
    bench: Workbench, cost: str, named: Mapping[str, Policy], threads: int
) -> tuple[Unit, dict[str, float]]:
    context = BackendContext(threads=threads, inputs=bench.range_inputs)
    costs = parse_costs([cost], context, exported=False)
    metrics = list(costs.models)
    if len(metrics) != 1:
        raise BackendError(
            f"--cost {cost} prices {' and '.join(metrics)}; name one, such as "
            f"--cost {metrics[0]}={cost}"
        )
    [metric] = metrics
    policies = list(named.values())
    totals = costs.total(bench.network, policies, metric)
    choices = tuple(sorted({bits for p in policies for bits in p.layers.values()}))
    unit = unit_of(costs.model(metric), bench.network, choices, metric)
    return unit, dict(zip(named, map(float, totals), strict=True))


def _alone(file: LoadedPolicy, images: Sequence[Float32Array]) -> Callable[[], FloatArray]:
    """One policy as a cascade that forwards nothing: deciding takes its time there too."""
    nothing = Cascade(file.name, file.name, 0.0)
    return lambda: run_cascade(nothing, file, file, images).seconds


def _timed(
    turns: Mapping[str, Callable[[], FloatArray]],
    rounds: int,
    seed: int,
    progress: Callable[[float], None],
) -> dict[str, FloatArray]:
    """Run all in turns, in another order each round; return mean seconds, (rounds,) of each."""
    order = np.random.default_rng(seed)
    taken: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds + 1):
        progress(number / (rounds + 1))
        for name in map(str, order.permutation(list(turns))):
            mean = float(turns[name]().mean())
            if number:  # the first round warms up
                taken[name].append(mean)
    return {name: np.array(values) for name, values in taken.items()}


def _measured(
    chosen: Cascade,
    cheap: LoadedPolicy,
    dear: LoadedPolicy,
    images: Sequence[Float32Array],
    rounds: int,
    seed: int,
    progress: Progress,
) -> Measured:
    turns = {
        "cheap": _alone(cheap, images),
        "dear": _alone(dear, images),
        "whole": lambda: run_cascade(chosen, cheap, dear, images).seconds,
    }
    times = _timed(turns, rounds, seed, lambda share: progress(0.75 + share / 4, "times the whole"))
    ratios = np.log(times["whole"] / times["dear"])
    low, mid, high = map(float, np.exp(signed_rank_interval(ratios, _LEVEL)))
    whole, first, second = (float(np.median(times[name])) for name in ("whole", "cheap", "dear"))
    return Measured(whole, first, second, (low, mid, high))
