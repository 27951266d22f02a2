"""Bytes of the exported file, from the sum over the table and from `total`."""

import numpy as np
import pytest

from costmodels.errors import BackendError, UnsupportedChoiceError
from costmodels.pricing import total
from costmodels.size import ExportedSize
from costmodels.sketch import Sketch
from costmodels.units import Metric, Unit
from quantization.bits import DEFAULT_CHOICES, FLOAT32, BitWidths, parse_choices
from quantization.deployment import ExportOptions
from quantization.export import Exporter
from quantization.policy import Policy, PolicyBatch
from quantization.ranges import collect_ranges, made_up_ranges
from tests.networks import Subject

CHOICES = (*DEFAULT_CHOICES, BitWidths(5, 8), BitWidths(7, 8))
POLICIES = 40
LONGER_PREFIX = 1 << 21
"""Bytes from which on the length of a graph is written in four bytes, not three."""
HEADER = 2048
"""More bytes than a file holds besides its graph."""


@pytest.fixture(scope="module")
def size() -> ExportedSize:
    return ExportedSize()


def _policies(digits: Subject) -> PolicyBatch:
    """Random ones, behind all uniform ones."""
    network = digits.network
    shape = (POLICIES, len(network.layers))
    index = np.random.default_rng(0).integers(0, len(CHOICES), shape).astype(np.uint8)
    index[: len(CHOICES)] = np.arange(len(CHOICES))[:, None]
    return PolicyBatch(network.layer_names, CHOICES, index)


def test_total_is_the_length_of_the_built_file(size: ExportedSize, digits: Subject) -> None:
    exporter = Exporter(digits.network, made_up_ranges(digits.network))
    batch = _policies(digits)
    built = [len(exporter.build(batch[i])) for i in range(len(batch))]
    np.testing.assert_array_equal(size.total(digits.network, batch, Metric.SIZE), built)


def test_neither_ranges_nor_corrections_nor_the_method_for_weights_change_the_size(
    size: ExportedSize, digits: Subject
) -> None:
    ranges = collect_ranges(digits.network, digits.calibration[:20])
    options = ExportOptions(weight_method="minmax", reduce_range=True)
    exporter = Exporter(digits.network, ranges, options)
    batch = _policies(digits)
    built = [len(exporter.build(batch[i])) for i in range(8)]
    np.testing.assert_array_equal(size.total(digits.network, batch, Metric.SIZE)[:8], built)


def test_the_sum_of_the_table_is_the_file_to_the_byte(size: ExportedSize, digits: Subject) -> None:
    batch = _policies(digits)
    packed = np.array([c.weights < 8 for c in CHOICES])[batch.index].any(axis=1)
    assert packed.any()
    assert not packed.all(), "some files hold no function that unpacks weights"
    summed = total(size.table(digits.network, CHOICES, Metric.SIZE), digits.network, batch)
    np.testing.assert_array_equal(summed, size.total(digits.network, batch, Metric.SIZE))


def test_one_layer_below_8_bits_pays_for_the_function_that_unpacks_and_the_next_does_not(
    size: ExportedSize, digits: Subject
) -> None:
    network, narrow = digits.network, BitWidths(4, 8)
    table = size.table(network, CHOICES, Metric.SIZE)
    assert table.once is not None
    first, second = network.layer_names[:2]
    column = CHOICES.index(narrow), CHOICES.index(BitWidths(8, 8))
    integer = Policy.uniform(network, BitWidths(8, 8))
    policies = [
        integer,
        Policy({**integer.layers, first: narrow}),
        Policy({**integer.layers, first: narrow, second: narrow}),
    ]
    one, two = np.diff(size.total(network, PolicyBatch.of(network, policies), Metric.SIZE))
    shrunk = table.unary.value[:, column[0]] - table.unary.value[:, column[1]]
    assert (one, two) == (shrunk[0] + table.once.value, shrunk[1])


def test_choices_without_weights_below_8_bits_never_pay_for_unpacking(
    size: ExportedSize, digits: Subject
) -> None:
    table = size.table(digits.network, parse_choices("w8a8,w32a32"), Metric.SIZE)
    assert table.once is None


def test_where_graphs_differ_in_their_length_prefix_the_sum_is_at_most_a_byte_above_the_file(
    size: ExportedSize,
) -> None:
    sketch = Sketch()
    x = sketch.gemm(sketch.input((1, 512)), 512, 600)
    network = sketch.network(sketch.gemm(sketch.node("Relu", x), 600, 600))
    index = np.array(list(np.ndindex(len(CHOICES), len(CHOICES))), np.uint8)
    batch = PolicyBatch(network.layer_names, CHOICES, index)
    exact = size.total(network, batch, Metric.SIZE)
    assert exact.min() < LONGER_PREFIX < exact.max()
    above = total(size.table(network, CHOICES, Metric.SIZE), network, batch) - exact
    assert set(above) == {0.0, 1.0}
    assert (above[exact > LONGER_PREFIX + HEADER] == 0).all()


def test_fewer_bits_take_fewer_bytes(size: ExportedSize, digits: Subject) -> None:
    widths = parse_choices("w2a8,w3a8,w4a8,w5a8,w6a8,w7a8,w8a8,w32a32")
    uniform = [Policy.uniform(digits.network, bits) for bits in widths]
    batch = PolicyBatch.of(digits.network, uniform, widths)
    bytes_ = size.total(digits.network, batch, Metric.SIZE)
    assert (np.diff(bytes_) > 0).all()
    weights = sum(layer.weight_count for layer in digits.network.layers)
    assert bytes_[-1] > 4 * weights
    assert bytes_[0] > weights / 4


def test_a_policy_that_names_no_layer_has_the_size_of_the_float_file(
    size: ExportedSize, digits: Subject
) -> None:
    empty = PolicyBatch.of(digits.network, [Policy({}), Policy.uniform(digits.network, FLOAT32)])
    first, second = size.total(digits.network, empty, Metric.SIZE)
    assert first == second


def test_the_table_is_exact_bytes_and_is_made_once(size: ExportedSize, digits: Subject) -> None:
    table = size.table(digits.network, CHOICES, Metric.SIZE)
    assert (table.unit, table.statistic) == (Unit.BYTES, "exact")
    assert set(table.unary.provenance.ravel()) == {"exact"}
    assert size.table(digits.network, CHOICES, Metric.SIZE) is table


def test_what_cannot_be_deployed_has_no_size(size: ExportedSize, digits: Subject) -> None:
    choices = parse_choices("w4a4,w8a8,w16a16,fp16,w4a32,w32a32")
    table = size.table(digits.network, choices, Metric.SIZE)
    deployable = [str(c) in ("w8a8", "w32a32") for c in choices]
    np.testing.assert_array_equal(
        table.supported, np.broadcast_to(deployable, table.supported.shape)
    )
    batch = PolicyBatch.of(digits.network, [Policy.uniform(digits.network, BitWidths(4, 4))])
    with pytest.raises(UnsupportedChoiceError, match="w4a4"):
        size.total(digits.network, batch, Metric.SIZE)


def test_only_size_is_priced(size: ExportedSize, digits: Subject) -> None:
    with pytest.raises(BackendError, match="size does not price latency"):
        size.table(digits.network, CHOICES, Metric.LATENCY)
