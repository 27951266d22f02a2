"""Verbs on another device than the CPU: here the CPU stands in for a GPU, and there is none."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from costmodels.errors import BackendError
from costmodels.model import BackendContext
from costmodels.size import ExportedSize
from costmodels.units import Metric
from hil.live import OrtLive
from hil.providers import CPU, CUDA
from quantization.errors import PolicyError
from quantization.policy import Policy, PolicyBatch
from quantmeter import costs
from quantmeter.benchmarking import Benchmark, benchmark
from quantmeter.cli import main
from quantmeter.costs import parse_costs
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
    live = OrtLive(BackendContext(), EMULATED, "emulated")
    monkeypatch.setattr(costs, "backend", lambda _text, _context: live)
    batch = PolicyBatch.of(small.network, [uniform(small.network, "fp16"), Policy({})])
    model = parse_costs(["ort:cuda"], BackendContext()).model(Metric.SIZE)
    expected = ExportedSize(CUDA.target).total(small.network, batch, Metric.SIZE)
    assert model.total(small.network, batch, Metric.SIZE).tolist() == expected.tolist()


@pytest.mark.parametrize("verb", ["bench", "export", "calibrate", "calibrate a device"])
def test_without_a_gpu_every_verb_says_so_in_one_line(
    verb: str, small: Subject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, policy, out = (tmp_path / name for name in ("m.onnx", "p.json", "out"))
    model.write_bytes(small.network.model.SerializeToString())
    policy.write_text(Policy({}).to_json(), encoding="utf-8")
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
