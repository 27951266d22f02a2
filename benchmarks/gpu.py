"""A recorded run of a GPU: half precision beside float32, timed, profiled, and calibrated.

    python benchmarks/gpu.py                       # three networks, two minutes each
    python benchmarks/gpu.py --network resnet18 --time 60s --out FILE
    python benchmarks/gpu.py --quick               # one small network, one minute

It needs an NVIDIA GPU and onnxruntime-gpu, in an environment of its own (docs/decisions/0017):

    python -m venv gpu && . gpu/bin/activate
    pip install ".[gpu,train,energy]" && pip uninstall -y onnxruntime
    pip install --force-reinstall --no-deps onnxruntime-gpu

Without them it says so in one line; with --quick that is no failure. The file that it writes is
what `tests/hil/test_recording.py` replays where there is no GPU: raw samples, the profiler's raw
events, and how far the outputs in half precision are from those in float32. It is written after
each network, and holds what failed too: a device that does other than expected is what it is for.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from costmodels.errors import BackendError
from costmodels.model import BackendContext
from costmodels.table import CostTable
from costmodels.units import parse_duration
from hil.calibration import Calibration, as_policy, calibrate_network
from hil.energy import NotMeasured
from hil.energy_bench import EnergyJob, take_energy
from hil.live import OrtLive
from hil.ort import Runner, one_feed, random_inputs, recorded_options
from hil.providers import Provider, find_provider
from hil.recording import RecordedNetwork, Recorder, Recording
from hil.tables import measured_table
from hil.worker_process import one_line
from quantization.deployment import ExportOptions, not_deployable
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


def record_network(
    live: OrtLive, name: str, network: Network, seconds: float, seed: int = 0
) -> RecordedNetwork:
    """Calibrate one network on the device of `live`, and write down what it asked and got.

    Whatever ends it, what was seen until then is returned; ``failure`` of its facts says what did.
    """
    recorder, facts = Recorder(), dict[str, Any]()
    inspect, narrow = recorder.inspecting(network, live.raw_profile(network)), live.target.narrow
    free = np.array([not not_deployable(layer, narrow, live.target) for layer in network.layers])
    for pattern in (free & False, free):  # first, so that graphs that no audit passes are seen too
        attempt(lambda pattern=pattern: inspect(as_policy(network, pattern, narrow)))
    failure = attempt(
        lambda: calibrate_network(
            network,
            recorder.measuring(live.measure(network)),
            inspect,
            seconds=seconds,
            seed=seed,
            progress=lambda _share, _what: None,
            target=live.target,
        )
    )
    if failure is not None:
        facts["failure"] = failure
    timed = [entry for entry in recorder.timed if "failure" in entry or "policy" in entry]
    return RecordedNetwork(name, network.digest, seconds, seed, timed, recorder.profiles, facts)


def attempt(work: Callable[[], object]) -> str | None:
    """Do `work`; return in one line what went wrong."""
    try:
        work()
    except Exception as error:  # of a device nobody saw, any; what was recorded is kept
        return one_line(error)
    return None


def outputs_and_energy(network: Network, provider: Provider) -> dict[str, Any]:
    """Return how far outputs in half precision are from float32's, and joules or why there are no.

    ``largest`` is of the float outputs, ``difference`` the largest one between the two; None if it
    is no finite number.
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
        "largest": _finite(np.abs(found["float"]).max()),
        "difference": _finite(np.abs(found["float"] - found["half"]).max()),
        "energy": energy,
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None  # JSON has no others


def record(
    live: OrtLive,
    names: Sequence[str],
    seconds: float,
    say: Callable[[str], None],
    keep: Callable[[Recording], None] = lambda _so_far: None,
) -> Recording:
    """Record all networks; `keep` what there is after each, then `say` what it gave."""
    networks = {name: built(name) for name in names}  # before anything is measured
    recorded: list[RecordedNetwork] = []

    def so_far() -> Recording:
        options = recorded_options(1, live.provider)
        return Recording(live.device, 1, options, list(recorded), time.time())

    for name, network in networks.items():
        recorded.append(record_network(live, name, network, seconds))
        keep(so_far())
        facts = dict(recorded[-1].facts)
        missed = attempt(
            lambda seen=facts, of=network: seen.update(outputs_and_energy(of, live.provider))
        )
        if missed is not None:
            facts["outputs_failure"] = missed
        recorded[-1] = replace(recorded[-1], facts=facts)
        keep(so_far())
        failure = facts.get("failure") or attempt(
            lambda of=network: say(described(recorded[-1], of, live.provider))
        )
        for each in filter(None, (failure, missed)):
            say(f"{name:<16} recorded, but not as expected: {each}")
    return so_far()


def described(recorded: RecordedNetwork, network: Network, provider: Provider) -> str:
    """Return one line of figures."""
    found, _ = calibrated(network, recorded, provider)
    all_half = found.timed[0]
    error = found.validation.total.mean_absolute if found.validation is not None else None
    largest, difference = (recorded.facts.get(name) for name in ("largest", "difference"))
    apart = difference / max(largest, 1e-30) if None not in (largest, difference) else math.nan
    return (
        f"{recorded.name:<16} float {1e6 * found.float_s:8.0f} us   half / float "
        f"{all_half.ratio:5.3f}   {len(found.timed)} policies   error of unseen policies "
        f"{'-' if error is None else format(error, '.1%')}   outputs differ by {apart:.1e}"
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
    seconds = 60.0 if arguments.quick else parse_duration(arguments.time)
    names = [REFERENCE] if arguments.quick else arguments.network or list(NETWORKS)
    live = OrtLive(BackendContext(seconds=seconds), provider, accelerator)
    print(f"{accelerator}, {live.device.runtime} {live.device.runtime_version}")
    out = arguments.out or (None if arguments.quick else FILE)
    keep = (lambda _so_far: None) if out is None else (lambda so_far: so_far.write(out))
    found = record(live, names, seconds, print, keep)
    if out is not None:
        print(f"{out}: recorded; commit it, and tests/hil/test_recording.py replays it")
    return int(any("failure" in network.facts for network in found.networks))


if __name__ == "__main__":
    sys.exit(main())
