"""The third verb."""

import json
import math

import pytest

from costmodels.model import BackendContext
from costmodels.units import Metric
from quantization.bits import FLOAT32, BitWidths
from quantization.errors import BitWidthError, PolicyError
from quantization.policy import Policy
from quantmeter.benchmarking import Benchmark, benchmark, parse_rival, read_policies
from quantmeter.costs import parse_costs
from quantmeter.data import Data
from quantmeter.workbench import Workbench, open_workbench
from tests.networks import Subject

IMAGES = 60


@pytest.fixture(scope="module")
def bench(digits: Subject) -> Workbench:
    return open_workbench(digits.network, Data(digits.images[:IMAGES], digits.labels[:IMAGES]))


@pytest.fixture(scope="module")
def policies(digits: Subject) -> dict[str, Policy]:
    names = digits.network.layer_names
    return {"some/p.json": Policy(dict.fromkeys(names[1:], BitWidths(4, 8)))}


@pytest.fixture(scope="module")
def found(bench: Workbench, policies: dict[str, Policy]) -> Benchmark:
    costs = parse_costs(["analytical:haq"], BackendContext())
    return benchmark(bench, policies, costs=costs, blocks=6)


def test_the_json_has_the_keys_that_others_rely_on(found: Benchmark) -> None:
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert {"device", "results"} <= set(content)
    assert [r["policy"] for r in content["results"]] == ["some/p.json", "float", "w8a8"]
    for result in content["results"]:
        assert {
            *("policy", "median_s", "p10_s", "ratio_to_float", "predicted_s"),
            *("predicted_ratio_to_float", "accuracy", "size_bytes", "audit"),
        } <= set(result)
        ratio = result["ratio_to_float"]
        assert ratio["low"] <= ratio["mid"] <= ratio["high"]
        assert 0 < result["p10_s"] <= result["median_s"] < 10
        assert 0 <= result["accuracy"] <= 1
        assert result["audit"]["ok"] is True
        for layer in result["audit"]["layers"]:
            assert {"name", "asked", "stored", "executed", "reason"} <= set(layer)
        assert result["p90_s"] is None or result["p90_s"] >= result["median_s"]
        assert result["p99_s"] is None or len(result["samples"]["samples_s"]) >= 662
    assert content["device"]["runtime"] == "onnxruntime"


def test_the_float_model_is_one_time_itself(found: Benchmark) -> None:
    [floats] = [r for r in found.results if r.name == "float"]
    assert floats.ratio_to_float.to_dict() == {"low": 1.0, "mid": 1.0, "high": 1.0}
    assert floats.predicted_ratio_to_float == 1.0
    assert {layer.asked for layer in floats.audit.layers} == {"w32a32"}


def test_the_noise_floor_is_the_float_network_beside_itself(found: Benchmark) -> None:
    content = found.to_dict()["noise_floor"]
    assert content["low"] <= content["mid"] <= content["high"]
    assert content["relative"] == found.noise.furthest
    assert 0.5 < found.noise.mid < 2.0
    assert found.floor == found.to_dict()["floor"] == max(0.01, found.noise.furthest)
    first = found.results[0]
    assert first.ratio_limit == first.ratio_to_float.high * (1 + found.floor)
    assert {result["floor"] for result in found.to_dict()["results"]} == {found.floor}
    beside = found.results[0].measurement.context["interleaved"]
    assert len(beside) == len(found.results) + 1


def test_cold_runs_start_with_empty_caches_and_the_result_says_so(
    bench: Workbench, policies: dict[str, Policy], found: Benchmark
) -> None:
    cold = benchmark(bench, policies, rivals=(), blocks=6, cold=True, score=False)
    context = cold.results[0].measurement.context
    assert (context["turns"]["mode"], cold.to_dict()["mode"]) == ("cold", "cold")
    assert context["swept_bytes"] > 0
    assert any(note.startswith("cold: the caches are emptied") for note in cold.notes)
    assert found.to_dict()["mode"] == "warm"
    assert not any("cold" in note for note in found.notes)


def test_a_percentile_that_the_runs_cannot_tell_is_absent(
    bench: Workbench, policies: dict[str, Policy]
) -> None:
    [only] = benchmark(bench, policies, rivals=(), blocks=6, score=False).results
    assert len(only.measurement.samples_s) < 662
    assert only.to_dict()["p99_s"] is None


def test_predictions_are_those_of_the_cost_model(
    found: Benchmark, bench: Workbench, policies: dict[str, Policy]
) -> None:
    costs = parse_costs(["analytical:haq"], BackendContext())
    [expected] = costs.total(bench.network, list(policies.values()), Metric.LATENCY)
    assert found.results[0].predicted_s == expected
    base = costs.float_total(bench.network, Metric.LATENCY)
    assert found.results[0].predicted_ratio_to_float == pytest.approx(expected / base)


def test_asked_bits_are_those_of_the_policy_and_unnamed_layers_stay_float(
    found: Benchmark,
) -> None:
    first, *others = found.results[0].audit.layers
    assert (first.asked, first.stored) == ("w32a32", "float32")
    assert "Conv" in first.executed
    assert "QLinearConv" not in first.executed
    assert {layer.asked for layer in others} == {"w4a8"}
    assert {layer.stored for layer in others} == {"int4 (bit planes)"}


def test_sizes_are_those_of_the_files(found: Benchmark, bench: Workbench) -> None:
    assert [r.size_bytes for r in found.results] == [
        bench.exporter.size_bytes(r.policy) for r in found.results
    ]


def test_accuracy_has_an_interval_and_is_on_the_test_part(
    found: Benchmark, bench: Workbench
) -> None:
    count = len(bench.part("test")[0])
    for result in found.results:
        assert result.accuracy is not None
        assert result.accuracy.low <= result.accuracy.share <= result.accuracy.high
        assert math.isclose(result.accuracy.share * count % 1, 0, abs_tol=1e-9)


def test_float_is_timed_even_if_it_is_no_rival(
    bench: Workbench, policies: dict[str, Policy]
) -> None:
    found = benchmark(bench, policies, rivals=(), blocks=6, score=False)
    [only] = found.results
    assert only.name == "some/p.json"
    assert only.ratio_to_float.mid > 0
    assert (only.predicted_s, only.predicted_ratio_to_float, only.accuracy) == (None, None, None)


def test_without_data_inputs_are_random_and_that_is_said(
    digits: Subject, policies: dict[str, Policy]
) -> None:
    found = benchmark(open_workbench(digits.network), policies, rivals=("w8a8",), blocks=6)
    assert any("random inputs" in note for note in found.notes)
    assert [r.accuracy for r in found.results] == [None, None]
    assert found.to_dict()["results"][0]["accuracy"] is None


def test_without_labels_accuracy_is_agreement_with_the_float_network(digits: Subject) -> None:
    bare = open_workbench(digits.network, Data(digits.images[:IMAGES], None))
    found = benchmark(bare, {}, rivals=("float",), blocks=6)
    assert found.results[0].accuracy is not None
    assert found.results[0].accuracy.share == 1.0


def test_rivals_are_float_or_bits_for_all(bench: Workbench) -> None:
    assert {parse_rival("float", bench)[n] for n in bench.network.layer_names} == {FLOAT32}
    assert parse_rival("w4a8", bench)["head"] == BitWidths(4, 8)
    with pytest.raises(BitWidthError, match="'int8' is no bit-width"):
        parse_rival("int8", bench)


def test_a_policy_that_cannot_be_deployed_is_refused(bench: Workbench) -> None:
    with pytest.raises(PolicyError, match="not deployable"):
        benchmark(bench, {"p": Policy({"head": BitWidths(4, 4)})}, blocks=6)


def test_a_policy_with_the_name_of_a_rival_is_refused(bench: Workbench) -> None:
    with pytest.raises(PolicyError, match="w8a8"):
        benchmark(bench, {"w8a8": Policy({})}, rivals=("w8a8",), blocks=6)


def test_policies_are_named_as_their_paths_are_typed() -> None:
    with pytest.raises(PolicyError, match=r"\./absent\.json"):
        read_policies(["./absent.json"])
