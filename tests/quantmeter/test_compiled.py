"""``quantmeter export`` and ``bench --runtime tvm``: a library per policy, beside ONNX Runtime."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="Apache TVM is not installed: pip install 'quantmeter[tvm]'")

from costmodels.sketch import Sketch
from hil.tvm.compiling import CompiledNetwork
from quantization.bits import BitWidths
from quantization.errors import DataError, ModelError
from quantization.policy import Policy
from quantization.reading import read_network
from quantmeter.cli import main

IMAGES = 60
BOARD = "mcpu=cortex-a72,mtriple=aarch64-linux-gnu"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, images, and two policies: of integers alone, and with a float layer."""
    made = tmp_path_factory.mktemp("compiled")
    sketch = Sketch()
    x = sketch.conv(sketch.input((1, 3, 8, 8)), 16, kernel=3, name="first")
    x = sketch.conv(sketch.node("Relu", x), 24, name="second")
    x = sketch.node("Flatten", sketch.node("GlobalAveragePool", x), axis=1)
    weight = sketch.constant(np.random.default_rng(3).normal(size=(24, 10)).astype(np.float32))
    network = sketch.network(sketch.node("MatMul", x, weight, name="last"))
    (made / "m.onnx").write_bytes(network.model.SerializeToString())
    random = np.random.default_rng(0)
    images = random.standard_normal((IMAGES, 3, 8, 8)).astype(np.float32)
    np.savez(made / "d.npz", x=images, y=random.integers(0, 10, IMAGES))
    names = network.layer_names
    four, eight = BitWidths(4, 8), BitWidths(8, 8)
    policies = {
        "integers": Policy(dict(zip(names, (eight, four, four), strict=True))),
        "mixed": Policy({names[0]: eight}),
        "narrow": Policy(dict.fromkeys(names, BitWidths(2, 2))),
        "wide": Policy(dict.fromkeys(names, BitWidths(4, 32))),
    }
    for name, policy in policies.items():
        (made / f"{name}.json").write_text(policy.to_json())
    return made


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main([*map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_library_is_written_that_runs_in_one_call(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "q.so"
    status, printed, _ = run(
        capsys, "export", folder / "m.onnx", folder / "integers.json", "--data", folder / "d.npz",
        "--runtime", "tvm", "--out", out, "--json",
    )  # fmt: skip
    assert status == 0
    told = json.loads(printed)
    assert told["size_bytes"] == out.stat().st_size
    assert (told["kernels"]["4 bits"], told["kernels"]["8 bits"]) == (2, 1)
    assert told["outputs"] == {
        "images": 8, "exact": True, "integers_only": True, "largest_difference": 0.0,
        "against": "onnxruntime",
    }  # fmt: skip
    compiled = CompiledNetwork.read(out)
    assert compiled.inputs == {"x": (1, 3, 8, 8)}
    image = np.load(folder / "d.npz")["x"][:1]
    [logits] = compiled.run({"x": image})
    assert logits.shape == (1, 10)

    onnx = folder / "q.onnx"
    status, _, _ = run(
        capsys, "export", folder / "m.onnx", folder / "integers.json", "--data", folder / "d.npz",
        "--out", onnx,
    )  # fmt: skip
    assert status == 0
    from hil.ort import Runner

    [expected] = Runner(onnx.read_bytes(), 1, {"x": image})()
    np.testing.assert_array_equal(logits, expected)


def test_a_policy_that_onnxruntime_cannot_run_is_compared_with_the_simulation(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, printed, _ = run(
        capsys, "export", folder / "m.onnx", folder / "narrow.json",
        "--runtime", "tvm", "--out", folder / "narrow.so", "--json",
    )  # fmt: skip
    assert status == 0
    outputs = json.loads(printed)["outputs"]
    assert outputs["against"] == "the accuracy simulation"
    assert outputs["largest_difference"] < 1e-2


def test_an_archive_for_another_processor_is_written_without_timing_anything(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "board.tar"
    status, printed, _ = run(
        capsys, "export", folder / "m.onnx", folder / "integers.json", "--out", out,
        "--runtime", f"tvm:{BOARD}",
    )  # fmt: skip
    assert status == 0
    assert "portable" in printed
    assert "rule of thumb" in printed
    assert out.stat().st_size > 0


def test_compiled_policies_are_timed_beside_onnxruntime(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, printed, _ = run(
        capsys, "bench", folder / "m.onnx", folder / "integers.json", folder / "mixed.json",
        "--data", folder / "d.npz", "--runtime", "tvm", "--cost", "tvm", "--blocks", 8, "--json",
    )  # fmt: skip
    assert status == 0
    found: dict[str, Any] = json.loads(printed)
    rows = {row["policy"]: row for row in found["results"]}
    integers, mixed = (rows[str(folder / f"{name}.json")] for name in ("integers", "mixed"))
    assert integers["outputs"]["exact"]
    assert integers["outputs"]["integers_only"]
    assert not mixed["outputs"]["integers_only"]
    assert mixed["outputs"]["largest_difference"] < 0.1
    assert rows["w8a8"]["outputs"]["exact"]
    assert rows["float"]["ratio_to_float"]["mid"] == 1
    assert rows["w8a8 (onnxruntime)"]["size_bytes"] > 0
    for row in (integers, mixed, rows["w8a8"]):
        assert row["predicted_s"] > 0
        assert 0 <= row["accuracy"] <= 1
    network = read_network(folder / "m.onnx")
    assert sum(n for name, n in integers["kernels"].items() if "bits" in name) == len(
        network.layers
    )


def test_a_stored_table_is_of_this_device_and_is_measured_anew_instead_of_drifting(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, table = folder / "m.onnx", folder / "t.json"
    status, printed, _ = run(
        capsys, "calibrate", model, "--cost", "tvm", "--choices", "w8a8,w32a32", "--out", table
    )
    assert status == 0
    assert "kernels timed" in printed
    status, printed, _ = run(
        capsys, "cost", model, "--cost", f"table:{table}", "--policy", "w8a8", "--json"
    )
    assert status == 0
    assert "this is" not in printed
    status, _, error = run(capsys, "drift", model, table)
    assert status == 2
    assert "calibrate --cost tvm --anew" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("integers.json", "--runtime", "tvn"), "no runtime 'tvn'"),
        (("integers.json", "--runtime", "tvm", "--device", "cuda"), "leave --device out"),
        (("integers.json", "--runtime", "tvm", "--energy"), "leave it out"),
        (("integers.json", "--runtime", "tvm", "--threads", "2"), "one thread"),
        (("integers.json", "--runtime", f"tvm:{BOARD}"), "times on this machine"),
        (("integers.json", "--runtime", "tvm", "--cost", f"tvm:{BOARD}"), "do not run here"),
        (("wide.json", "--runtime", "tvm"), "multiplies floats by integers"),
    ],
)
def test_what_cannot_be_timed_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    name, *rest = arguments
    status, _, error = run(capsys, "bench", folder / "m.onnx", folder / name, *rest)
    assert status == 2
    assert words in error
    assert len(error.strip().splitlines()) == 1


def test_a_compiled_network_has_a_suffix(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, error = run(
        capsys, "export", folder / "m.onnx", folder / "integers.json",
        "--runtime", "tvm", "--out", folder / "q.onnx.so.zip",
    )  # fmt: skip
    assert status == 2
    assert ".so or .tar" in error


def test_what_is_no_library_is_one_clear_line(folder: Path) -> None:
    whole = (folder / "q.so").read_bytes()
    (folder / "cut.so").write_bytes(whole[: len(whole) // 2])
    for name, words in (
        ("cut.so", "cut off"),
        ("m.onnx", "no shared library"),
        ("missing.so", "No such file"),
        (".", "Is a directory"),
    ):
        with pytest.raises(ModelError, match=words):
            CompiledNetwork.read(folder / name)
    compiled = CompiledNetwork.read(folder / "q.so")
    images = np.load(folder / "d.npz")["x"]
    with pytest.raises(DataError, match=r"of shape \(1, 3, 8, 8\) a call, not \(2, 3, 8, 8\)"):
        compiled.run({"x": images[:2]})
    with pytest.raises(DataError, match="no input 'z'"):
        compiled.run({"x": images[:1], "z": images[:1]})


def test_a_library_needs_its_runtime_and_its_system(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("export", folder / "m.onnx", folder / "integers.json", "--out", folder / "x.so")
    for more, words in (
        ((), "add --runtime tvm"),
        (("--runtime", f"tvm:{BOARD}"), "write a .tar"),
        (("--runtime", "tvm", "--remote", "127.0.0.1:1/k"), "no tracker answers"),
        (("--remote", "127.0.0.1:1/k"), "only --cost tvm"),
    ):
        status, _, error = run(capsys, *command, *more)
        assert status == 2
        assert words in error
    status, _, error = run(
        capsys, "bench", folder / "m.onnx", folder / "integers.json",
        "--runtime", "tvm", "--remote", "127.0.0.1:1/k",
    )  # fmt: skip
    assert status == 2
    assert "times on this machine" in error


@pytest.mark.parametrize(
    ("cost", "words"),
    [("latency=analytical:haq", "only --cost tvm"), ("latency=tvm", "no tracker answers")],
)
def test_a_search_measures_on_a_board_by_tvm_only(
    folder: Path, capsys: pytest.CaptureFixture[str], cost: str, words: str
) -> None:
    status, _, error = run(
        capsys, "search", folder / "m.onnx", "--data", folder / "d.npz", "--cost", cost,
        "--budget", "latency=0.9x", "--remote", "127.0.0.1:1/k", "--out", folder / "RUN",
    )  # fmt: skip
    assert status == 2
    assert words in error
