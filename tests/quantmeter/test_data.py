"""Data files: what is read, what is refused, and how it is split."""

from pathlib import Path

import numpy as np
import pytest

from costmodels.sketch import Sketch
from quantization.errors import DataError
from quantization.quantizer import Float32Array
from quantmeter.data import Data, read_data, split_data
from quantmeter.workbench import open_workbench

X = np.random.default_rng(0).standard_normal((100, 3, 4, 4)).astype(np.float32)
Y = np.arange(100) % 10


def _write(folder: Path, **arrays: object) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_images_and_labels_come_back(tmp_path: Path) -> None:
    data = read_data(_write(tmp_path, x=X, y=Y.astype(np.uint8), other=np.arange(3)))
    np.testing.assert_array_equal(data.x, X)
    assert data.y is not None
    assert data.y.dtype == np.int64
    np.testing.assert_array_equal(data.y, Y)


def test_compressed_archives_are_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "data.npz", x=X)
    np.testing.assert_array_equal(read_data(tmp_path / "data.npz").x, X)


def test_labels_are_optional(tmp_path: Path) -> None:
    assert read_data(_write(tmp_path, x=X)).y is None


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.npz: no such file"):
        read_data(tmp_path / "absent.npz")


def test_a_folder_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a \.npz archive"):
        read_data(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"these are no images\n" * 9, b"PK\x03\x04 truncated", b"\x80\x04K\x01."],
)
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data\.npz: not a \.npz archive of plain arrays"):
        read_data(path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_archive_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=X, y=Y)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(DataError, match=r"not a \.npz archive"):
        read_data(path)


def test_damaged_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=X)
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"not a \.npz archive"):
        read_data(path)


def test_a_single_array_is_no_archive(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", X)
    with pytest.raises(DataError, match=r"not a \.npz archive"):
        read_data(tmp_path / "data.npy")


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, x=np.array([object()], object))
    with pytest.raises(DataError, match="plain arrays"):
        read_data(path)


def test_an_archive_without_x_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no array x"):
        read_data(_write(tmp_path, images=X))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X.astype(np.float64), Y, "float32, not .* float64"),
        ((X * 255).astype(np.uint8), Y, "float32, not .* uint8"),
        (np.ones(100, np.float32), Y, "must be .N, ...."),
        (np.where(X > 2, np.nan, X).astype(np.float32), Y, "not finite"),
        (np.where(X > 2, np.inf, X).astype(np.float32), Y, "not finite"),
        (X[:9], Y[:9], "9 images cannot be split; give at least 10"),
        (X[:0], Y[:0], "0 images"),
        (X, Y[:99], r"y must be \(100,\) integers, not \(99,\)"),
        (X, Y.astype(np.float32), "integers, not .* float32"),
        (X, Y[:, None], r"not \(100, 1\)"),
        (X, Y.astype(str), "integers"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_with_the_file_named(
    tmp_path: Path, x: object, y: object, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_data(_write(tmp_path, x=x, y=y))
    assert "data.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def _distinct(count: int) -> Float32Array:
    return np.arange(count, dtype=np.float32)[:, None]


def test_the_parts_are_disjoint_together_all_and_20_40_40() -> None:
    for count in (10, 11, 97, 897):
        data = Data(_distinct(count), None)
        split = split_data(data, 0)
        parts = [split.ranges, split.search, split.test]
        assert sorted(np.concatenate(parts).tolist()) == list(range(count))
        for part, share in zip(parts, (0.2, 0.4, 0.4), strict=True):
            assert abs(len(part) - share * count) <= 3
            assert len(part) > 0


def test_every_class_is_split_in_proportion() -> None:
    draw = np.random.default_rng(1)
    y = draw.choice(10, 900, p=np.arange(1, 11) / 55)
    split = split_data(Data(_distinct(900), y), 0)
    for part, share in ((split.ranges, 0.2), (split.search, 0.4), (split.test, 0.4)):
        held = np.bincount(y[part], minlength=10)
        assert (np.abs(held - share * np.bincount(y, minlength=10)) <= 3).all()


def test_classes_of_one_image_do_not_empty_a_part() -> None:
    data = Data(_distinct(10), np.arange(10))
    tests = []
    for seed in range(5):
        split = split_data(data, seed)
        assert min(len(split.ranges), len(split.search), len(split.test)) >= 2
        tests.append(tuple(split.test))
    assert len(set(tests)) > 1


def test_identical_images_go_into_one_part() -> None:
    x = np.tile(_distinct(40), (3, 1))
    split = split_data(Data(x, np.tile(np.arange(40) % 4, 3)), 0)
    parts = [set(x[part].ravel()) for part in (split.ranges, split.search, split.test)]
    assert sum(map(len, parts)) == 40
    with pytest.raises(DataError, match="only 2 of 30 images differ"):
        split_data(Data(np.tile(_distinct(2), (15, 1)), None), 0)


def test_the_split_follows_the_seed_and_not_the_order_of_classes_in_the_file() -> None:
    data = Data(_distinct(100), Y)
    first, again, other = split_data(data, 3), split_data(data, 3), split_data(data, 4)
    np.testing.assert_array_equal(first.test, again.test)
    assert not np.array_equal(first.test, other.test)
    assert first.to_dict()["seed"] == 3
    assert first.to_dict()["ranges"] == first.ranges.tolist()


def test_images_of_another_shape_do_not_fit_the_network() -> None:
    sketch = Sketch()
    network = sketch.network(sketch.conv(sketch.input((1, 3, 5, 5)), 4, name="only"))
    with pytest.raises(DataError, match=r"\(N, 3, 4, 4\), the network takes \(N, 3, 5, 5\)"):
        open_workbench(network, Data(X, Y))


@pytest.mark.parametrize(("low", "high"), [(-1, 9), (0, 10)])
def test_labels_that_the_network_has_no_class_for_are_refused(low: int, high: int) -> None:
    sketch = Sketch()
    pooled = sketch.reshape(sketch.input((1, 3, 4, 4)), (1, 48))
    network = sketch.network(sketch.gemm(pooled, 48, 10, name="head"))
    y = Y.copy()
    y[0], y[1] = low, high
    with pytest.raises(DataError, match=f"from {low} to {high}, the network has 10 classes"):
        open_workbench(network, Data(X, y))


def test_without_data_inputs_are_random_and_there_is_no_part_to_read() -> None:
    sketch = Sketch()
    network = sketch.network(sketch.conv(sketch.input((1, 3, 4, 4)), 4, name="only"))
    bench = open_workbench(network, seed=1)
    again = open_workbench(network, seed=1)
    np.testing.assert_array_equal(bench.range_inputs, again.range_inputs)
    with pytest.raises(DataError, match="give --data"):
        bench.part("test")
