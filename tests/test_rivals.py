"""The comparison with other packages runs where they are installed: CI does not install them."""

import importlib.util
import re
from functools import cache

import pytest

from benchmarks.rival_zigzag import Shape, clock, hardware, workload
from costmodels.accelerator import Accelerator
from costmodels.accelerator_files import find
from quantization.bits import BitWidths
from quantization.network import Layer
from tests.scripts import run_script


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("onnx_tool", r"onnx-tool [\d.]+\n[^$]*resnet18 +1814\.\d+ +[\d.]+ +[\d.]+"),
        ("zigzag", r"zigzag-dse [\d.]+\n[^$]*w2a2 +-?[\d.]+ +-?[\d.]+ +[\d.]+ +[\d.]+"),
    ],
)
def test_the_quick_comparison_prints_a_rivals_figures(module: str, expected: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is of the optional extra 'rivals', which is not installed")
    done = _quick()
    assert re.search(expected, done), done


def test_a_rival_that_is_not_installed_is_named_and_left_out() -> None:
    if importlib.util.find_spec("onnx_tool") and importlib.util.find_spec("zigzag"):
        pytest.skip("both packages of the optional extra 'rivals' are installed: none is missing")
    assert re.search(r"\S+ is not installed, left out: pip install", _quick())


def test_zigzag_gets_the_units_capacity_bandwidth_and_energies_of_the_file() -> None:
    accelerator = find("bit-fusion")
    assert isinstance(accelerator, Accelerator)
    assert clock(accelerator) == 500e6
    given = hardware(accelerator)
    assert given["operational_array"]["sizes"] == [32, 16]
    assert given["operational_array"]["unit_energy"] == pytest.approx(0.23)
    buffer, outer = given["memories"]["buffer"], given["memories"]["DRAM"]
    assert buffer["size"] == 112 * 1024 * 8
    assert {port["bandwidth_max"] for port in buffer["ports"]} == {32 * 16 * 8}
    assert buffer["r_cost"] == buffer["w_cost"] == pytest.approx(32 * 16 * 8 * 20 / 64)
    assert [port["bandwidth_max"] for port in outer["ports"]] == [192]
    assert outer["r_cost"] == outer["w_cost"] == pytest.approx(192 * 1300 / 64)


def test_zigzag_gets_the_extents_and_widths_of_a_layer() -> None:
    layer = Layer(
        "depthwise", "Conv", 96, 96, (3, 3), (2, 2), 96, (112, 112), (56, 56), 1, ("x",), "y"
    )
    given = workload(Shape.of(layer), BitWidths(4, 8))
    sizes = dict(zip(given["loop_dims"], given["loop_sizes"], strict=True))
    assert sizes == {"B": 1, "G": 96, "K": 1, "C": 1, "OY": 56, "OX": 56, "FY": 3, "FX": 3}
    assert given["operand_precision"] == {"W": 4, "I": 8, "O": 32, "O_final": 8}
    assert given["pr_loop_sizes"] == [112, 112]
    assert given["padding"] == [[0, 1], [0, 1]]


@cache
def _quick() -> str:
    return run_script("benchmarks/analytical.py", "--quick")
