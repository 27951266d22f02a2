"""The backend ``calibrated:DEVICE.json`` on a device that is known by a law."""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnxruntime
import pytest

from costmodels.calibrated.backend import Calibrated, create
from costmodels.calibrated.device_model import LEVEL_SIGMAS
from costmodels.calibrated.domain import Domain
from costmodels.calibrated.items import items_of, layer_kind
from costmodels.errors import BackendError, TableError
from costmodels.model import BackendContext, CostModel
from costmodels.pricing import total
from costmodels.registry import backend
from costmodels.sketch import Sketch, example_network
from costmodels.table import Provenance
from costmodels.testing import CostModelContract
from costmodels.units import Metric
from hil.probe_timer import ProbeJob, paid_items, policies_of
from quantization.bits import DEFAULT_CHOICES, parse_choices
from quantization.network import Network
from quantization.policy import PolicyBatch
from tests.costmodels.calibrated.world import World
from tests.hil.device_world import drawn

CHOICES = parse_choices("w8a8,w32a32")


class TestCalibrated(CostModelContract):
    choices = parse_choices("w2a2,w2a8,w4a8,w8a8,w16a16,w8a32,fp16,w32a32")
    path: ClassVar[Path]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _file(cls, world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.path = tmp_path_factory.mktemp("device") / "device.json"
        cls.path.write_text(world.model.to_json())

    @classmethod
    def model(cls) -> CostModel:
        return backend(f"calibrated:{cls.path}")


@pytest.mark.parametrize("seed", [1003, 1006, 1009])
def test_a_policy_costs_what_the_model_says_of_its_rows(world: World, seed: int) -> None:
    network = drawn(seed)
    table = Calibrated(world.model).table(network, CHOICES, Metric.LATENCY)
    for policy in policies_of(network, ProbeJob(seed)).values():
        [priced] = total(table, network, PolicyBatch.of(network, [policy]))
        rows = world.model.seconds(*paid_items(network, policy))
        assert priced == pytest.approx(world.model.constant_s + rows.sum(), rel=1e-9)


def test_choices_that_execute_the_same_kernel_cost_the_same(world: World) -> None:
    choices = parse_choices("w2a8,w3a8,w4a8,w5a8,w6a8,w7a8,w8a8,w32a32")
    table = Calibrated(world.model).table(example_network(), choices, Metric.LATENCY)
    value = table.unary.value
    np.testing.assert_array_equal(value[:, :7], np.repeat(value[:, 6:7], 7, axis=1))
    assert (value[:, 6] != value[:, 7]).any()


def test_widths_that_cannot_be_deployed_are_infinite(world: World) -> None:
    choices = parse_choices("w4a4,w16a16,w8a32,fp16,w8a8")
    table = Calibrated(world.model).table(example_network(), choices, Metric.LATENCY)
    assert np.isinf(table.unary.value[:, :4]).all()
    assert np.isfinite(table.unary.value[:, 4]).all()


def test_a_transposed_convolution_is_priced_in_float_only(world: World) -> None:
    network = _with_transposed_convolution()
    measured = {**world.model.domain.extents, "ConvTranspose": world.model.domain.extents["Conv"]}
    model = replace(world.model, domain=Domain(measured))
    table = Calibrated(model).table(network, CHOICES, Metric.LATENCY)
    row = table.layers.index("up")
    assert np.isinf(table.unary.value[row, 0])
    assert np.isfinite(table.unary.value[row, 1])


def _with_transposed_convolution() -> Network:
    sketch = Sketch()
    x = sketch.conv(sketch.input((1, 8, 8, 8)), 16, kernel=3, name="first")
    weight = sketch.constant(np.full((16, 8, 2, 2), 0.1, np.float32))
    up = sketch.node("ConvTranspose", x, weight, name="up", kernel_shape=[2, 2], strides=[2, 2])
    return sketch.network(up)


def test_a_layer_of_a_kind_that_was_never_measured_is_one_error_that_names_it(
    world: World,
) -> None:
    with pytest.raises(BackendError, match=r"'up' \(ConvTranspose\)"):
        Calibrated(world.model).table(_with_transposed_convolution(), CHOICES, Metric.LATENCY)


def test_what_lies_outside_is_marked_and_noted(world: World) -> None:
    sketch = Sketch()
    x = sketch.conv(sketch.input((1, 64, 28, 28)), 64, kernel=3, name="usual")
    x = sketch.node("Erf", sketch.conv(x, 8192, name="huge"), name="odd")
    network = sketch.network(x)
    table = Calibrated(world.model).table(network, CHOICES, Metric.LATENCY)
    known = dict(zip(table.layers, table.unary.provenance.tolist(), strict=True))
    assert known == {
        "usual": [Provenance.CALIBRATED.value] * 2,
        "huge": [Provenance.ASSUMED.value] * 2,
    }
    assert table.glue.provenance.tolist() == [[Provenance.ASSUMED.value] * 2]
    notes = [note for note in table.source["notes"] if "outside" in note]
    named = [note.partition("extrapolated: ")[2] for note in notes[:2]]
    assert named == ["layer huge", "operator odd"]


def test_a_network_like_those_that_were_measured_is_calibrated_throughout(world: World) -> None:
    network = drawn(1006)
    table = Calibrated(world.model).table(network, CHOICES, Metric.LATENCY)
    assert not any("outside" in note for note in table.source["notes"])
    for cells in (table.unary, table.glue):
        assert (cells.provenance == Provenance.CALIBRATED.value).all()
    tensors = range(len(network.tensors))
    for place in ((0, 1), (1, 0)):
        assert set(table.conversion.provenance[tensors, *place]) == {Provenance.CALIBRATED.value}
    for place in ((0, 0), (1, 1)):
        assert (table.conversion.value[tensors, *place] == 0).all()


def test_many_operators_outside_are_counted_and_three_are_named(world: World) -> None:
    sketch = Sketch()
    x = sketch.input((1, 64, 4, 4))
    for i in range(5):
        x = sketch.node("Erf", sketch.conv(x, 64, name=f"c{i}"), name=f"odd{i}")
    table = Calibrated(world.model).table(sketch.network(x), CHOICES, Metric.LATENCY)
    assert any("operator odd0, odd1, odd2 and 2 more" in n for n in table.source["notes"])


def test_the_source_says_who_was_measured_and_how_well(world: World) -> None:
    table = Calibrated(world.model).table(example_network(), CHOICES, Metric.LATENCY)
    assert table.source["device"] == world.model.device.to_dict()
    assert table.source["validation"] == world.model.validation
    assert table.constant == world.model.constant_s
    assert world.model.interval is not None
    assert table.source["validation"]["interval"] == world.model.interval.to_dict()
    assert "12 random networks, never fitted" in table.source["notes"][0]


def test_a_network_far_larger_than_any_is_assumed_as_a_whole(world: World) -> None:
    """Each of its layers was measured; so many of them in one network were not."""
    network = _inverted_bottlenecks(52)
    assert not world.model.domain.larger(items_of(network).layers)
    sketch = Sketch()
    x = sketch.input((1, 64, 28, 28))
    for _ in range(900):
        x = sketch.conv(x, 64, kernel=3)
    table = Calibrated(world.model).table(sketch.network(x), CHOICES, Metric.LATENCY)
    assert set(table.unary.provenance.ravel()) == {Provenance.ASSUMED.value}
    assert any("as a whole is far larger" in note for note in table.source["notes"])


def test_a_cell_has_the_standard_deviation_of_its_interval(world: World) -> None:
    network = drawn(1003)
    table = Calibrated(world.model).table(network, CHOICES, Metric.LATENCY)
    assert table.unary.uncertainty is not None
    plain = [i for i, layer in enumerate(network.layers) if layer_kind(layer) == "Conv"]
    assert plain
    width = world.model.half_widths["Conv, float"]
    expected = table.unary.value[plain, 1] * width / LEVEL_SIGMAS
    np.testing.assert_allclose(table.unary.uncertainty[plain, 1], expected)


def test_pricing_measures_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a session was made")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    network = _inverted_bottlenecks(52)
    table = Calibrated(world.model).table(network, DEFAULT_CHOICES, Metric.LATENCY)
    assert len(table.layers) == 52
    supported = table.unary.value[table.supported]
    assert 0 < supported.min() <= supported.max() < 1
    with pytest.raises(AssertionError, match="a session"):
        onnxruntime.InferenceSession(b"")


def _inverted_bottlenecks(layers: int) -> Network:
    """As many layers as MobileNetV2 has convolutions."""
    sketch = Sketch(drawn=1024)
    x = sketch.conv(sketch.input((1, 3, 64, 64)), 32, kernel=3, stride=2)
    for i in range((layers - 1) // 3):
        wide = sketch.node("Relu", sketch.conv(x, 96 + 16 * i))
        deep = sketch.node("Relu", sketch.conv(wide, 96 + 16 * i, kernel=3, groups=96 + 16 * i))
        x = sketch.conv(deep, 32)
    return sketch.network(x)


def test_a_table_is_made_once_for_all_choices(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, network = Calibrated(world.model), drawn(1005)
    first = model.table(network, CHOICES, Metric.LATENCY)
    monkeypatch.setattr(type(world.model), "seconds", None)
    again = model.table(network, CHOICES[::-1], Metric.LATENCY)
    np.testing.assert_array_equal(again.unary.value, first.unary.value[:, ::-1])


def test_energy_is_not_priced(world: World) -> None:
    with pytest.raises(BackendError, match="energy"):
        Calibrated(world.model).table(example_network(), CHOICES, Metric.ENERGY)


def test_a_backend_without_a_file_says_how_to_name_one() -> None:
    with pytest.raises(BackendError, match=r"calibrated:DEVICE\.json"):
        create("", BackendContext())


def test_a_file_that_is_missing_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"none\.json"):
        create(str(tmp_path / "none.json"), BackendContext())


def test_the_formula_of_a_device_is_a_backend_too(world: World, tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    path.write_text(world.model.to_json())
    table = backend(f"analytical:{path}").table(example_network(), CHOICES, Metric.LATENCY)
    layer = example_network().layers[0]
    expected = world.model.textbook.alpha * layer.weight_count
    expected += world.model.textbook.beta * layer.macs
    assert table.unary.value[0, 0] == pytest.approx(expected)
