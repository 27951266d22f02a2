"""Is what the exporter chooses the fastest among equal accuracies?

    python benchmarks/exporter_choices.py                       # MobileNetV2, about two minutes
    python benchmarks/exporter_choices.py mobilenet_v2 M.onnx   # others, by name or file
    python benchmarks/exporter_choices.py --quick               # small images, for the test

Each row is another file of the same policy, timed in turns with the exporter's own: the paired
ratio with its 95 % interval (above 1: slower than what the exporter writes), and how much closer to
the float network its outputs are, in dB of signal to noise (0.0: as close; "same": equal to the
last bit). The row "the same file again" tells what two loads of one file differ by.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `benchmarks` is found

from benchmarks import networks, other_files
from hil.ort import Runner, one_feed, random_inputs
from hil.timing import Ratio, TimingOptions, paired_ratio, time_interleaved
from quantization.bits import FLOAT32, BitWidths, Format
from quantization.export import Exporter
from quantization.formats import formats
from quantization.network import OUTPUT, Network
from quantization.policy import Policy
from quantization.quantizer import Float32Array
from quantization.ranges import collect_ranges
from quantization.reading import read_network

THRESHOLD = 0.03
"""Share of a network's time below which a difference decides nothing."""
EQUAL_DB = 0.5
"""Signal to noise that an alternative may lose and still count as equally accurate."""

W8A8 = BitWidths(8, 8)
IMAGES = 8
QUICK = TimingOptions(blocks=3, samples=1, warm_runs=1)
FULL = TimingOptions(blocks=15, samples=2, warm_runs=1)

Build = Callable[[Exporter, Policy], bytes]


@dataclass(frozen=True)
class Row:
    """One alternative beside what the exporter writes.

    Args:
        policy: what both are files of.
        choice: what is chosen.
        alternative: what was taken instead.
        ratio: its time over that of the exporter's file.
        gained_db: signal to noise that it gains; None if outputs are equal to the last bit.
    """

    policy: str
    choice: str
    alternative: str
    ratio: Ratio
    gained_db: float | None

    @property
    def verdict(self) -> str:
        """Say whether the exporter should have chosen the alternative."""
        if self.ratio.high < 1 - THRESHOLD:
            accurate = self.gained_db is None or self.gained_db > -EQUAL_DB
            return "FASTER: change the exporter" if accurate else "faster, less accurate"
        if self.ratio.low > 1 + THRESHOLD:
            return "slower"
        return f"within {THRESHOLD:.0%} or not told apart"


def policies(network: Network) -> dict[str, Policy]:
    """Return what is exported: all layers INT8; depthwise ones float; every layer by a coin."""
    coin = np.random.default_rng(0).random(len(network.layers)) < 0.5
    mixed = {n: W8A8 if c else FLOAT32 for n, c in zip(network.layer_names, coin, strict=True)}
    found = {"uniform INT8": Policy.uniform(network, W8A8), "by a coin": Policy(mixed)}
    dense = {layer.name: W8A8 for layer in network.layers if not layer.is_depthwise}
    if len(dense) < len(network.layers):
        found["depthwise float"] = Policy(dense)
    return found


def leaves_integers(network: Network, policy: Policy) -> bool:
    """Whether any operator reads floats where a tensor was written as integers."""
    return any(
        network.tensor_by_name[name].consumers != (OUTPUT,)
        for name, _, target in formats(network, policy).conversions
        if target == Format.FLOAT32
    )


def alternatives(network: Network, images: Float32Array) -> Iterator[tuple[str, str, str, Build]]:
    """Yield policy, choice, alternative and how its file is built."""
    uniform = "uniform INT8"
    yield uniform, "weights", "one scale per tensor", other_files.per_tensor_weights
    yield uniform, "signedness", "activations signed", other_files.signed_activations
    yield uniform, "signedness", "weights unsigned", other_files.unsigned_weights
    for kind in other_files.integer_glue(network):
        build = other_files.with_float_glue((kind,))
        yield uniform, "glue", f"{kind} on floats", build
    every = other_files.with_float_glue(other_files.integer_glue(network))
    yield uniform, "glue", "all on floats", every
    yield uniform, "everything", "ONNX Runtime's quantizer", other_files.by_ort_quantizer(images)
    for name, policy in policies(network).items():
        yield name, "everything", "the same file again", Exporter.build
        if name != uniform:
            yield name, "glue", "in the narrowest format read", other_files.narrowest
        if not leaves_integers(network, policy):
            continue
        yield name, "float guard", "scales repeated for all readers", other_files.always_repeated
        yield name, "float guard", "scales repeated along rows", other_files.repeated_along_rows
        yield name, "float guard", "a Clip to the whole range", other_files.clipped
        yield name, "float guard", "Cast, Sub, Mul", other_files.in_steps
    yield uniform, "precision", "float network", lambda exporter, _: exporter.build(Policy({}))


def signal_to_noise(found: Sequence[Float32Array], exact: Sequence[Float32Array]) -> float:
    """Return the signal-to-noise ratio of outputs in dB."""
    noise = sum(float(np.square(f - e).sum()) for f, e in zip(found, exact, strict=True))
    signal = sum(float(np.square(e).sum()) for e in exact)
    return float(10 * np.log10(signal / max(noise, 1e-30)))


def measure(network: Network, timing: TimingOptions) -> Iterator[Row]:
    """Time all alternatives of one network; yields a row for each."""
    images = random_inputs(network, IMAGES)
    exporter = Exporter(network, collect_ranges(network, images))
    feeds = [one_feed(network, image[None]) for image in images]

    def outputs(runner: Runner) -> list[Float32Array]:
        return [runner.run(feed)[0] for feed in feeds]

    exact = outputs(Runner(exporter.build(Policy({})), 1, feeds[0]))
    wanted = list(alternatives(network, images))
    for name, policy in policies(network).items():
        ours = exporter.build(policy)
        runners = {"": Runner(ours, 1, feeds[0])}
        choices = {}
        for of, choice, label, build in wanted:
            file = build(exporter, policy) if of == name else b""
            # A way that changes nothing in this network is not timed; the A/A row is meant to.
            if file and (file != ours or build is Exporter.build):
                runners[label] = Runner(file, 1, feeds[0])
                choices[label] = choice
        timed = time_interleaved(runners, timing)
        own = outputs(runners[""])
        level = signal_to_noise(own, exact)
        for label, choice in choices.items():
            found = outputs(runners[label])
            same = all(np.array_equal(a, b) for a, b in zip(found, own, strict=True))
            gained = None if same else signal_to_noise(found, exact) - level
            yield Row(name, choice, label, paired_ratio(timed[label], timed[""]), gained)


def read(name: str, size: int) -> Network:
    """Return a network by its name in `benchmarks.networks`, or from a file."""
    if name.endswith(".onnx"):
        return read_network(Path(name))
    return read_network(networks.build(name, size=size))


def main() -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=["mobilenet_v2"], help="names or ONNX files")
    parser.add_argument("--quick", action="store_true", help="small images, few runs")
    arguments = parser.parse_args()
    for name in arguments.names:
        network = read(name, 32 if arguments.quick else 224)
        print(f"\n{Path(name).stem}: time over that of the exporter's file")
        for row in measure(network, QUICK if arguments.quick else FULL):
            ratio = f"{row.ratio.mid:6.3f} [{row.ratio.low:.3f} {row.ratio.high:.3f}]"
            gained = "   same" if row.gained_db is None else f"{row.gained_db:+7.1f}"
            print(
                f"{row.policy:16s} {row.choice:12s} {row.alternative:32s} {ratio} "
                f"{gained} dB  {row.verdict if row.choice != 'precision' else ''}",
                flush=True,
            )


if __name__ == "__main__":
    main()
