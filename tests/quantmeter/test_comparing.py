"""The verb ``compare``, with measurements that are made up: every figure is known beforehand."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

import quantmeter
from costmodels.errors import BackendError, CostError, UnsupportedChoiceError
from costmodels.measured import MeasuredPolicies
from costmodels.pricing import total
from costmodels.registry import backend
from costmodels.sketch import Sketch
from costmodels.table import CostTable, FloatArray
from costmodels.units import Metric, Unit
from hil.calibration import FailedPolicyError
from hil.records import Failure, FailureKind
from quantization.bits import DEFAULT_CHOICES, BitWidths
from quantization.errors import PolicyError
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch
from quantmeter.comparing import POLICIES, Compared, compare


def _network(layers: int = 7) -> Network:
    sketch = Sketch()
    x = sketch.input((1, 3, 8, 8))
    for i in range(layers):
        x = sketch.node("Relu", sketch.conv(x, 4 + i, kernel=3, name=f"conv{i}"))
    return sketch.network(x)


NETWORK = _network()
TABLE = backend("analytical:haq").table(NETWORK, DEFAULT_CHOICES, Metric.LATENCY)


@dataclass
class World:
    """Measures what a table says, and keeps which policies it was asked for.

    Args:
        table: the truth.
        crashes: positions of the calls that crash.
        asked: the policies, in order.
    """

    table_: CostTable = TABLE
    crashes: frozenset[int] = frozenset()
    asked: list[Policy] = field(default_factory=list)
    name: str = "world"
    metrics: frozenset[Metric] = frozenset({Metric.LATENCY})

    def table(self, *_: object) -> CostTable:
        raise AssertionError("what was measured is wanted, no table")

    def total(self, network: Network, policies: PolicyBatch, _metric: Metric, /) -> FloatArray:
        assert len(policies) == 1, "each is committed when it is made"
        self.asked.append(policies[0])
        if len(self.asked) - 1 in self.crashes:
            raise FailedPolicyError(Failure(FailureKind.KILLED, "signal 11"))
        return total(self.table_, network, policies)


@pytest.fixture
def tables(tmp_path: Path) -> Mapping[str, str]:
    """The truth, and other tables, as values of ``--cost``."""
    unary = TABLE.unary.value.copy()
    unary[0, DEFAULT_CHOICES.index(BitWidths(8, 8))] *= 1e3  # it thinks conv0 loses as w8a8
    made = {
        "truth": TABLE,
        "eighth": TABLE.scaled(1 / 8),
        "cycles": replace(TABLE.scaled(1e9), unit=Unit.CYCLES),
        "wrong": replace(TABLE, unary=replace(TABLE.unary, value=unary)),
        "narrow": TABLE.restrict([c for c in DEFAULT_CHOICES if c != BitWidths(4, 8)]),
    }
    for name, table in made.items():
        (tmp_path / f"{name}.json").write_text(table.to_json())
    return {name: f"table:{tmp_path / name}.json" for name in made}


def _rows(found: Compared) -> dict[str, dict[str, object]]:
    return {str(row["name"]): row for row in found.to_dict()["backends"]}


def test_the_verb_is_at_the_front_door() -> None:
    assert quantmeter.compare is compare


def test_random_policies_are_measured_once_each_with_both_uniform_ones() -> None:
    world = World()
    found = compare(NETWORK, [], live=world)
    assert len(world.asked) == POLICIES + 2
    assert len({tuple(policy.layers.values()) for policy in world.asked}) == POLICIES + 2
    assert found.names == (*(f"random {i + 1}" for i in range(POLICIES)), "float", "w8a8")
    assert list(found.measured.policies.values()) == world.asked
    assert found.measured.policies["w8a8"] == Policy.uniform(NETWORK, BitWidths(8, 8))
    assert found.measured.policies["float"] == Policy.uniform(NETWORK, BitWidths(32, 32))
    assert found.notes == ()
    assert found.measured.source["backend"] == "world"
    assert found.measured.source["runtime"]["threads"] == 1


def test_the_seed_decides_what_is_drawn() -> None:
    worlds = [World(), World(), World()]
    for world, seed in zip(worlds, (0, 0, 1), strict=True):
        compare(NETWORK, [], policies=5, seed=seed, live=world)
    assert worlds[0].asked == worlds[1].asked
    assert worlds[0].asked != worlds[2].asked


def test_what_is_drawn_is_not_what_a_calibration_with_the_same_seed_draws() -> None:
    from hil.calibration import as_policy
    from hil.design import mixture

    world, network = World(), _network(20)
    world.table_ = backend("analytical:haq").table(network, DEFAULT_CHOICES, Metric.LATENCY)
    compare(network, [], policies=10, live=world)
    judged = mixture(np.ones(20, np.bool_), 0)
    known = [as_policy(network, next(judged)) for _ in range(30)]
    assert not [policy for policy in world.asked[:10] if policy in known]


def test_a_network_with_few_different_policies_gives_fewer_and_says_so() -> None:
    network = _network(2)
    truth = backend("analytical:haq").table(network, DEFAULT_CHOICES, Metric.LATENCY)
    found = compare(network, [], policies=9, live=World(truth))
    assert len(found.names) == 4
    assert found.notes == ("only 2 different random policies were found of 9",)


def test_each_backend_has_its_row_in_order_and_the_rivals_follow(
    tables: Mapping[str, str],
) -> None:
    costs = [tables["eighth"], tables["truth"], f"latency={tables['cycles']}"]
    found = compare(NETWORK, costs, policies=6, live=World())
    rows = _rows(found)
    names = [tables["eighth"], tables["truth"], tables["cycles"], "MACs x bits", "size"]
    assert list(rows) == names
    eighth, truth, cycles, macs, size = rows.values()
    assert truth["error"] == {"mean_absolute": pytest.approx(0.0), "near": 1.0}
    assert eighth["error"] == {"mean_absolute": pytest.approx(7 / 8), "near": 0.0}
    assert eighth["scale"] == pytest.approx(8)
    assert [row["error"] for row in (cycles, macs, size)] == [None, None, None]
    for row in (eighth, truth, cycles):
        assert row["scaled"] == {"mean_absolute": pytest.approx(0.0), "near": 1.0}
        assert row["rank_correlation"] == pytest.approx(1.0)
        assert row["regret"] == 0.0
        assert row["picked"] == ["w8a8"]
    json.dumps(found.to_dict(), allow_nan=False)


def test_regret_is_that_of_the_policy_which_a_wrong_table_picks(
    tables: Mapping[str, str],
) -> None:
    names = NETWORK.layer_names
    policies = {
        "all but the first": Policy(dict.fromkeys(names[1:], BitWidths(8, 8))),
        "the first alone": Policy({names[0]: BitWidths(8, 8)}),
    }
    found = compare(NETWORK, [tables["wrong"]], policies=policies, live=World())
    assert found.names == (*policies, "float", "w8a8")
    times = dict(zip(found.names, found.measured.seconds.tolist(), strict=True))
    row = _rows(found)[tables["wrong"]]
    assert row["picked"] == ["all but the first"]
    assert row["picked_cost"] == times["all but the first"]
    assert row["regret"] == pytest.approx(times["all but the first"] / times["w8a8"] - 1)
    assert row["regret"] > 0.001  # type: ignore[operator]
    assert found.to_dict()["best"] == {"name": "w8a8", "seconds": times["w8a8"]}


def test_measured_policies_are_compared_again_without_measuring(
    tables: Mapping[str, str], tmp_path: Path
) -> None:
    first = compare(NETWORK, [tables["truth"]], policies=4, seed=5, live=World())
    (tmp_path / "measured.json").write_text(first.measured.to_json())
    idle = World()
    again = compare(NETWORK, [tables["truth"]], measured=tmp_path / "measured.json", live=idle)
    assert idle.asked == []
    assert again.to_dict() == first.to_dict()
    assert again.measured.source["seed"] == 5


def test_a_policy_that_crashes_is_left_out_and_the_others_are_compared(
    tables: Mapping[str, str],
) -> None:
    world = World(crashes=frozenset({1, 3}))
    found = compare(NETWORK, [tables["truth"]], policies=4, live=world)
    assert found.names == ("random 1", "random 3", "float", "w8a8")
    assert [note.split(" is left out: ")[0] for note in found.notes] == ["random 2", "random 4"]
    assert "killed: signal 11" in found.notes[0]
    row = _rows(found)[tables["truth"]]
    assert row["error"] == {"mean_absolute": pytest.approx(0.0), "near": 1.0}
    assert len(row["predicted"]) == 4  # type: ignore[arg-type]


def test_where_too_few_policies_could_be_timed_the_reason_is_told() -> None:
    world = World(crashes=frozenset(range(5)))
    with pytest.raises(BackendError, match=r"1 of 6 policies could be timed; .*signal 11"):
        compare(NETWORK, [], policies=4, live=world)


def test_what_a_backend_cannot_price_is_said_before_anything_is_measured(
    tables: Mapping[str, str],
) -> None:
    world = World()
    four, narrow = ({"mine": Policy({"conv1": BitWidths(4, a)})} for a in (8, 4))
    with pytest.raises(UnsupportedChoiceError, match=r"narrow\.json: .*w4a8"):
        compare(NETWORK, [tables["truth"], tables["narrow"]], policies=four, live=world)
    with pytest.raises(BackendError, match=r"energy=analytical:haq prices no latency"):
        compare(NETWORK, ["energy=analytical:haq"], live=world)
    with pytest.raises(BackendError, match="given twice"):
        compare(NETWORK, ["analytical:haq", "latency=analytical:haq"], live=world)
    with pytest.raises(PolicyError, match=r"mine: layer 'conv1' at w4a4: no kernels"):
        compare(NETWORK, [], policies=narrow, live=world)
    with pytest.raises(PolicyError, match="'float' names a policy that is measured anyway"):
        compare(NETWORK, [], policies={"float": Policy({})}, live=world)
    assert world.asked == []


def test_measured_policies_that_do_not_fit_are_an_error(tables: Mapping[str, str]) -> None:
    one = MeasuredPolicies(NETWORK.digest, {"a": Policy({})}, np.ones(1))
    two = MeasuredPolicies("0" * 64, {"a": Policy({}), "b": Policy({})}, np.ones(2))
    both = replace(two, network=NETWORK.digest)
    with pytest.raises(CostError, match="at least two"):
        compare(NETWORK, [tables["truth"]], measured=one)
    with pytest.raises(CostError, match="another network"):
        compare(NETWORK, [tables["truth"]], measured=two)
    with pytest.raises(PolicyError, match="not both"):
        compare(NETWORK, [tables["truth"]], measured=both, policies=3)


def test_policies_that_no_file_can_hold_are_compared_without_a_size() -> None:
    """They may have been measured on another device, which runs them."""
    policies = {"float": Policy({}), "w4a4": Policy.uniform(NETWORK, BitWidths(4, 4))}
    held = MeasuredPolicies(NETWORK.digest, policies, np.array([2.0, 1.0]))
    found = compare(NETWORK, ["analytical:haq"], measured=held)
    assert [each.name for each in found.agreements] == ["analytical:haq", "MACs x bits"]
    assert "without the size" in found.notes[0]


def test_progress_goes_from_policy_to_policy() -> None:
    seen: list[tuple[float, str]] = []
    compare(NETWORK, [], policies=2, live=World(), progress=lambda *moved: seen.append(moved))
    assert [share for share, _ in seen] == [0.0, 0.25, 0.5, 0.75]
    assert seen[1][1] == "1 of 4 policies timed"
