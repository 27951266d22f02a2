"""Rows become layers: in order or by name, checked, and nothing is made up."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.errors import TableError, UnsupportedChoiceError
from costmodels.pricing import total, uniform_totals
from costmodels.published.binding import NO_TERM, READERS, read_table
from costmodels.published.content import Stated
from costmodels.sketch import Sketch, example_network
from costmodels.table import CostTable, Provenance
from costmodels.units import Metric, Unit
from quantization.bits import BitWidths, parse_choices
from quantization.errors import PolicyError
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch
from tests.networks import uniform

NETWORK = example_network()
LAYERS = len(NETWORK.layers)


def haq_file(folder: Path, layers: int = LAYERS) -> Path:
    """Write cycles that say where they stand: 100 * layer + 10 * weight bits + activation bits."""
    layer, w, a = np.ogrid[1 : layers + 1, 1:9, 1:9]
    np.save(folder / "cycles.npy", 100 * layer + 10 * w + a)
    return folder / "cycles.npy"


def hawq_file(folder: Path, rows: list[int], **changes: Any) -> Path:
    """Write latencies of the layers at some positions, with their true counts."""
    layers = [NETWORK.layers[row] for row in rows]
    content = {
        "parameters_millions": [layer.weight_count / 1e6 for layer in layers],
        "macs_millions": [layer.macs / 1e6 for layer in layers],
        "latency_ms_chip": {"4": [row + 1 for row in rows], "8": [2 * row + 2 for row in rows]},
        **changes,
    }
    (folder / "chip.json").write_text(json.dumps(content))
    return folder / "chip.json"


def csv_file(folder: Path, rows: list[str], unit: str = "ms") -> Path:
    head = f"# unit: {unit}\n# statistic: median\nlayer,choice,value\n"
    (folder / "costs.csv").write_text(head + "".join(f"{row}\n" for row in rows))
    return folder / "costs.csv"


def costs(table: CostTable, network: Network, *policies: Policy) -> np.ndarray:
    return total(table, network, PolicyBatch.of(network, list(policies)))


def test_row_i_is_layer_i(tmp_path: Path) -> None:
    table = read_table("haq", haq_file(tmp_path), NETWORK)
    assert table.layers == NETWORK.layer_names
    for k, bits in enumerate(table.choices):
        expected = [100 * i + 10 * bits.weights + bits.activations for i in range(1, LAYERS + 1)]
        assert table.unary.value[:, k].tolist() == expected
    assert (table.metric, table.unit) == (Metric.LATENCY, Unit.CYCLES)


def test_a_policy_costs_the_sum_of_its_layers_and_nothing_else(tmp_path: Path) -> None:
    table = read_table("haq", haq_file(tmp_path), NETWORK)
    draw = np.random.default_rng(0)
    widths = [[BitWidths(w, a) for w, a in draw.integers(2, 9, (LAYERS, 2))] for _ in range(20)]
    policies = [Policy(dict(zip(NETWORK.layer_names, w, strict=True))) for w in widths]
    expected = [
        sum(100 * i + 10 * b.weights + b.activations for i, b in enumerate(w, 1)) for w in widths
    ]
    assert costs(table, NETWORK, *policies).tolist() == expected


def test_glue_and_conversions_are_zero_and_the_source_says_why(tmp_path: Path) -> None:
    table = read_table("haq", haq_file(tmp_path), NETWORK)
    for cells in (table.glue, table.conversion):
        assert not cells.value.any()
        assert set(cells.provenance.ravel()) == {Provenance.ASSUMED.value}
    assert table.source["glue"] == table.source["conversion"] == NO_TERM
    assert any("no such term" in note for note in table.source["notes"])


def test_the_source_names_the_file_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    path = haq_file(tmp_path)
    stated = Stated(unit="us", batch=16, device="an FPGA")
    source = read_table("haq", path, NETWORK, stated).source
    assert source["file"] == "cycles.npy"
    assert source["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (source["format"], source["unit_in_file"]) == ("haq", "us")
    assert (source["batch"], source["device"]) == (16, "an FPGA")
    assert any("batch of 16" in note for note in source["notes"])
    assert str(tmp_path) not in json.dumps(dict(source))
    unknown = read_table("haq", path, NETWORK).source
    assert (unknown["batch"], unknown["device"]) == (None, None)
    assert not any("batch" in note for note in unknown["notes"])


def test_an_imported_table_survives_every_file_format(tmp_path: Path) -> None:
    table = read_table("haq", haq_file(tmp_path), NETWORK, Stated(batch=16))
    for again in (CostTable.from_json(table.to_json()), CostTable.from_csv(table.to_csv())):
        assert dict(again.source) == dict(table.source)
        np.testing.assert_array_equal(again.unary.value, table.unary.value)
        assert again.unit is Unit.CYCLES
        np.testing.assert_array_equal(
            uniform_totals(again, NETWORK), uniform_totals(table, NETWORK)
        )


def test_the_same_file_gives_the_same_table(tmp_path: Path) -> None:
    first, second = (read_table("haq", haq_file(tmp_path), NETWORK).to_json() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("layers", [LAYERS - 1, LAYERS + 2])
def test_another_number_of_layers_is_an_error_with_both(tmp_path: Path, layers: int) -> None:
    found = f"cycles.npy: {layers} layers in the file, {LAYERS} in the network"
    with pytest.raises(TableError, match=found) as caught:
        read_table("haq", haq_file(tmp_path, layers), NETWORK)
    assert ("--without LAYER" in str(caught.value)) == (layers < LAYERS)


def test_layers_that_the_file_leaves_out_are_named_and_cost_nothing(tmp_path: Path) -> None:
    names = NETWORK.layer_names
    rows = list(range(1, LAYERS - 1))
    path = hawq_file(tmp_path, rows)
    table = read_table("hawq", path, NETWORK, without=[names[0], names[-1]])
    expected = np.zeros((LAYERS, 2))
    expected[rows] = [[(row + 1) * 1e-3, (2 * row + 2) * 1e-3] for row in rows]
    np.testing.assert_allclose(table.unary.value, expected)
    assert set(table.unary.provenance[rows].ravel()) == {"measured"}
    assert set(table.unary.provenance[[0, -1]].ravel()) == {"assumed"}
    assert list(table.source["without"]) == [names[0], names[-1]]
    assert any(f"{names[0]}, {names[-1]} cost 0" in note for note in table.source["notes"])


def test_counts_tell_which_layers_have_no_row(tmp_path: Path) -> None:
    names = NETWORK.layer_names
    with pytest.raises(TableError, match=f"--without {names[0]},{names[-1]}$"):
        read_table("hawq", hawq_file(tmp_path, list(range(1, LAYERS - 1))), NETWORK)
    bare = hawq_file(tmp_path, [1, 2], parameters_millions=[9.0, 9.0])
    with pytest.raises(TableError, match=r"--without LAYER,LAYER$"):
        read_table("hawq", bare, NETWORK)


def test_left_out_must_be_what_is_left_out(tmp_path: Path) -> None:
    path, names = haq_file(tmp_path, LAYERS - 2), NETWORK.layer_names
    with pytest.raises(PolicyError, match=r"no layer 'stemm'.*did you mean 'stem'"):
        read_table("haq", path, NETWORK, without=["stemm", "head"])
    with pytest.raises(TableError, match=f"{LAYERS - 2} layers in the file, {LAYERS - 1} in the"):
        read_table("haq", path, NETWORK, without=names[:1])
    with pytest.raises(TableError, match="of another network"):
        read_table("haq", path, NETWORK, without=names[:3])


@pytest.mark.parametrize("scale", [1e6, 2.0**20])
def test_weights_are_counted_in_millions_of_either_kind(tmp_path: Path, scale: float) -> None:
    counts = [layer.weight_count / scale for layer in NETWORK.layers]
    path = hawq_file(tmp_path, list(range(LAYERS)), parameters_millions=counts)
    checked = read_table("hawq", path, NETWORK).source["checked"]
    assert checked[0] == "number of layers"
    assert f"weights, 1 in the file taken as {scale:,.0f}" in checked


def test_counts_may_be_rounded_to_three_digits(tmp_path: Path) -> None:
    counts = [float(f"{layer.macs / 1e6:.3g}") for layer in NETWORK.layers]
    read_table("hawq", hawq_file(tmp_path, list(range(LAYERS)), macs_millions=counts), NETWORK)


def test_a_layer_of_another_size_is_named_with_both_sizes(tmp_path: Path) -> None:
    counts = [layer.macs / 1e6 for layer in NETWORK.layers]
    counts[2] *= 4
    path = hawq_file(tmp_path, list(range(LAYERS)), macs_millions=counts)
    layer = NETWORK.layers[2]
    message = (
        f"multiply-accumulates differ at 1 of {LAYERS} layers: '{layer.name}' has "
        f"{4 * layer.macs:,} in the file, {layer.macs:,} in the network"
    )
    with pytest.raises(TableError, match=message):
        read_table("hawq", path, NETWORK)


def test_rows_in_another_order_are_seen_by_their_counts(tmp_path: Path) -> None:
    rows = list(range(LAYERS))
    rows[0], rows[1] = rows[1], rows[0]
    with pytest.raises(TableError, match=f"differ at 2 of {LAYERS} layers: 'stem' has"):
        read_table("hawq", hawq_file(tmp_path, rows), NETWORK)


def test_multiply_accumulates_are_of_one_input_whatever_the_batch(tmp_path: Path) -> None:
    sketch = Sketch()
    stem = sketch.conv(sketch.input((5, 3, 8, 8)), 4, kernel=3, name="stem")
    network = sketch.network(sketch.conv(stem, 4, name="point"))
    content = {
        "macs_millions": [layer.macs / 5e6 for layer in network.layers],
        "latency_ms_chip": {"8": [1, 2]},
    }
    (tmp_path / "t.json").write_text(json.dumps(content))
    checked = read_table("hawq", tmp_path / "t.json", network).source["checked"]
    assert "multiply-accumulates, 1 in the file taken as 1,000,000" in checked


def test_ties_are_told_by_the_names_of_their_layers(tmp_path: Path) -> None:
    path = hawq_file(tmp_path, list(range(1, LAYERS)), tied_layers=[[0, 2]])
    names = NETWORK.layer_names
    table = read_table("hawq", path, NETWORK, without=names[:1])
    assert table.source["ties"] == [[names[1], names[3]]]


def test_rows_with_names_may_stand_in_any_order(tmp_path: Path) -> None:
    rows = [f"{name},w8a8,{i + 1}" for i, name in enumerate(NETWORK.layer_names)]
    table = read_table("csv", csv_file(tmp_path, rows[::-1]), NETWORK)
    np.testing.assert_allclose(table.unary.value[:, 0], 1e-3 * np.arange(1, LAYERS + 1))


def test_what_has_no_row_is_masked(tmp_path: Path) -> None:
    rows = [f"{name},w8a8,1" for name in NETWORK.layer_names] + ["stem,w4a8,1"]
    table = read_table("csv", csv_file(tmp_path, rows), NETWORK)
    column = table.choices.index(BitWidths(4, 8))
    assert table.supported[:, column].tolist() == [n == "stem" for n in NETWORK.layer_names]
    with pytest.raises(UnsupportedChoiceError, match="is not supported"):
        costs(table, NETWORK, uniform(NETWORK, "w4a8"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["stemm,w8a8,1"], "no layer 'stemm'.*did you mean 'stem'"),
        (["stem,w8a8,1"], rf"1 layers in the file, {LAYERS} in the network: no row for .* more; "),
        (["a,w8a8,1", "b,w8a8,1"], "no layer 'a'.* and 1 more; quantmeter inspect lists"),
    ],
)
def test_names_that_are_not_the_networks_are_named(
    tmp_path: Path, rows: list[str], message: str
) -> None:
    with pytest.raises(TableError, match=message):
        read_table("csv", csv_file(tmp_path, rows), NETWORK)


def test_a_layer_with_rows_is_not_left_out(tmp_path: Path) -> None:
    rows = [f"{name},w8a8,1" for name in NETWORK.layer_names]
    with pytest.raises(TableError, match="has rows for 'stem', which --without leaves out"):
        read_table("csv", csv_file(tmp_path, rows), NETWORK, without=["stem"])
    table = read_table("csv", csv_file(tmp_path, rows[1:]), NETWORK, without=["stem"])
    assert table.unary.value[:, 0].tolist() == [0.0, *[1e-3] * (LAYERS - 1)]


@pytest.mark.parametrize("form", READERS)
def test_a_missing_file_is_named(tmp_path: Path, form: str) -> None:
    with pytest.raises(TableError, match="absent: No such file"):
        read_table(form, tmp_path / "absent", NETWORK)
    with pytest.raises(TableError, match="Is a directory"):
        read_table(form, tmp_path, NETWORK)


def test_a_format_that_there_is_not_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"no format 'hack'.*did you mean 'haq'"):
        read_table("hack", haq_file(tmp_path), NETWORK)


@given(
    st.sampled_from(["cycles", "kcycles", "s", "ms", "us", "nJ"]),
    st.floats(1e-3, 1e9),
)
def test_cycles_never_become_seconds(tmp_path_factory, unit: str, value: float) -> None:  # type: ignore[no-untyped-def]
    stream = io.BytesIO()
    np.save(stream, np.full((LAYERS, 8, 8), value))
    path = tmp_path_factory.getbasetemp() / "one.npy"
    path.write_bytes(stream.getvalue())
    table = read_table("haq", path, NETWORK, Stated(unit=unit))
    kind = {"cycles": Unit.CYCLES, "s": Unit.SECONDS, "J": Unit.JOULES}
    assert table.unit is next(u for name, u in kind.items() if unit.endswith(name))
    factor = {"kcycles": 1e3, "ms": 1e-3, "us": 1e-6, "nJ": 1e-9}.get(unit, 1.0)
    [cost] = costs(table.restrict(parse_choices("w8a8")), NETWORK, uniform(NETWORK, "w8a8"))
    assert cost == pytest.approx(value * factor * LAYERS, rel=1e-12)
