"""Sensitivities by name, what they are by hand, and that they are kept."""

from pathlib import Path

import numpy as np
import pytest
import torch

from costmodels.table import FloatArray
from quantization.bits import FLOAT32, BitWidths, parse_choices
from quantization.errors import DataError, QuantmeterError
from quantization.export import Exporter
from quantization.gradients import FloatNetwork, hessian_traces, squared_gradients
from quantization.network import Network
from quantization.policy import Policy
from quantization.quantizer import Float32Array
from quantization.ranges import collect_ranges
from quantization.reading import read_network
from quantization.simulation import Simulation
from search import curvature
from search.sensitivity import (
    OF_LOGITS,
    SENSITIVITIES,
    Setting,
    accuracy_drop,
    as_loss,
    cross_entropy,
    kl,
    logit_mse,
    measure,
    measure_sensitivity,
)
from tests.networks import Builder
from tests.quantization.graphs import make_model, node, normal

CHOICES = parse_choices("w2a8,w4a8,w8a8,w4a4,fp16,w32a32")
REFERENCE = np.log(np.array([[0.5, 0.5], [0.8, 0.2]], np.float32))
FOUND = np.log(np.array([[0.25, 0.75], [0.8, 0.2]], np.float32))
RIGHT = np.array([0, 1])


def make_setting(seed: int = 0) -> Setting:
    """Three convolutions and a classifier, in a moment."""
    b = Builder(0)
    x = b.relu6(b.conv("x", "stem", 3, 8, 3, stride=2), "stem.act")
    y = b.conv(b.relu6(b.conv(x, "deep", 8, 8, 3, groups=8), "deep.act"), "point", 8, 8)
    x = b.glue("Relu", b.glue("Add", f"{x} {y}", "add"), "act")
    x = b.glue("Flatten", b.glue("GlobalAveragePool", x, "pool"), "flat")
    b.gemm(x, "classifier", 8, 5)
    network = b.network(1, 3, 8, 8)
    images = np.random.default_rng(seed).standard_normal((60, 3, 8, 8)).astype(np.float32)
    return Setting(simulate(network, images[:20]), CHOICES, images[20:])


def simulate(
    network: Network, images: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"
) -> Simulation:
    return Simulation(Exporter(network, collect_ranges(network, images)), images)


@pytest.fixture(scope="module")
def setting() -> Setting:
    return make_setting()


@pytest.fixture(scope="module")
def measured(setting: Setting) -> dict[str, FloatArray]:
    return measure(SENSITIVITIES, setting)


def classifier(weight: Float32Array) -> Network:
    """One matrix product, whose curvature is known by hand."""
    model = make_model(
        [node("Gemm", "x w", "y", "fc", transB=1)], {"w": weight}, {"x": (1, 3)}, {"y": None}
    )
    return read_network(model)


def test_losses_of_logits_have_the_values_of_their_formulas() -> None:
    assert kl(REFERENCE, FOUND, RIGHT) == pytest.approx((0.5 * np.log(2) + 0.5 * np.log(2 / 3)) / 2)
    assert cross_entropy(REFERENCE, FOUND, RIGHT) == pytest.approx(np.log(2) / 2)
    assert logit_mse(REFERENCE, FOUND, RIGHT) == pytest.approx(
        (np.log(2) ** 2 + np.log(1.5) ** 2) / 4
    )
    assert accuracy_drop(REFERENCE, FOUND, RIGHT) == 0.5
    assert kl(REFERENCE, REFERENCE + 3, RIGHT) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("name", SENSITIVITIES)
def test_every_sensitivity_has_a_loss_for_each_layer_and_width(
    name: str, measured: dict[str, FloatArray]
) -> None:
    found = measured[name]
    assert found.shape == (4, len(CHOICES))
    assert np.isfinite(found).all()
    assert not found[:, CHOICES.index(FLOAT32)].any()
    two, four, eight, narrow, half = found[:, :5].sum(0)
    if name not in ("accuracy-drop", "cross-entropy"):  # those of random weights may be anything
        assert two > four > eight > 2 * half > 0
        assert narrow > four  # activations count too
    assert (as_loss(found) == np.maximum(found, 0)).all()


def test_curvature_tells_small_divergences(
    measured: dict[str, FloatArray],
) -> None:
    """At 8 bits the second order is nearly all: the sum over layers, but for the cross terms."""
    exact = measured["kl"][:, CHOICES.index(BitWidths(4, 8))]
    for name in ("fisher", "hessian"):
        estimate = measured[name][:, CHOICES.index(BitWidths(4, 8))]
        assert 0.2 < estimate.sum() / exact.sum() < 5


def test_squared_gradients_of_a_classifier_are_those_of_the_formula() -> None:
    weight, image = normal(2, 3), normal(1, 3)
    network = FloatNetwork(Exporter(c := classifier(weight), collect_ranges(c, image)))
    of_weights, of_inputs = squared_gradients(network, np.repeat(image, 800, axis=0), seed=0)
    p = np.exp(image @ weight.T)[0]
    p = p / p.sum()
    expected = (p * (1 - p))[:, None] * np.square(image)
    np.testing.assert_allclose(of_weights["fc"], expected, rtol=0.15)
    # of one image g = W'(p - onehot), so its square's mean is the diagonal of W'(diag p - pp')W
    curved = weight.T @ (np.diag(p) - np.outer(p, p)) @ weight
    np.testing.assert_allclose(of_inputs["x"].numpy().mean(0), np.diag(curved), rtol=0.15)


def test_hessian_traces_of_a_classifier_are_those_of_the_formula() -> None:
    weight, images = normal(4, 3), normal(32, 3)
    network = FloatNetwork(Exporter(c := classifier(weight), collect_ranges(c, images)))
    along_weights, along_inputs = hessian_traces(
        network, images, np.zeros(32, np.int64), seed=0, draws=300, batch=32
    )
    logits = np.exp(images @ weight.T)
    p = logits / logits.sum(1, keepdims=True)
    curved = [np.diag(row) - np.outer(row, row) for row in p]
    of_weights = np.mean([np.trace(c) * (x @ x) for c, x in zip(curved, images, strict=True)])
    of_inputs = np.mean([np.trace(weight.T @ c @ weight) for c in curved])
    assert along_weights["fc"] == pytest.approx(of_weights, rel=0.1)
    assert along_inputs["x"] == pytest.approx(of_inputs, rel=0.1)


def test_corrections_of_single_layers_are_those_of_policies_of_one_layer(
    setting: Setting,
) -> None:
    found = setting.simulation.correct_alone(CHOICES)
    assert len(found) == 4 * 4
    for layer, bits in (("deep", BitWidths(2, 8)), ("classifier", BitWidths(4, 4))):
        alone = setting.simulation.correct(Policy({layer: bits}))[layer]
        np.testing.assert_allclose(found[layer, bits].gain, alone.gain, rtol=1e-6)
        np.testing.assert_allclose(found[layer, bits].shift, alone.shift, rtol=1e-5, atol=1e-7)


def test_output_errors_are_those_of_the_corrected_layer() -> None:
    weight, images = normal(4, 3), normal(40, 3)
    network = classifier(weight)
    simulation = simulate(network, images)
    bits = BitWidths(3, 32)
    correction = simulation.correct(Policy({"fc": bits}))["fc"]
    rounded = simulation.exporter.parameters.weight("fc", 3).dequantize()
    made = images @ (rounded * correction.gain[:, None]).T + correction.shift
    exact = images @ weight.T
    expected = np.square(made - exact).sum() / np.square(exact).sum()
    found = simulation.output_errors([bits], images)
    assert found["fc", bits] == pytest.approx(expected, rel=1e-4)


def test_curvature_weighs_half_the_squared_error(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, images = normal(4, 3), normal(40, 3)
    simulation = simulate(classifier(weight), images)
    bits = BitWidths(3, 4)
    gain = simulation.correct(Policy({"fc": bits}))["fc"].gain[:, None]
    moved = simulation.exporter.parameters.weight("fc", 3).dequantize() * gain - weight
    grid = simulation.exporter.ranges.grid("x", 4)
    read = grid.dequantize(grid.quantize(images)) - images
    monkeypatch.setattr(
        curvature,
        "squared_gradients",
        lambda *_given: ({"fc": np.full((4, 3), 7.0)}, {"x": torch.full((40, 3), 5.0)}),
    )
    monkeypatch.setattr(curvature, "hessian_traces", lambda *_given: ({"fc": 7.0}, {"x": 5.0}))
    fisher = curvature.fisher(simulation, [bits], images, 0)
    expected = 7 / 2 * np.square(moved).sum() + 5 / 2 * np.square(read).sum() / 40
    assert fisher == pytest.approx(expected, rel=1e-5)
    hessian = curvature.hessian(simulation, [bits], images, np.zeros(40, np.int64), 0)
    expected = 7 / 2 * np.square(moved).mean() + 5 / 2 * np.square(read).mean()
    assert hessian == pytest.approx(expected, rel=1e-5)


def test_weight_errors_count_the_gain_that_corrects(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrected = curvature.fisher(setting.simulation, CHOICES, setting.images, 0)
    monkeypatch.setattr(Simulation, "correct_alone", lambda _self, _choices: {})
    plain = curvature.fisher(setting.simulation, CHOICES, setting.images, 0)
    assert not np.allclose(corrected[:, 0], plain[:, 0])
    np.testing.assert_array_equal(corrected[:, -1], plain[:, -1])


def test_all_measures_of_logits_share_one_run(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    sweep = Simulation.sweep
    monkeypatch.setattr(
        Simulation, "sweep", lambda self, *given: runs.append(given) or sweep(self, *given)
    )
    measure(tuple(OF_LOGITS), setting)
    assert len(runs) == 1


def test_what_was_measured_is_not_measured_again(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("kl", "output-mse", "fisher")
    first = measure(names, setting, tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 3

    def never(*given: object) -> None:
        pytest.fail("measured again")

    later = make_setting()
    for method in ("sweep", "output_errors", "correct_alone", "logits"):
        monkeypatch.setattr(Simulation, method, never)
    again = measure(names, later, tmp_path / "kept")
    for name in names:
        np.testing.assert_array_equal(again[name], first[name])


def test_another_setting_is_measured_anew(setting: Setting, tmp_path: Path) -> None:
    simulation, images = setting.simulation, setting.images
    some = CHOICES[:2]
    other = simulate(simulation.network, images[:20])
    settings = (
        Setting(simulation, some, images),
        Setting(simulation, some[::-1], images),
        Setting(simulation, some, images[1:]),
        Setting(simulation, some, images, np.zeros(len(images), np.int64)),
        Setting(simulation, some, images, seed=1),
        Setting(other, some, images),
    )
    for count, each in enumerate(settings, start=1):
        measure(["kl"], each, tmp_path)
        assert len(list(tmp_path.iterdir())) == count


@pytest.mark.parametrize("damage", ["", "{}", '{"identity": 1, "sensitivity": [[1]]}', "[NaN"])
def test_a_damaged_file_is_measured_again(setting: Setting, tmp_path: Path, damage: str) -> None:
    few = Setting(setting.simulation, CHOICES[:1], setting.images)
    first = measure(["kl"], few, tmp_path)
    [path] = tmp_path.iterdir()
    whole = path.read_text()
    path.write_text(damage)
    np.testing.assert_array_equal(measure(["kl"], few, tmp_path)["kl"], first["kl"])
    assert path.read_text() == whole


def test_a_folder_that_cannot_be_written_to_is_an_error(setting: Setting, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QuantmeterError, match="cannot write to"):
        measure(["kl"], Setting(setting.simulation, CHOICES[:1], setting.images), tmp_path / "file")


def test_kl_and_drop_can_be_kept_too(setting: Setting, tmp_path: Path) -> None:
    given = setting.simulation, CHOICES[:2], setting.images
    found = measure_sensitivity(*given, folder=tmp_path)
    both = measure(("kl", "accuracy-drop"), Setting(*given), tmp_path)
    np.testing.assert_array_equal(found.kl, both["kl"])
    np.testing.assert_array_equal(found.drop, both["accuracy-drop"])
    assert len(list(tmp_path.iterdir())) == 2


def test_an_unknown_name_is_an_error_that_names_close_ones(setting: Setting) -> None:
    with pytest.raises(QuantmeterError, match="did you mean 'fisher'"):
        measure(["fischer"], setting)


def test_images_that_do_not_fit_are_an_error(setting: Setting) -> None:
    with pytest.raises(DataError, match="shape"):
        measure(["output-mse"], Setting(setting.simulation, CHOICES, setting.images[:, :2]))
