"""Ranges of activations: what each method covers, and inputs that do not fit."""

import numpy as np
import pytest

from quantization.errors import DataError
from quantization.export import Exporter
from quantization.network import Network
from quantization.quantizer import AffineGrid, Float32Array
from quantization.ranges import (
    RANGE_METHODS,
    RangeMethod,
    batches,
    check_inputs,
    collect_ranges,
    made_up_ranges,
)
from quantization.reading import read_network
from tests.networks import Subject
from tests.quantization.graphs import make_model, node, normal


def identity(count: int) -> Network:
    """A pointwise convolution that changes nothing, so that every value is known."""
    weight = np.eye(2, dtype=np.float32)[..., None]
    conv = node("Conv", "x w", "y", "conv")
    return read_network(make_model([conv], {"w": weight}, {"x": (1, 2, count)}, {"y": None}))


def squared_error(values: Float32Array, limits: tuple[float, float]) -> float:
    grid = AffineGrid.of_range(*limits, 8)
    return float(np.square(grid.dequantize(grid.quantize(values)) - values).sum())


def test_minmax_covers_every_value_seen() -> None:
    images = normal(5, 2, 100)
    images[3, 1, 7] = 9.0
    ranges = collect_ranges(identity(100), images)
    for tensor in ("x", "y"):
        assert ranges.limits[tensor] == pytest.approx((images.min(), 9.0))
    assert ranges.images == 5
    assert ranges.network == identity(100).digest


def test_percentiles_leave_single_values_out() -> None:
    images = normal(20, 2, 2000)
    images[3, 1, 7] = 50.0
    low, high = collect_ranges(identity(2000), images, "percentile").limits["y"]
    inside = np.mean((images >= low) & (images <= high))
    assert high < 10
    assert 0.9995 < inside < 1


def test_mse_errs_less_than_minmax_where_one_value_sticks_out() -> None:
    images = normal(20, 2, 2000)
    images[3, 1, 7] = 12.0
    network = identity(2000)
    limits = {m: collect_ranges(network, images, m).limits for m in ("minmax", "mse")}
    for tensor in ("x", "y"):  # the network's input too
        errors = {m: squared_error(images, found[tensor]) for m, found in limits.items()}
        assert errors["mse"] < errors["minmax"]
    assert limits["mse"]["x"] == pytest.approx(limits["mse"]["y"])


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_collecting_prints_nothing(method: RangeMethod, capfd: pytest.CaptureFixture[str]) -> None:
    collect_ranges(identity(100), normal(5, 2, 100), method)
    assert capfd.readouterr() == ("", "")


def test_ranges_of_another_network_are_an_error() -> None:
    ranges = made_up_ranges(identity(100))
    Exporter(identity(100), ranges)
    with pytest.raises(DataError, match="another network"):
        Exporter(identity(101), ranges)


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_every_stored_tensor_has_a_range_that_holds_zero(
    branching: Subject, method: RangeMethod
) -> None:
    network = branching.network
    ranges = collect_ranges(network, branching.calibration[:4], method)
    stored = {t.name for t in network.tensors} - network.inner_tensors
    assert set(ranges.limits) == stored == set(made_up_ranges(network).limits)
    for low, high in ranges.limits.values():
        assert low <= 0 <= high
    for glue in network.glue:
        if glue.moves_only:
            assert ranges.limits[glue.outputs[0]] == ranges.limits[glue.inputs[0]]
        if glue.fused and glue.kind == "Relu":
            assert ranges.grid(glue.outputs[0], 8).zero_point == 0


def test_a_grid_has_the_levels_that_are_asked_for(small: Subject) -> None:
    name = small.network.output_names[0]
    low, high = small.exporter.ranges.limits[name]
    for bits in (2, 4, 8, 16):
        assert small.exporter.ranges.grid(name, bits).scale == pytest.approx(
            (high - low) / (2**bits - 1)
        )


def test_images_that_do_not_fit_are_an_error() -> None:
    network = identity(8)
    check_inputs(network, normal(3, 2, 8))
    with pytest.raises(DataError, match=r"\(N, 3, 8\).*\(N, 2, 8\)"):
        check_inputs(network, normal(3, 3, 8))
    with pytest.raises(DataError, match="shape"):
        check_inputs(network, normal(3, 16))
    with pytest.raises(DataError, match="float32"):
        check_inputs(network, normal(3, 2, 8).astype(np.float64))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="at least one"):
        check_inputs(network, normal(0, 2, 8))
    for wrong in (np.nan, np.inf):
        images = normal(3, 2, 8)
        images[1, 0, 3] = wrong
        with pytest.raises(DataError, match="finite"):
            collect_ranges(network, images)


def test_a_network_with_two_inputs_is_an_error() -> None:
    model = make_model(
        [node("Conv", "a w", "t", "conv"), node("Add", "t b", "y", "add")],
        {"w": normal(2, 2, 1)},
        {"a": (1, 2, 4), "b": (1, 2, 4)},
        {"y": None},
    )
    with pytest.raises(DataError, match="one input"):
        collect_ranges(read_network(model), normal(1, 2, 4))


def test_batches_have_the_networks_fixed_size_and_the_last_one_is_filled() -> None:
    model = make_model(
        [node("Conv", "x w", "y", "conv")], {"w": normal(2, 2, 1)}, {"x": (4, 2, 3)}, {"y": None}
    )
    network, images = read_network(model), normal(6, 2, 3)
    made = list(batches(network, images))
    assert [part.shape for part in made] == [(4, 2, 3)] * 2
    np.testing.assert_array_equal(np.concatenate(made)[:6], images)
    np.testing.assert_array_equal(made[1][2:], np.repeat(images[-1:], 2, axis=0))
    assert collect_ranges(network, images).limits["x"] == pytest.approx(
        (images.min(), images.max())
    )
