"""A recorded run of a GPU: half precision beside float32, timed, profiled, and calibrated.

    python benchmarks/gpu.py                       # three networks, two minutes each
    python benchmarks/gpu.py --network resnet18 --time 60s --out FILE
    python benchmarks/gpu.py --quick               # one small network, a few seconds

It needs an NVIDIA GPU and onnxruntime-gpu, in an environment of its own (docs/decisions/0017):

    python -m venv gpu && . gpu/bin/activate
    pip install ".[gpu]" && pip uninstall -y onnxruntime
    pip install --force-reinstall --no-deps onnxruntime-gpu

Without them it says so in one line; with --quick that is no failure. The file that it writes is
what `tests/hil/test_recording.py` replays where there is no GPU: raw samples, the profiler's raw
events, and how far the outputs in half precision are from those in float32.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from costmodels.errors import BackendError
from costmodels.model import BackendContext
from costmodels.table import CostTable
from costmodels.units import parse_duration
from hil.calibration import Calibration, calibrate_network
from hil.energy import NotMeasured
from hil.energy_bench import EnergyJob, take_energy
from hil.live import OrtLive
from hil.ort import Runner, one_feed, random_inputs, recorded_options
from hil.providers import Provider, find_provider
from hil.recording import RecordedNetwork, Recorder, Recording
from hil.tables import measured_table
from quantization.deployment import ExportOptions
from quantization.export import Exporter
from quantization.network import Network
from quantization.policy import Policy
from quantization.ranges import made_up_ranges
from quantization.reading import read_network
from quantmeter.reference_task import SHIPPED_MODEL

ROOT = Path(__file__).parents[1]
FILE = ROOT / "tests/hil/traces/gpu.json.gz"
REFERENCE = "digits"
NETWORKS = (REFERENCE, "mobilenet_v2", "resnet18")


def built(name: str) -> Network:
    """Return the shipped reference network, or one of `benchmarks.networks`."""
    if name == REFERENCE:
        return read_network(SHIPPED_MODEL)
    from benchmarks.networks import build

    return read_network(build(name))


def calibrated(
    network: Network, recorded: RecordedNetwork, provider: Provider
) -> tuple[Calibration, CostTable]:
    """Replay the calibration of a network; the same recording gives the same table."""
    found = calibrate_network(
        network,
        recorded.measure,
        recorded.inspect(network),
        seconds=recorded.seconds,
        seed=recorded.seed,
        progress=lambda _share, _what: None,
        target=provider.target,
    )
    return found, measured_table(network, found, {"backend": "replayed"}, provider.target)


def record_network(live: OrtLive, name: str, seconds: float, seed: int = 0) -> RecordedNetwork:
    """Calibrate one network on the device of `live`, and write down what it asked and got."""
    network, recorder = built(name), Recorder()
    calibrate_network(
        network,
        recorder.measuring(live.measure(network)),
        recorder.inspecting(network, live.profile(network)),
        seconds=seconds,
        seed=seed,
        progress=lambda _share, _what: None,
        target=live.target,
    )
    facts = outputs_and_energy(network, live.provider)
    return RecordedNetwork(
        name, network.digest, seconds, seed, recorder.timed, recorder.profiles, facts
    )


def outputs_and_energy(network: Network, provider: Provider) -> dict[str, Any]:
    """Return how far outputs in half precision are from float32's, and joules or why there are no.

    ``largest`` is of the float outputs, ``difference`` the largest one between the two.
    """
    options = ExportOptions(weight_method="minmax", pack=False)
    exporter = Exporter(network, made_up_ranges(network), options, provider.target)
    half = Policy.uniform(network, provider.target.narrow)
    models = {"float": exporter.build(Policy({})), "half": exporter.build(half)}
    feed = one_feed(network, random_inputs(network, 1))
    found = {
        name: Runner(model, 1, feed, provider=provider).outputs()[0]
        for name, model in models.items()
    }
    taken = take_energy(EnergyJob(models, feed, 1, provider=provider))
    energy: Mapping[str, Any] = (
        {"reason": taken.reason}
        if isinstance(taken, NotMeasured)
        else {name: each.to_dict() for name, each in taken.items()}
    )
    return {
        "largest": float(np.abs(found["float"]).max()),
        "difference": float(np.abs(found["float"] - found["half"]).max()),
        "energy": energy,
    }


def record(
    live: OrtLive, names: Sequence[str], seconds: float, say: Callable[[str], None]
) -> Recording:
    """Record all networks, and say what each gave."""
    networks = []
    for name in names:
        networks.append(record_network(live, name, seconds))
        say(described(networks[-1], live.provider))
    return Recording(live.device, 1, recorded_options(1, live.provider), networks, time.time())


def described(recorded: RecordedNetwork, provider: Provider) -> str:
    """Return one line of figures."""
    network = built(recorded.name)
    found, _ = calibrated(network, recorded, provider)
    all_half = found.timed[0]
    error = found.validation.total.mean_absolute if found.validation is not None else None
    return (
        f"{recorded.name:<16} float {1e6 * found.float_s:8.0f} us   half / float "
        f"{all_half.ratio:5.3f}   {len(found.timed)} policies   error of unseen policies "
        f"{'-' if error is None else format(error, '.1%')}   outputs differ by "
        f"{recorded.facts['difference'] / max(recorded.facts['largest'], 1e-30):.1e}"
    )


def main() -> int:
    """Record, or say why that is not possible here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", action="append", choices=NETWORKS, default=[])
    parser.add_argument("--time", default="2m", help="for each network (default 2m)")
    parser.add_argument("--out", type=Path, default=None, help=f"default {FILE.relative_to(ROOT)}")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    try:
        provider, accelerator = find_provider("cuda")
    except BackendError as error:
        print(f"no run of a GPU was recorded: {error}")
        return 0 if arguments.quick else 1
    seconds = 10.0 if arguments.quick else parse_duration(arguments.time)
    names = [REFERENCE] if arguments.quick else arguments.network or list(NETWORKS)
    live = OrtLive(BackendContext(seconds=seconds), provider, accelerator)
    print(f"{accelerator}, {live.device.runtime} {live.device.runtime_version}")
    found = record(live, names, seconds, print)
    out = arguments.out or (None if arguments.quick else FILE)
    if out is not None:
        found.write(out)
        print(f"{out}: recorded; commit it, and tests/hil/test_recording.py replays it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
