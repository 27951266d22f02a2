"""Verbs on another device than the CPU: here the CPU stands in for a GPU, and there is none."""

import json
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from costmodels.errors import BackendError
from costmodels.model import BackendContext
from costmodels.registry import backend
from costmodels.size import ExportedSize
from costmodels.units import Metric
from hil import live, race
from hil.device import detect
from hil.live import OrtLive
from hil.providers import CPU, CUDA
from quantization.bits import DEFAULT_CHOICES, parse_choices
from quantization.errors import PolicyError
from quantization.policy import Policy, PolicyBatch
from quantmeter import costs
from quantmeter.benchmarking import Benchmark, benchmark
from quantmeter.calibrating import calibrate
from quantmeter.cli import main
from quantmeter.costs import measuring_device, parse_costs
from quantmeter.data import Data
from quantmeter.searching import search
from quantmeter.workbench import Workbench, open_workbench
from tests.networks import Subject, uniform

EMULATED = replace(CUDA, chain=CPU.chain, device="cpu", emulated=True)


@pytest.fixture(scope="module")
def bench(small: Subject) -> Workbench:
    return open_workbench(small.network, target=CUDA.target)


@pytest.fixture(scope="module")
def found(bench: Workbench) -> Benchmark:
    policies = {"half.json": uniform(bench.network, "fp16")}
    return benchmark(
        bench, policies, rivals=("float",), blocks=6, provider=EMULATED, accelerator="emulated"
    )


def test_half_precision_is_exported_audited_and_timed_beside_float(found: Benchmark) -> None:
    half, floats = found.results
    assert half.audit.ok
    assert {layer.stored for layer in half.audit.layers} == {"float16"}
    assert half.size_bytes < 0.6 * floats.size_bytes
    assert half.measurement.p10_s > 0
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["device"]["accelerator"] == "emulated"
    assert content["runtime"]["emulated"] is True


def test_the_default_rival_is_what_the_device_has_kernels_for(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(given: race.Race) -> None:
        raise BackendError(", ".join(given.models))

    monkeypatch.setattr(race, "run", loaded)
    with pytest.raises(BackendError, match=r"^float, fp16, float, loaded again$"):
        benchmark(bench, {}, provider=EMULATED)


def test_a_table_of_a_device_has_its_choices_by_default(
    small: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(self: OrtLive, *_given: object, **_named: object) -> None:
        raise BackendError("measured")

    monkeypatch.setattr(live, "calibrate_network", measured)
    emulated = OrtLive(BackendContext(), EMULATED, "emulated")
    monkeypatch.setattr(costs, "backend", lambda _text, _context: emulated)
    with pytest.raises(BackendError, match=r"^measured$"):
        calibrate(small.network, cost="ort:cuda")
    refused = r"no layer runs at w8a8, w4a8 on the CUDA provider; try --choices fp16,w32a32"
    with pytest.raises(BackendError, match=refused):
        calibrate(small.network, cost="ort:cuda", choices=parse_choices("w8a8,w4a8,w32a32"))
    assert parse_costs(["ort:cuda"], BackendContext()).target.default_choices == parse_choices(
        "fp16,w32a32"
    )
    assert parse_costs([], BackendContext()).target.default_choices == DEFAULT_CHOICES


def test_who_measures_is_this_machine_with_the_device_that_a_backend_names() -> None:
    emulated = OrtLive(BackendContext(), EMULATED, "emulated")
    assert measuring_device([ExportedSize(), OrtLive(BackendContext())]) == detect()
    assert measuring_device([OrtLive(BackendContext()), emulated]).identity[-1] == "emulated"


def test_a_search_that_goes_on_is_one_of_the_same_device(
    small: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = backend("analytical:haq", BackendContext())
    named.device = detect(accelerator="emulated")  # type: ignore[attr-defined]
    monkeypatch.setattr(costs, "backend", lambda _text, _context: named)
    data = Data(small.images[:60], None)
    search(
        small.network,
        data,
        cost=["analytical:haq"],
        budgets=["latency=0.7x"],
        method="exact",
        choices=parse_choices("w8a8,w32a32"),
        out=tmp_path,
    )
    asked = json.loads((tmp_path / "request.json").read_text())["request"]
    assert asked["device"][-1] == "emulated"


def test_cold_runs_are_for_the_cpu_only(bench: Workbench) -> None:
    with pytest.raises(BackendError, match="cold runs empty the processor's caches, not a GPU's"):
        benchmark(bench, {}, cold=True, provider=CUDA)


def test_an_export_for_cuda_holds_no_integers(bench: Workbench) -> None:
    assert len(bench.export(uniform(bench.network, "fp16"))) > 0
    with pytest.raises(PolicyError, match="runs as float on the CUDA provider"):
        bench.export(uniform(bench.network, "w8a8"))


def test_sizes_beside_a_gpu_are_those_of_its_files(
    small: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulated = OrtLive(BackendContext(), EMULATED, "emulated")
    monkeypatch.setattr(costs, "backend", lambda _text, _context: emulated)
    batch = PolicyBatch.of(small.network, [uniform(small.network, "fp16"), Policy({})])
    model = parse_costs(["ort:cuda"], BackendContext()).model(Metric.SIZE)
    expected = ExportedSize(CUDA.target).total(small.network, batch, Metric.SIZE)
    assert model.total(small.network, batch, Metric.SIZE).tolist() == expected.tolist()


@pytest.mark.parametrize("verb", ["bench", "export", "calibrate", "calibrate a device"])
def test_without_a_gpu_every_verb_says_so_in_one_line(
    verb: str,
    small: Subject,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, policy, out = (tmp_path / name for name in ("m.onnx", "p.json", "out"))
    model.write_bytes(small.network.model.SerializeToString())
    policy.write_text(Policy({}).to_json(), encoding="utf-8")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    arguments = {
        "bench": ["bench", str(model), str(policy), "--device", "cuda"],
        "export": ["export", str(model), str(policy), "--device", "cuda", "--out", str(out)],
        "calibrate": ["calibrate", str(model), "--cost", "ort:cuda", "--out", str(out)],
        "calibrate a device": ["calibrate", "--cost", "ort:cuda", "--out", str(out)],
    }
    assert main(arguments[verb]) == 2
    said = capsys.readouterr().err.strip()
    assert "no such device: ONNX Runtime" in said
    assert "\n" not in said
    assert not out.exists()
