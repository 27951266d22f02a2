"""``quantmeter calibrate`` without a model: a device, and what prices by it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest

from costmodels.calibrated.device_model import DeviceModel
from costmodels.calibrated.fitting import grow
from costmodels.calibrated.forest import Forest
from costmodels.calibrated.interval import NetworkInterval
from costmodels.calibrated.limits import Limits
from costmodels.model import BackendContext
from costmodels.sketch import Sketch
from quantmeter.cli import main
from tests.hil.device_world import LIMITS, World, drawn


class Said(NamedTuple):
    status: int
    out: str
    err: str


Call = Callable[[str], Said]
CALIBRATE = "calibrate --cost ort --no-store --time 32s"


def _made_up(world: World, patch: pytest.MonkeyPatch) -> None:
    """Let `world` answer instead of this machine; it is simple enough for few trees."""

    @contextmanager
    def measuring(_context: BackendContext) -> Iterator[tuple[Limits, Any]]:
        yield LIMITS, world.measure

    def few_trees(*given: Any) -> Forest:
        return grow(*given[:4], trees=40)

    patch.setattr("hil.device_bench._measuring", measuring)
    patch.setattr("hil.probe_choice.probe", drawn)
    patch.setattr("costmodels.calibrated.fitting.grow", few_trees)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a device, its raw readings, and files that are none."""
    made = tmp_path_factory.mktemp("work")
    sketch = Sketch()
    x = sketch.input((1, 3, 32, 32))
    for i in range(3):
        x = sketch.node("Relu", sketch.conv(x, 16, kernel=3, name=f"conv{i}"))
    pooled = sketch.node("Flatten", sketch.node("GlobalAveragePool", x))
    network = sketch.network(sketch.gemm(pooled, 16, 10, name="head"))
    onnx.save_model(network.model, made / "M.onnx")
    (made / "not.json").write_text('{"version": 1}')
    with pytest.MonkeyPatch.context() as patch:
        _made_up(World(), patch)
        device, raw = made / "DEVICE.json", made / "raw.json.gz"
        assert main(f"{CALIBRATE} --out {device} --raw {raw}".split()) == 0
    return made


@pytest.fixture
def call(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run one command line in the folder, on a machine that is half as fast."""
    monkeypatch.chdir(folder)
    _made_up(World(slower=2.0), monkeypatch)

    def run(line: str) -> Said:
        capsys.readouterr()
        try:
            status = main(line.split())
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        captured = capsys.readouterr()
        return Said(status, captured.out, captured.err)

    return run


def test_a_device_says_how_far_off_it_is_and_how_it_is_used(call: Call, folder: Path) -> None:
    model = DeviceModel.read(folder / "DEVICE.json")
    from quantmeter.prediction import describe_device

    text = "\n".join(describe_device(model))
    assert "random networks fitted" in text
    assert "that were never fitted: mean absolute error" in text
    assert "the closed formula" in text
    assert (folder / "raw.json.gz").stat().st_size > 1000
    assert call("calibrate --help").out.count("--from") >= 1


def test_any_network_is_priced_by_the_device(call: Call) -> None:
    said = call("cost M.onnx --cost calibrated:DEVICE.json --metric latency --policy w8a8 --json")
    assert (said.status, said.err) == (0, "")
    found = json.loads(said.out)
    assert 1e-6 < found["total"] < 1e-2
    assert [layer["name"] for layer in found["layers"]] == ["conv0", "conv1", "conv2", "head"]
    assert found["constant"] > 0


def test_the_interval_is_that_of_the_policy_that_is_priced(call: Call, folder: Path) -> None:
    content = json.loads((folder / "DEVICE.json").read_text())
    interval = NetworkInterval(0.2, 0.25, (1e-5, 1e-1))
    content["validation"]["interval"] = interval.to_dict()
    (folder / "JUDGED.json").write_text(json.dumps(content))
    widths = []
    for bits in ("w8a8", "w32a32"):
        line = f"cost M.onnx --cost calibrated:JUDGED.json --metric latency --policy {bits}"
        found = json.loads(call(f"{line} --json").out)
        widths.append(1 + float(interval.half_width(np.array(found["total"]))))
        ends = [found["total"] / widths[-1], found["total"] * widths[-1]]
        assert found["interval"] == pytest.approx(ends)
        assert "(90 % interval " in call(line).out
    assert widths[0] != pytest.approx(widths[1], rel=1e-3)


def test_a_device_that_too_few_networks_judged_tells_no_interval(call: Call) -> None:
    line = "cost M.onnx --cost calibrated:DEVICE.json --metric latency --policy w8a8"
    assert json.loads(call(f"{line} --json").out)["interval"] is None
    assert "interval" not in call(line).out


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"threads": 7}, "measured with 7 threads, not 1; used as it is"),
        ({"cpu": "another CPU"}, "measured on another CPU with "),
    ],
)
@pytest.mark.parametrize("command", ["cost M.onnx --metric latency", "compare M.onnx --policies 1"])
def test_a_device_that_is_another_is_not_used_silently(
    call: Call, folder: Path, command: str, changed: dict[str, Any], says: str
) -> None:
    content = json.loads((folder / "DEVICE.json").read_text())
    if "cpu" in changed:
        content["device"] |= changed
    else:
        content |= changed
    (folder / "OTHER.json").write_text(json.dumps(content))
    said = call(f"{command} --cost calibrated:OTHER.json")
    assert said.err.startswith(f"OTHER.json: {says}")


def test_the_closed_formula_is_a_preset(call: Call) -> None:
    said = call("cost M.onnx --cost analytical:DEVICE.json --metric latency --json")
    assert (said.status, said.err) == (0, "")
    assert json.loads(said.out)["glue"] == 0


def test_a_device_is_rescaled_by_a_few_probes(call: Call, folder: Path) -> None:
    line = "calibrate --from DEVICE.json --probes 12 --no-store --threads 2"
    said = call(f"{line} --out HALF.json --json")
    assert (said.status, said.err) == (0, "")
    found = json.loads(said.out)
    assert found["source"]["probes"] == 12
    scales = found["source"]["scales"].values()
    assert all(scale == pytest.approx(2.0, rel=0.1) for scale in scales)
    assert found["validation"]["before"]["mean_absolute"] > 0.4
    assert found["validation"]["total"]["mean_absolute"] < 0.1
    assert DeviceModel.read(folder / "HALF.json").threads == 2
    people = call(f"{line} --out HALF.json").out
    assert "as it was: mean absolute error" in people
    assert "--cost calibrated:HALF.json" in people


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("calibrate --out X.json --no-store --time 3s", "give more time"),
        ("calibrate --cost analytical:haq --out X.json", "cannot measure a device"),
        ("calibrate --cost ort:cuda --out X.json", "no such device"),
        ("calibrate --out X.json --data D.npz", "--data belongs to a network"),
        ("calibrate --out X.json --probes 10", "name it by --from"),
        ("calibrate --from not.json --out X.json --no-store", "no calibrated device"),
        ("calibrate --from missing.json --out X.json --no-store", "cannot read"),
        ("calibrate --from DEVICE.json --out DEVICE.json", "would be overwritten"),
        ("calibrate --from DEVICE.json --raw R.gz --out X.json", "leave --from out"),
        ("calibrate --from DEVICE.json --probes 2 --no-store --out X.json", "5 are needed"),
        ("calibrate M.onnx --from DEVICE.json --out X.json", "leave MODEL.onnx out"),
        ("cost M.onnx --metric latency --cost calibrated", "name the device's file"),
        ("cost M.onnx --metric latency --cost calibrated:not.json", "no calibrated device"),
        ("cost M.onnx --metric latency --cost calibrated:M.onnx", "cannot read"),
        ("cost M.onnx --metric energy --cost calibrated:DEVICE.json", "nothing prices energy"),
    ],
)
def test_what_cannot_be_is_one_clear_line(call: Call, folder: Path, line: str, says: str) -> None:
    said = call(line)
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith("quantmeter: error: ")
    assert said.err.count("\n") == 1
    assert says in said.err
    assert not (folder / "X.json").exists()
