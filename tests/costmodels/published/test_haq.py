"""The array of HAQ's simulator: columns by width, and nothing that is not a number."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.errors import CostError, TableError
from costmodels.published import haq
from costmodels.published.content import Published, Stated
from costmodels.table import Provenance
from costmodels.units import Unit
from quantization.bits import BitWidths, parse_choices

LAYERS = 3


def telling(weights: int = 8, activations: int = 8) -> np.ndarray:
    """Values that say where they stand: 100 * layer + 10 * weight bits + activation bits."""
    layer, w, a = np.ogrid[1 : LAYERS + 1, 1 : weights + 1, 1 : activations + 1]
    return 100 * layer + 10 * w + a


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def read(array: np.ndarray, **stated: object) -> Published:
    return haq.read(npy(array), Stated(**stated))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["<i8", ">i4", "<f4", "<u2"])
def test_every_cell_is_found_by_its_widths(kind: str) -> None:
    found = read(telling().astype(kind))
    assert set(found.choices) == {BitWidths(w, a) for w in range(2, 9) for a in range(2, 9)}
    for k, bits in enumerate(found.choices):
        expected = [100 * i + 10 * bits.weights + bits.activations for i in (1, 2, 3)]
        assert found.value[:, k].tolist() == expected


def test_an_array_in_columns_first_order_is_the_same() -> None:
    np.testing.assert_array_equal(read(np.asfortranarray(telling())).value, read(telling()).value)


def test_widths_that_are_no_choice_are_left_out_and_said() -> None:
    assert read(telling()).source["left_out"] == ["w1", "a1"]
    found = read(telling(weights=9, activations=2))
    assert {bits.weights for bits in found.choices} == set(range(2, 9))
    assert found.source["left_out"] == ["w1", "w9", "a1"]


def test_widths_that_the_file_lacks_are_not_guessed() -> None:
    assert read(telling(4, 3)).choices == parse_choices("w2a2,w2a3,w3a2,w3a3,w4a2,w4a3")


def test_cycles_of_a_simulator_are_what_the_layout_means() -> None:
    found = read(telling())
    assert (found.unit, found.statistic) == (Unit.CYCLES, "model")
    assert found.provenance is Provenance.ANALYTICAL
    assert found.source["unit_in_file"] == "cycles"


@pytest.mark.parametrize(
    ("text", "unit", "factor"),
    [
        ("us", Unit.SECONDS, 1e-6),
        ("ms", Unit.SECONDS, 1e-3),
        ("nJ", Unit.JOULES, 1e-9),
        ("kcycles", Unit.CYCLES, 1e3),
    ],
)
def test_a_stated_unit_is_brought_to_one_without_prefix(
    text: str, unit: Unit, factor: float
) -> None:
    found = read(telling(), unit=text)
    assert found.unit is unit
    np.testing.assert_allclose(found.value, read(telling()).value * factor, rtol=1e-15)
    assert found.source["unit_in_file"] == text


def test_what_is_stated_goes_before_what_the_layout_means() -> None:
    found = read(telling(), statistic="median", provenance=Provenance.MEASURED)
    assert (found.statistic, found.provenance) == ("median", Provenance.MEASURED)


def spoiled(value: float) -> np.ndarray:
    array = telling().astype(np.float64)
    array[1, 3, 4] = value
    return array


BAD = {
    "nothing": (b"", "no .npy array"),
    "text": (b"layer,choice,value\n", "no .npy array"),
    "a file cut short": (npy(telling())[:-10], "no .npy array"),
    "a header cut short": (npy(telling())[:40], "no .npy array"),
    "a pickle": (pickle.dumps([1, 2, 3]), "pickled objects are not loaded"),
    "pickled objects": (npy(telling().astype(object)), "pickled objects are not loaded"),
    "two axes": (npy(telling()[:, :, 0]), r"shape \(3, 8\)"),
    "four axes": (npy(telling()[None]), r"shape \(1, 3, 8, 8\)"),
    "no layers": (npy(telling()[:0]), r"shape \(0, 8, 8\)"),
    "layers on another axis": (npy(np.ones((8, 8, 53))), r"shape \(8, 8, 53\)"),
    "texts": (npy(telling().astype(str)), "not plain numbers"),
    "complex numbers": (npy(telling() * 1j), "complex128, not plain numbers"),
    "yes and no": (npy(telling() > 0), "bool, not plain numbers"),
    "one width only": (npy(telling(1, 1)), "no costs at bit-widths"),
    "not a number": (npy(spoiled(np.nan)), "row 1 costs nan at w4a5"),
    "infinity": (npy(spoiled(np.inf)), "row 1 costs inf at w4a5"),
    "a negative cost": (npy(spoiled(-5)), "row 1 costs -5 at w4a5"),
    "a cost of nothing": (npy(spoiled(0)), "row 1 costs 0 at w4a5"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_file_is_one_clear_line(name: str) -> None:
    content, message = BAD[name]
    with pytest.raises(TableError, match=message) as caught:
        haq.read(content, Stated())
    assert "\n" not in str(caught.value)


def test_an_archive_of_arrays_is_told_from_an_array() -> None:
    stream = io.BytesIO()
    np.savez(stream, telling())
    with pytest.raises(TableError, match=r"save the one array as \.npy"):
        haq.read(stream.getvalue(), Stated())


class _Trap:
    def __reduce__(self) -> object:
        return (Path.touch, (Path("unpickled"),))


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trap = np.array([[[_Trap()]]], object)
    for content in (npy(trap), pickle.dumps(_Trap())):
        with pytest.raises(TableError):
            haq.read(content, Stated())
    assert not Path("unpickled").exists()
    pickle.loads(pickle.dumps(_Trap()))
    assert Path("unpickled").exists()  # the trap works


@pytest.mark.parametrize("unit", ["MB", "B"])
def test_sizes_are_the_exporters_own(unit: str) -> None:
    with pytest.raises(TableError, match="sizes are not imported"):
        read(telling(), unit=unit)


@pytest.mark.parametrize("unit", ["hours", "Ms", "mcycles", "cycle", ""])
def test_what_is_no_unit_is_an_error(unit: str) -> None:
    with pytest.raises(CostError, match="is no unit"):
        read(telling(), unit=unit or " ")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 127), st.binary(min_size=1, max_size=6), st.integers(0, 127 + 8 * 192))
def test_any_damage_is_an_error_or_another_table(at: int, patch: bytes, end: int) -> None:
    whole = npy(telling())
    for content in (whole[:at] + patch + whole[at + len(patch) :], whole[:end]):
        try:
            found = haq.read(content, Stated())
        except CostError:
            continue
        assert (found.value > 0).all()
