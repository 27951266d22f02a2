"""The shipped contract, over every registered backend and over one from another package."""

import importlib
import importlib.util
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from costmodels.accelerator_files import find, shipped
from costmodels.errors import TableError, UnsupportedChoiceError
from costmodels.model import CostModel, TableBackend
from costmodels.presets import Preset
from costmodels.registry import backend, backends
from costmodels.replay import TableReplay
from costmodels.size import ExportedSize
from costmodels.sketch import Sketch, example_network
from costmodels.table import Cells, CostTable, FloatArray, Provenance
from costmodels.testing import CostModelContract, Subject
from costmodels.units import Metric
from quantization.bits import DEFAULT_CHOICES, FLOAT32, BitWidths, parse_choices
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch

EVERY_WIDTH = parse_choices("w2a2,w3a3,w4a4,w4a8,w5a8,w8a8,w16a16,w8a32,fp16,w32a32")
ELSEWHERE = {
    "ort": Path("tests/hil/test_contract.py"),  # it measures
    "calibrated": Path("tests/costmodels/calibrated/test_backend.py"),  # it needs a device
    "tvm": Path("tests/hil/tvm/test_contract.py"),  # it measures
}
"""Backends whose contract test stands in another file."""


class TestHaq(CostModelContract):
    choices = EVERY_WIDTH

    @classmethod
    def model(cls) -> CostModel:
        return backend("analytical:haq")


class TestHorowitz(CostModelContract):
    choices = EVERY_WIDTH

    @classmethod
    def model(cls) -> CostModel:
        return backend("analytical:horowitz")


class TestExportedSize(CostModelContract):
    """Not registered: the size of a file is always asked of the exporter."""

    @classmethod
    def model(cls) -> CostModel:
        return ExportedSize()


class TestReplay(CostModelContract):
    """``table:FILE`` on a table with glue, conversions, a constant and cells that are masked."""

    folder: ClassVar[Path]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _folder(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.folder = tmp_path_factory.mktemp("tables")

    @classmethod
    def model(cls) -> CostModel:
        path = cls.folder / "table.json"
        path.write_text(_measured_like(cls.network(), DEFAULT_CHOICES).to_json())
        return backend(f"table:{path}")


def _measured_like(network: Network, choices: Sequence[BitWidths]) -> CostTable:
    """A table with every kind of cell: masked, negative, uncertain."""
    plain = backend("analytical:haq").table(network, choices, Metric.LATENCY)
    random = np.random.default_rng(3)
    unary = plain.unary.value.copy()
    unary[1, 2] = unary[3, 0] = np.inf
    conversion = random.uniform(-1e-6, 3e-6, plain.conversion.value.shape)
    conversion[:, range(len(plain.formats)), range(len(plain.formats))] = 0.0
    return replace(
        plain,
        unary=Cells.of(
            unary, Provenance.MEASURED, kernel="QLinearConv", uncertainty=np.full_like(unary, 1e-7)
        ),
        glue=Cells.of(random.uniform(0, 1e-6, plain.glue.value.shape), Provenance.CALIBRATED),
        conversion=Cells.of(conversion, Provenance.CALIBRATED),
        constant=2e-6,
        statistic="p10",
        measurements=[{"samples_s": [1e-6, 2e-6]}],
    )


FAKE_MODULE = """
import numpy as np

from costmodels.errors import TableError
from costmodels.model import TableBackend
from costmodels.table import Cells, CostTable, Provenance
from costmodels.units import Metric, Unit
from quantization.bits import formats_of


class Fake(TableBackend):
    name = "fake"
    metrics = frozenset({Metric.LATENCY})

    def table(self, network, choices, metric, /):
        self.require(metric)
        f = len(formats_of(choices))
        tensors = tuple(tensor.name for tensor in network.tensors)
        bits = np.array([[c.weights + c.activations for c in choices]])
        macs = np.array([[layer.macs] for layer in network.layers])
        return CostTable(
            metric, Unit.CYCLES, "model", network.digest, network.layer_names, tuple(choices),
            tuple(glue.name for glue in network.glue), tensors,
            Cells.of(macs * bits, Provenance.ANALYTICAL),
            Cells.of(np.ones((len(network.glue), f)), Provenance.ANALYTICAL),
            Cells.of(np.tile(5.0 * (1 - np.eye(f)), (len(tensors), 1, 1)), Provenance.ANALYTICAL),
            source={"backend": self.name},
        )


def create(argument, context):
    return Fake()
"""


@pytest.fixture(scope="class")
def fake_package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on the path, as if a package with one backend had been installed there."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "fake_costs.py").write_text(FAKE_MODULE)
    about = folder / "fake_costs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-costs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        textwrap.dedent(
            """
            [costmodels.backends]
            fake = fake_costs:create
            """
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        importlib.invalidate_caches()
        yield folder
    sys.modules.pop("fake_costs", None)


@pytest.mark.usefixtures("fake_package")
class TestBackendOfAnotherPackage(CostModelContract):
    choices = EVERY_WIDTH

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _installed(cls, fake_package: Path) -> None:
        assert fake_package.is_dir()

    @classmethod
    def model(cls) -> CostModel:
        return backend("fake")


CONTRACTS = {"analytical": (TestHaq, TestHorowitz), "table": (TestReplay,)}


@pytest.mark.parametrize("name", backends())
def test_every_registered_backend_has_a_contract_test(name: str) -> None:
    if name in CONTRACTS:
        return
    module, _, _ = backends()[name].value.partition(":")
    assert importlib.util.find_spec(module), f"the entry point {name!r} names no module"
    assert name in ELSEWHERE, f"backend {name!r} has no contract test; inherit CostModelContract"
    file = Path(__file__).parents[2] / ELSEWHERE[name]
    assert file.is_file(), f"{file} is missing"
    assert "(CostModelContract)" in file.read_text(), f"{file} holds no contract test"


def test_every_closed_formula_has_a_contract_test() -> None:
    tested = {contract.model().name for contract in CONTRACTS["analytical"]}
    formulas = [name for name in shipped() if isinstance(find(name), Preset)]
    assert tested == {f"analytical:{name}" for name in formulas}


class _Broken(TableBackend):
    """A backend that breaks the contract in one way."""

    name = "broken"
    metrics = frozenset({Metric.LATENCY})

    def __init__(self, defect: str) -> None:
        self.defect = defect
        self.calls = 0

    def table(self, network: Network, choices: Sequence[BitWidths], metric: Metric, /) -> CostTable:
        if self.defect != "prices everything":
            self.require(metric)
        if self.defect == "one table for every network":
            network = example_network()
        if self.defect == "refuses others in its table only" and network.layer_names == ("only",):
            raise TableError("another network")
        table = backend("analytical:haq").table(network, choices, metric)
        value = table.unary.value.copy()
        if self.defect == "free layer":
            value[2] = 0.0
        if self.defect == "order of choices":
            value *= np.arange(1, 1 + len(choices))
        if self.defect == "layer that never runs":
            value[0] = np.inf
        if self.defect == "layers in another order":
            return replace(table, layers=table.layers[::-1])
        if self.defect == "silent about its source":
            return replace(table, source={})
        if self.defect == "picoseconds":
            value *= 1e12
        return replace(table, unary=Cells.of(value, Provenance.ANALYTICAL))

    def total(self, network: Network, policies: PolicyBatch, metric: Metric, /) -> FloatArray:
        self.calls += 1
        if self.defect == "accepts what is not supported":
            return np.full(len(policies), 1.0)
        if self.defect == "totals whatever the network":
            return np.full(len(policies), 1.0)
        if self.defect == "refuses others in its table only" and network.layer_names == ("only",):
            return np.full(len(policies), 1.0)
        costs = super().total(network, policies, metric)
        if self.defect == "noisy":
            return costs * (1 + 1e-6 * self.calls)
        return costs * 1.01 if self.defect == "another sum" else costs


@pytest.mark.parametrize(
    ("defect", "test"),
    [
        ("free layer", "test_what_is_not_supported_is_masked_and_never_nan_or_zero"),
        ("layer that never runs", "test_what_is_not_supported_is_masked_and_never_nan_or_zero"),
        ("order of choices", "test_the_order_of_choices_does_not_matter"),
        ("layers in another order", "test_each_table_fits_its_network_and_choices"),
        ("silent about its source", "test_each_table_fits_its_network_and_choices"),
        ("picoseconds", "test_seconds_joules_and_bytes_are_of_a_possible_size"),
        ("noisy", "test_total_is_deterministic"),
        ("another sum", "test_total_is_the_sum_over_the_cells_of_the_table"),
        ("prices everything", "test_asking_for_another_metric_is_an_error"),
        ("accepts what is not supported", "test_a_policy_with_unsupported_bits_is_an_error"),
        *(
            (defect, "test_another_network_is_priced_as_what_it_is_or_is_an_error")
            for defect in (
                "one table for every network",
                "totals whatever the network",
                "refuses others in its table only",
            )
        ),
    ],
)
def test_the_contract_catches(defect: str, test: str) -> None:
    choices = parse_choices("w2a8,w8a8,w32a32,fp16")
    subject = Subject(_Broken(defect), example_network(), choices)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        getattr(CostModelContract(), test)(subject)


def test_a_sound_backend_passes_what_the_defects_fail() -> None:
    subject = Subject(_Broken("none"), example_network(), parse_choices("w2a8,w8a8,w32a32,fp16"))
    for name in vars(CostModelContract):
        if name.startswith("test_"):
            getattr(CostModelContract(), name)(subject)


def test_overriding_a_contract_test_is_an_error() -> None:
    with pytest.raises(TypeError, match="exempted, not overridden"):
        type("Cheat", (CostModelContract,), {"test_total_is_deterministic": lambda _: None})


def test_an_exemption_from_a_test_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(TypeError, match="do not exist"):
        type("Stale", (CostModelContract,), {"exemptions": {"test_gone": "was renamed"}})


def test_an_exemption_without_a_reason_is_an_error() -> None:
    with pytest.raises(TypeError, match="reason"):
        type("Lazy", (CostModelContract,), {"exemptions": {"test_total_is_deterministic": ""}})


def test_a_replay_refuses_another_network_in_its_table_and_in_its_total() -> None:
    table = _measured_like(example_network(), DEFAULT_CHOICES)
    sketch = Sketch()
    other = sketch.network(sketch.conv(sketch.input((1, 3, 5, 5)), 7, name="only"))
    batch = PolicyBatch.of(other, [Policy.uniform(other, FLOAT32)])
    with pytest.raises(TableError, match="another network"):
        TableReplay(table).table(other, DEFAULT_CHOICES, Metric.LATENCY)
    with pytest.raises(TableError, match="another network"):
        TableReplay(table).total(other, batch, Metric.LATENCY)


def test_a_replay_prices_a_batch_of_fewer_choices_than_it_holds() -> None:
    network = example_network()
    table = _measured_like(network, DEFAULT_CHOICES)
    fewer = parse_choices("w32a32,w8a8")
    index = np.random.default_rng(0).integers(0, 2, (20, len(network.layers))).astype(np.uint8)
    batch = PolicyBatch(network.layer_names, fewer, index)
    costs = TableReplay(table).total(network, batch, Metric.LATENCY)
    narrowed = TableReplay(table.restrict(fewer)).total(network, batch, Metric.LATENCY)
    np.testing.assert_allclose(costs, narrowed, rtol=1e-12)
    other = PolicyBatch(network.layer_names, parse_choices("w5a8"), index * 0)
    with pytest.raises(UnsupportedChoiceError, match="w5a8"):
        TableReplay(table).total(network, other, Metric.LATENCY)
