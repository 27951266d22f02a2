"""The comparison with other packages runs where they are installed: CI does not install them."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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


def _quick() -> str:
    command = [sys.executable, "benchmarks/analytical.py", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
