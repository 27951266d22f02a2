"""The tasks on which search methods compete: a network, its images, and objectives."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from costmodels.model import BackendContext
from costmodels.table import BoolArray, FloatArray
from costmodels.units import Metric
from hil.calibration import FailedPolicyError
from quantization.bits import BitWidths, parse_choices
from quantization.policy import IndexArray, Policy, PolicyBatch
from quantization.reading import read_network
from quantmeter.costs import Costs, parse_costs
from quantmeter.data import Data
from quantmeter.reference_task import SHIPPED_MODEL, load_digits_task
from quantmeter.workbench import Workbench, open_workbench
from search.oracle import PostTrainingOracle
from search.problem import Problem
from search.sensitivity import SENSITIVITIES, Setting, as_loss, measure
from search.uniform import uniform_policy

PROXY = SENSITIVITIES[0]
"""The sensitivity that the proxy loss sums up: the default of a search."""


@dataclass(frozen=True)
class Limit:
    """One budget.

    Args:
        name: how the table calls it.
        share: of what the float network costs; None if the two widths say it.
        between: two choices; the budget is the mean of what these cost, given everywhere.
    """

    name: str
    share: float | None = None
    between: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Objective:
    """What is limited, and what can be chosen.

    Args:
        metric: what is limited.
        cost: what prices it, as ``--cost`` says it.
        choices: bit-widths, as ``--choices`` says them.
        limits: the budgets.
        exported: whether ONNX Runtime must be able to run the policies.
        whole: whether each policy is measured as a whole, too, and rejected above its budget.
    """

    metric: Metric
    cost: str
    choices: str
    limits: tuple[Limit, ...]
    exported: bool = True
    whole: bool = False


_LATENCIES = tuple(Limit(f"{share:g}x", share) for share in (0.9, 0.7, 0.5, 0.3, 0.2))
_LOW = (Limit("w2.5a4", between=("w2a4", "w3a4")), Limit("w3.5a4", between=("w3a4", "w4a4")))
OBJECTIVES: Mapping[str, Objective] = {
    "size": Objective(
        Metric.SIZE,
        "energy=analytical:haq",
        "w2a8,w3a8,w4a8,w6a8,w8a8",
        (
            Limit("w2.5a8", between=("w2a8", "w3a8")),
            Limit("w3a8", between=("w3a8", "w3a8")),
        ),
    ),
    "energy": Objective(
        Metric.ENERGY,
        "energy=analytical:bit-fusion",
        "w2a4,w3a4,w4a4,w6a6,w8a8,w4a8",
        _LOW,
        exported=False,
    ),
    "latency": Objective(Metric.LATENCY, "latency=ort", "w4a8,w8a8,w32a32", _LATENCIES),
    "latency-whole": Objective(
        Metric.LATENCY, "latency=ort", "w4a8,w8a8,w32a32", _LATENCIES, whole=True
    ),
}
"""What the tasks are searched for, by name."""


@dataclass(frozen=True, eq=False)
class Task:
    """A network with its images.

    Args:
        name: of the task.
        bench: network and images, split.
        folder: where sensitivities and measurements are kept; None keeps none.
        seconds: wall time that measuring a latency table may take.
    """

    name: str
    bench: Workbench
    folder: Path | None = None
    seconds: float = 60.0
    _costs: dict[tuple[Objective, bool], Costs] = field(default_factory=dict)

    @cached_property
    def oracles(self) -> dict[str, PostTrainingOracle]:
        """What scores policies on the parts ``search`` and ``test``."""
        simulation = self.bench.simulation
        return {
            part: PostTrainingOracle(simulation, *self.bench.part(part))
            for part in ("search", "test")
        }

    @cached_property
    def identity(self) -> str:
        """Digest of everything that decides an accuracy: network, images, split, ranges."""
        content = hashlib.sha256()
        network, exporter = self.bench.network, self.bench.exporter
        content.update(f"{network.digest} {network.weights_digest}".encode())
        content.update(f"{exporter.ranges.digest} {exporter.options}".encode())
        for part in ("ranges", "search", "test"):
            images, labels = self.bench.part(part)
            content.update(np.ascontiguousarray(images).tobytes())
            content.update(b"" if labels is None else labels.tobytes())
        return content.hexdigest()[:16]

    def costs(self, objective: Objective, *, at_length: bool = False) -> Costs:
        """Return what prices `objective`; at length, every timing is made anew and none briefly."""
        if (objective, at_length) not in self._costs:
            context = BackendContext(
                seconds=self.seconds,
                inputs=self.bench.range_inputs,
                store=None if self.folder is None or at_length else self.folder / "measured.sqlite",
                brief=objective.whole and not at_length,
            )
            made = parse_costs([objective.cost], context, exported=objective.exported)
            self._costs[objective, at_length] = made
        return self._costs[objective, at_length]

    def problem(self, objective: Objective) -> Problem:
        """Return the problem without a budget; with the default proxy loss."""
        choices = parse_choices(objective.choices)
        network, metric = self.bench.network, objective.metric
        table = self.costs(objective).model(metric).table(network, choices, metric)
        return Problem(network, choices, {metric: table}, {}, self.loss(choices, PROXY))

    def loss(self, choices: tuple[BitWidths, ...], sensitivity: str) -> FloatArray:
        """Return a proxy loss, (L, K), by the name of the sensitivity."""
        images, labels = self.bench.part("search")
        setting = Setting(self.bench.simulation, choices, images, labels)
        return as_loss(measure((sensitivity,), setting, self.folder)[sensitivity])

    def limit(self, objective: Objective, problem: Problem, limit: Limit) -> float:
        """Return a budget in the unit of the problem's table."""
        metric = objective.metric
        if limit.share is not None:
            reference = self.costs(objective).float_reference(self.bench.network, metric)
            assert reference is not None
            return limit.share * reference
        ends = [uniform_policy(problem, problem.choices.index(c))[0] for c in _parsed(limit)]
        return float(np.mean([problem.costs(index)[metric][0] for index in ends]))

    def batch(self, problem: Problem, index: IndexArray) -> PolicyBatch:
        """Return policies (P, L) of a problem as a batch."""
        return PolicyBatch(self.bench.network.layer_names, problem.choices, index)

    def right(self, problem: Problem, row: IndexArray) -> BoolArray:
        """Return which unseen images one policy, (L,), classifies right, (N,)."""
        oracle = self.oracles["test"]
        return oracle.right(self.batch(problem, row[None])[0], np.arange(oracle.count))

    def measured(self, objective: Objective, policy: Policy, *, at_length: bool = False) -> float:
        """Return what a policy costs, measured as a whole; infinite where that fails."""
        network = self.bench.network
        model = self.costs(objective, at_length=at_length).model(objective.metric)
        try:
            return float(
                model.total(network, PolicyBatch.of(network, [policy]), objective.metric)[0]
            )
        except FailedPolicyError:
            return float("inf")


def _parsed(limit: Limit) -> tuple[BitWidths, ...]:
    return tuple(BitWidths.parse(text) for text in limit.between)


def digits(folder: Path | None = None, images: int | None = None) -> Task:
    """Return the reference task; `images` of it, all by default."""
    task = load_digits_task()
    data = Data(task.unseen_images[:images], task.unseen_labels[:images])
    return Task("digits", open_workbench(read_network(SHIPPED_MODEL), data), folder)


def fashion(name: str, folder: Path | None = None) -> Task:
    """Return Fashion-MNIST with one of its networks; see `benchmarks.fashion.tasks`.

    Raises:
        DataError: if the images are not installed.
    """
    from benchmarks.fashion.tasks import fashion_bench

    return Task(f"fashion-{name}", fashion_bench(name), folder)


TASKS: Mapping[str, Callable[[Path | None], Task]] = {
    "digits": digits,
    "fashion-mobilenet": lambda folder: fashion("mobilenet", folder),
    "fashion-resnet": lambda folder: fashion("resnet", folder),
}
"""Every task by its name."""
