"""A network with its data, ready to be quantized."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from hil.ort import Runner
from quantization.bits import BitWidths, parse_choices
from quantization.errors import DataError, ModelError, PolicyError
from quantization.policy import Policy
from quantization.range_choices import RangeChoices
from quantization.reading import read_network
from quantmeter.data import Data
from quantmeter.workbench import Workbench, open_workbench
from tests.networks import Subject
from tests.quantization.graphs import make_model, node, normal

IMAGES = 100


@pytest.fixture(scope="module")
def bench(digits: Subject) -> Workbench:
    return open_workbench(digits.network, Data(digits.images[:IMAGES], digits.labels[:IMAGES]))


def test_parts_are_those_of_the_split(bench: Workbench, digits: Subject) -> None:
    assert bench.split is not None
    for name in ("ranges", "search", "test"):
        images, labels = bench.part(name)
        where = getattr(bench.split, name)
        np.testing.assert_array_equal(images, digits.images[where])
        np.testing.assert_array_equal(labels, digits.labels[where])
    np.testing.assert_array_equal(bench.range_inputs, bench.part("ranges")[0])


def test_ranges_come_from_the_part_for_ranges_only(bench: Workbench) -> None:
    assert bench.split is not None
    assert bench.exporter.ranges.images == len(bench.split.ranges)


def test_an_export_is_corrected_and_has_the_predicted_size(
    bench: Workbench, digits: Subject
) -> None:
    policy = Policy.uniform(digits.network, BitWidths(3, 8))
    model = bench.export(policy)
    assert len(model) == bench.exporter.size_bytes(policy)
    assert model != bench.exporter.build(policy)


def test_the_exported_file_computes_what_the_simulation_says(
    bench: Workbench, digits: Subject
) -> None:
    policy = Policy({name: BitWidths(4, 8) for name in digits.network.layer_names[2:9]})
    images = bench.part("test")[0]
    name = digits.network.input_names[0]
    runner = Runner(bench.export(policy), 1, {name: images[:1]})
    executed = np.concatenate([runner.run({name: images[i : i + 1]})[0] for i in range(20)])
    simulated = bench.simulation.logits(policy, images[:20], bench.corrections(policy))
    assert (executed.argmax(1) == simulated.argmax(1)).all()
    np.testing.assert_allclose(executed, simulated, atol=0.05 * float(np.abs(simulated).max()))


def test_float_labels_are_the_first_choice_of_the_float_network(
    bench: Workbench, digits: Subject
) -> None:
    name = digits.network.input_names[0]
    images = bench.part("test")[0]
    runner = Runner(digits.network.model.SerializeToString(), 1, {name: images[:1]})
    chosen = [int(runner.run({name: images[i : i + 1]})[0].argmax()) for i in range(len(images))]
    np.testing.assert_array_equal(bench.float_labels, chosen)


def test_without_data_an_export_works_and_nothing_is_corrected(digits: Subject) -> None:
    bare = open_workbench(digits.network)
    policy = Policy.uniform(digits.network, BitWidths(8, 8))
    assert bare.corrections(policy) == {}
    assert len(bare.export(policy)) == bare.exporter.size_bytes(policy)


def test_a_policy_that_does_not_fit_is_refused_before_anything_slow(
    digits: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = open_workbench(digits.network)
    monkeypatch.setattr(Workbench, "corrections", lambda _self, _policy: pytest.fail("too late"))
    with pytest.raises(PolicyError, match="not deployable"):
        bare.export(Policy.uniform(digits.network, BitWidths(4, 4)))
    with pytest.raises(PolicyError, match=r"no layer 'haed'.*did you mean 'head'"):
        bare.export(Policy({"haed": BitWidths(8, 8)}))


def test_a_network_that_puts_out_decisions_has_no_accuracy_and_takes_no_labels() -> None:
    model = make_model(
        [node("Conv", "x w", "a", "c"), node("ArgMax", "a", "y", "best", axis=1)],
        {"w": normal(4, 3, 1, 1)},
        {"x": (1, 3, 4, 4)},
        {},
    )
    info = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT64, None)
    model.graph.output.append(info)
    network, images = read_network(model), normal(IMAGES, 3, 4, 4)
    assert not open_workbench(network, Data(images, None)).classifies
    with pytest.raises(DataError, match="this network's is not float32; give data without y"):
        open_workbench(network, Data(images, np.zeros(IMAGES, np.int64)))


def test_policies_carry_the_ranges_that_measured_best(small: Subject) -> None:
    data = Data(small.images[:120], None)
    plain = open_workbench(small.network, data)
    best = plain.with_best_ranges(parse_choices("w3a8,w32a32"))
    table = best.policy_options["ranges"]
    assert isinstance(best.ranges, RangeChoices)
    assert isinstance(table, dict)
    assert set(table["activations"]) | set(table["weights"]) <= {"8", "3"}
    assert plain.policy_options == {}
    bits = dict.fromkeys(small.network.layer_names, BitWidths(3, 8))
    policy = Policy.from_json(Policy(bits, best.policy_options).to_json())
    # the policy alone says which file is meant: nothing is measured again
    assert plain.export(policy) == best.export(Policy(bits)) == best.export(policy)
    assert plain.export(policy) != plain.export(Policy(bits))
    again = plain.with_best_ranges(parse_choices("w3a8,w32a32"))
    assert again.ranges == best.ranges


def test_a_missing_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        open_workbench(tmp_path / "absent.onnx")
