"""Records of who measured what."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from costmodels.errors import CostError
from costmodels.measurement import Device, Measurement

DEVICE = Device("a CPU", "x86_64", ("avx2", "fma"), 4, 2**30, "Linux 6", "onnxruntime", "1.32")


@pytest.mark.parametrize("bad", [0.0, -1e-3, math.nan, math.inf])
def test_a_sample_that_is_not_a_positive_time_is_rejected(bad: float) -> None:
    with pytest.raises(CostError, match="conv: every sample must be a positive time"):
        Measurement("conv", (1e-3, bad, 2e-3))


def test_a_measurement_without_samples_is_rejected() -> None:
    with pytest.raises(CostError, match="positive time"):
        Measurement("conv", ())


def test_block_numbers_are_one_for_each_sample() -> None:
    with pytest.raises(CostError, match="block number for each sample"):
        Measurement("conv", (1.0, 2.0), block=(0,))


def test_the_statistics_are_the_tenth_percentile_and_the_median_of_samples_only() -> None:
    samples = tuple(float(v) for v in range(1, 12))
    found = Measurement("conv", samples[::-1], warmups_s=(0.001, 99.0))
    assert found.p10_s == 2.0
    assert found.median_s == 6.0


def test_the_value_of_a_block_is_the_median_of_its_samples() -> None:
    found = Measurement("conv", (1.0, 9.0, 2.0, 5.0, 7.0), block=(0, 0, 0, 3, 3))
    assert found.block_values() == {0: 2.0, 3: 6.0}


def test_without_block_numbers_all_samples_are_one_block() -> None:
    assert Measurement("conv", (1.0, 3.0)).block_values() == {0: 2.0}


def test_records_are_plain_json() -> None:
    found = Measurement("conv", (1.0, 3.0), (0.5,), 7, (0, 1), {"load": [0.1, 0.2]})
    content = json.loads(json.dumps(found.to_dict()))
    assert Measurement(**{k: tuple(v) if isinstance(v, list) else v for k, v in content.items()})
    assert content["samples_s"] == [1.0, 3.0]
    assert json.loads(json.dumps(DEVICE.to_dict()))["isa"] == ["avx2", "fma"]


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"cpu": "another"}, False),
        ({"isa": ("avx2",)}, False),
        ({"runtime_version": "1.33"}, False),
        ({"memory_bytes": 1}, True),
        ({"cores": 1}, True),
        ({"system": "Linux 7"}, True),
    ],
)
def test_only_what_decides_speed_is_part_of_a_devices_identity(
    changed: dict[str, object], same: bool
) -> None:
    other = replace(DEVICE, **changed)  # type: ignore[arg-type]
    assert (other.identity == DEVICE.identity) is same


def test_p10_is_numpys_percentile() -> None:
    samples = np.random.default_rng(0).uniform(1, 2, 37)
    assert Measurement("x", tuple(samples)).p10_s == np.percentile(samples, 10)


def test_p90_needs_64_runs_and_p99_needs_662_and_the_median_none() -> None:
    for quantile, fewest in ((0.9, 64), (0.99, 662)):
        samples = tuple(np.random.default_rng(0).uniform(1, 2, fewest))
        assert Measurement("x", samples[1:]).quantile_s(quantile) is None
        assert Measurement("x", samples).quantile_s(quantile) == np.quantile(samples, quantile)
    assert Measurement("x", (3.0,)).quantile_s(0.5) == 3.0


def test_the_tail_of_means_is_not_told() -> None:
    samples = tuple(np.random.default_rng(0).uniform(1, 2, 700))
    assert Measurement("x", samples, inner_loops=2).quantile_s(0.9) is None
    assert Measurement("x", samples, inner_loops=2).quantile_s(0.5) == np.median(samples)


def test_another_quantile_may_stand_for_a_block() -> None:
    found = Measurement("conv", (1.0, 9.0, 2.0, 5.0, 7.0), block=(0, 0, 0, 3, 3))
    assert found.block_values(0.0) == {0: 1.0, 3: 5.0}
