"""A network with its data, ready to be quantized: what search, export and bench share."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from hil.device import detect
from hil.ort import random_inputs
from quantization.best_ranges import best_ranges
from quantization.bits import BitWidths
from quantization.deployment import (
    CPU_TARGET,
    Corrections,
    ExportOptions,
    Target,
    range_method,
)
from quantization.errors import DataError
from quantization.export import Exporter
from quantization.network import Network
from quantization.policy import Policy
from quantization.quantizer import Float32Array
from quantization.range_choices import RangeChoices, chosen_ranges
from quantization.ranges import RANGE_METHODS, RangeMethod, collect_ranges
from quantization.reading import read_network
from quantization.simulation import Simulation
from quantization.task import Task
from quantmeter.data import Data, Labels, Split, read_data, split_data

_RANDOM_IMAGES = 16


@dataclass(frozen=True, eq=False)
class Workbench:
    """A network, the images for it, and the exporter and simulation built on them.

    Args:
        network: the network.
        data: images, or None: then random inputs serve for ranges, and there is no accuracy.
        split: which images serve what; None without data.
        seed: of the split and of random inputs.
        ranges: how ranges are chosen, for policies that do not say so themselves: by one method, or
            each by its own.
        target: the provider that exported files are for.
        task: where network and images came from, with the images that it is trained on; None if
            they came as files.
    """

    network: Network
    data: Data | None
    split: Split | None
    seed: int
    ranges: RangeMethod | RangeChoices = RANGE_METHODS[0]
    target: Target = CPU_TARGET
    task: Task | None = None

    def part(self, name: str) -> tuple[Float32Array, Labels | None]:
        """Return images and labels of the part ``ranges``, ``search`` or ``test``.

        Raises:
            DataError: without data.
        """
        if self.data is None or self.split is None:
            raise DataError("this needs images: give --data DATA.npz")
        where = getattr(self.split, name)
        return self.data.x[where], None if self.data.y is None else self.data.y[where]

    @property
    def classifies(self) -> bool:
        """Whether the first output is (N, classes): only then there is an accuracy."""
        output = self.network.tensor_by_name.get(self.network.output_names[0])
        return output is not None and len(output.shape) == 2

    @property
    def range_inputs(self) -> Float32Array:
        """(N, ...) the images that ranges and corrections come from; random without data."""
        if self.data is None:
            return random_inputs(self.network, _RANDOM_IMAGES, self.seed)
        return self.part("ranges")[0]

    @cached_property
    def exporter(self) -> Exporter:
        """Builds deployable models with ranges from `range_inputs`."""
        if isinstance(self.ranges, RangeChoices):
            ranges = chosen_ranges(self.network, self.range_inputs, self.ranges)
        else:
            ranges = collect_ranges(self.network, self.range_inputs, self.ranges)
        options = ExportOptions(reduce_range=detect().saturates)
        return Exporter(self.network, ranges, options, self.target)

    def with_best_ranges(
        self,
        choices: Sequence[BitWidths],
        progress: Callable[[float, str], None] = lambda _share, _what: None,
    ) -> "Workbench":
        """Return this workbench with each range chosen by what measures best at its width.

        Measured on the part ``ranges``: see `quantization.best_ranges`. Its policies carry the
        table of choices, so that a file is exported with it without measuring again.

        Raises:
            DataError: without data.
        """
        inputs, _ = self.part("ranges")
        start = replace(self, ranges=RANGE_METHODS[0])
        return replace(self, ranges=best_ranges(start.exporter, inputs, choices, progress))

    @property
    def policy_options(self) -> dict[str, object]:
        """What policies of this workbench say about ranges; nothing if they are the default."""
        if self.ranges == RANGE_METHODS[0]:
            return {}
        table = self.ranges
        return {"ranges": table.to_json() if isinstance(table, RangeChoices) else table}

    @cached_property
    def simulation(self) -> Simulation:
        """Simulates what exported models compute."""
        return Simulation(self.exporter, self.range_inputs)

    @cached_property
    def float_labels(self) -> Labels:
        """(N,) the float network's first choice on the test part."""
        logits = self.simulation.logits(Policy({}), self.part("test")[0])
        return np.asarray(logits.argmax(1), np.int64)

    def corrections(self, policy: Policy) -> Corrections:
        """Return the statistics corrections of `policy`; none without data."""
        return {} if self.data is None else self.simulation.correct(policy)

    def export(self, policy: Policy) -> bytes:
        """Return the deployable model of `policy`, statistics corrected if there is data.

        Raises:
            PolicyError: if the policy does not fit the network or is not deployable.
        """
        self.exporter.size_bytes(policy)  # says what does not fit before anything slow is run
        exporter, corrections = self.parameters(policy)
        return exporter.build(policy, corrections)

    def parameters(self, policy: Policy) -> tuple[Exporter, Corrections]:
        """Return what a deployable model of `policy` is made of, whoever runs it."""
        bench = self._with_ranges_of(policy)
        return bench.exporter, bench.corrections(policy)

    def _with_ranges_of(self, policy: Policy) -> "Workbench":
        """This workbench, or one with the ranges that the policy's options ask for."""
        method = range_method(policy.options) if "ranges" in policy.options else self.ranges
        if method == self.ranges:
            return self
        other = replace(self, ranges=method)
        return self._others.setdefault(json.dumps(other.policy_options, sort_keys=True), other)

    @cached_property
    def _others(self) -> "dict[str, Workbench]":
        """Workbenches of the same network and data, by how their ranges are chosen."""
        return {}


def open_workbench(
    model: str | Path | Network,
    data: str | Path | Data | None = None,
    *,
    seed: int = 0,
    ranges: RangeMethod | RangeChoices = "minmax",
    target: Target = CPU_TARGET,
) -> Workbench:
    """Read a model and its data.

    Args:
        model: path of an ONNX file, or a network.
        data: path of a ``.npz`` file, or data, or None.
        seed: of the split.
        ranges: how activation ranges are chosen.
        target: the provider that exported files are for.

    Raises:
        ModelError: if the model cannot be read.
        DataError: if the data cannot be read or does not fit the network.
    """
    network = model if isinstance(model, Network) else read_network(model)
    given = data if data is None or isinstance(data, Data) else read_data(data)
    if given is not None:
        check_fit(network, given.x, given.y)
    split = None if given is None else split_data(given, seed)
    return Workbench(network, given, split, seed, ranges, target)


def check_fit(network: Network, images: Float32Array, labels: Labels | None) -> None:
    """Raise unless images and labels fit the network.

    Raises:
        DataError: says what does not.
    """
    from quantization.ranges import check_inputs

    check_inputs(network, images)
    if labels is None:
        return
    output = network.tensor_by_name.get(network.output_names[0])
    if output is None or len(output.shape) != 2:
        found = "not float32" if output is None else output.shape
        raise DataError(
            f"labels need an output (N, classes), this network's is {found}; give data without y"
        )
    classes = output.shape[1]
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"labels run from {labels.min()} to {labels.max()}, the network has {classes} classes"
        )
