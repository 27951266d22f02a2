"""What training with quantization in the loop gains over correction after training.

    python -m benchmarks.qat                  # MobileNetV2-style on Fashion-MNIST; hours
    python -m benchmarks.qat --images 20000   # fewer images an epoch
    python -m benchmarks.qat --quick          # the digits network, one epoch a phase, for the test

One mixed policy: the one of the least summed KL divergence, proven by the MILP, whose file is no
larger than that of uniform w3a8. It is scored on the test images as torch computes it and as ONNX
Runtime computes the exported file: rounded plainly, with corrected statistics, after phase 1
(short) and after phase 2 (long, from where phase 1 ended).
"""

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
import torch

# Run as a script, Python puts benchmarks/ on the path, not the checkout it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.fashion.tasks import fashion_task
from costmodels.size import ExportedSize
from costmodels.units import Metric
from hil.device import detect
from quantization.bits import BitWidths, parse_choices
from quantization.deployment import Corrections, ExportOptions
from quantization.export import Exporter
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch
from quantization.qat.network import QatNetwork
from quantization.qat.training import PHASE_1, PHASE_2, Recipe, accuracy, train
from quantization.qat.tuned import freeze
from quantization.ranges import collect_ranges
from quantization.reading import read_network
from quantization.simulation import Simulation
from quantization.task import Augment, Examples
from quantization.torch_export import export_module
from search.exact import solve
from search.oracle import Interval
from search.problem import Problem
from search.sensitivity import measure_sensitivity

CHOICES = parse_choices("w2a8,w3a8,w4a8,w6a8,w8a8")
UNIFORM = BitWidths(3, 8)
_CALIBRATION = 512
MOST = 0.002
"""Most by which the accuracies of an exported file and its torch network may differ."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A float network and its images."""

    network: Network
    train: Examples
    search: Examples
    test: Examples
    augment: Augment | None


def fashion(name: str) -> Subject:
    """Return one of the Fashion-MNIST tasks."""
    task = fashion_task(name)
    example = torch.from_numpy(task.train.images[:1])
    network = read_network(export_module(task.module, example))
    return Subject(network, task.train, task.search, task.test, task.augment)


def digits() -> Subject:
    """Return the demo's network, with few images."""
    from quantmeter.reference_task import SHIPPED_MODEL, load_digits_task

    task = load_digits_task()
    search, test = slice(0, 30), slice(30, 90)
    return Subject(
        read_network(SHIPPED_MODEL),
        Examples(task.train_images[:100], task.train_labels[:100]),
        Examples(task.unseen_images[search], task.unseen_labels[search]),
        Examples(task.unseen_images[test], task.unseen_labels[test]),
        None,
    )


def choose_policy(simulation: Simulation, search: Examples) -> Policy:
    """Return the policy of the least summed KL whose file is no larger than uniform w3a8's."""
    network = simulation.network
    size = ExportedSize()
    uniform = PolicyBatch.of(network, [Policy.uniform(network, UNIFORM)])
    limit = float(size.total(network, uniform, Metric.SIZE)[0])
    sensitivity = measure_sensitivity(simulation, CHOICES, search.images, search.labels)
    tables = {Metric.SIZE: size.table(network, CHOICES, Metric.SIZE)}
    problem = Problem(network, CHOICES, tables, {Metric.SIZE: limit}, sensitivity.kl)
    return PolicyBatch(network.layer_names, CHOICES, solve(problem).index[None])[0]


def mean_bits(network: Network, policy: Policy) -> float:
    """Return the mean bits of a weight."""
    counts = np.array([layer.weight_count for layer in network.layers])
    return float(np.average([policy[n].weights for n in network.layer_names], weights=counts))


def file_accuracy(model: bytes, examples: Examples) -> float:
    """Return the share of `examples` that ONNX Runtime reads correctly with `model`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = session.get_inputs()[0].name
    found = [session.run(None, {feed: image[None]})[0].argmax() for image in examples.images]
    return float(np.mean(np.array(found) == examples.labels))


def report(name: str, in_torch: float, in_file: float, count: int) -> bool:
    """Print one row; the interval is that of the file's accuracy. Return whether both match."""
    interval = Interval.wilson(round(in_file * count), count)
    print(
        f"{name:<22} torch {in_torch:7.2%}   file {in_file:7.2%} "
        f"[{interval.low:.2%}, {interval.high:.2%}]   differ by {abs(in_torch - in_file):.2%}",
        flush=True,
    )
    return round(abs(in_torch - in_file) * count) <= max(MOST * count, 1)


def run(subject: Subject, phases: tuple[Recipe, Recipe], seed: int, policy: Policy | None) -> bool:
    """Print the whole comparison; return whether the files of trained weights match torch."""
    matches = []
    count = min(_CALIBRATION, len(subject.train) // 2)
    calibration = subject.train.drawn(count, seed).images
    ranges = collect_ranges(subject.network, calibration)
    options = ExportOptions(reduce_range=detect().saturates)
    exporter = Exporter(subject.network, ranges, options)
    simulation = Simulation(exporter, calibration)
    if policy is None:
        policy = choose_policy(simulation, subject.search)
    bits = " ".join(str(policy[name]) for name in subject.network.layer_names)
    print(f"policy: {bits}\nmean bits of a weight: {mean_bits(subject.network, policy):.2f}")
    test, count = subject.test, len(subject.test)

    def post_training(name: str, chosen: Policy, corrections: Corrections) -> None:
        logits = simulation.logits(chosen, test.images, corrections)
        in_torch = float((logits.argmax(1) == test.labels).mean())
        report(name, in_torch, file_accuracy(exporter.build(chosen, corrections), test), count)

    post_training("float", Policy({}), {})
    post_training("plain", policy, {})
    post_training("corrected", policy, simulation.correct(policy))
    network = QatNetwork(exporter, policy, calibration)
    for number, recipe in enumerate(phases, start=1):
        start = time.perf_counter()

        def progress(epoch: int, loss: float, start: float = start) -> None:
            share = accuracy(network, subject.search)
            seconds = time.perf_counter() - start
            print(
                f"  epoch {epoch:3d}  loss {loss:.4f}  search {share:.2%}  {seconds:.0f} s",
                flush=True,
            )

        train(
            network,
            subject.train,
            recipe,
            seed=seed + number,
            augment=subject.augment,
            on_epoch=progress,
        )
        epochs = recipe.epochs * min(recipe.images or len(subject.train), len(subject.train))
        name = f"phase {number}, {epochs / len(subject.train):.1f} epochs"
        in_file = file_accuracy(freeze(network).build(), test)
        matches.append(report(name, accuracy(network, test), in_file, count))
    told = "files of trained weights match" if all(matches) else "A FILE OF TRAINED WEIGHTS DIFFERS"
    print(f"{told}: {100 * MOST:g} points at most, or one image")
    return all(matches)


def main() -> int:
    """Run what the command line asks for; return 0 if the files of trained weights match."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the digits network, one epoch each")
    parser.add_argument("--network", choices=("mobilenet", "resnet"), default="mobilenet")
    parser.add_argument("--policy", type=Path, help="another policy file")
    parser.add_argument("--phase-1", type=int, default=PHASE_1.epochs, help="epochs")
    parser.add_argument("--phase-2", type=int, default=PHASE_2.epochs, help="epochs")
    parser.add_argument("--images", type=int, default=None, help="an epoch's images, drawn anew")
    parser.add_argument("--seed", type=int, default=0, help="of calibration images and training")
    arguments = parser.parse_args()
    epochs = (1, 1) if arguments.quick else (arguments.phase_1, arguments.phase_2)
    batch = 50 if arguments.quick else PHASE_1.batch
    first, second = (
        replace(recipe, epochs=n, images=arguments.images, batch=batch)
        for recipe, n in zip((PHASE_1, PHASE_2), epochs, strict=True)
    )
    policy = None if arguments.policy is None else Policy.read(arguments.policy)
    subject = digits() if arguments.quick else fashion(arguments.network)
    return 0 if run(subject, (first, second), arguments.seed, policy) else 1


if __name__ == "__main__":
    sys.exit(main())
