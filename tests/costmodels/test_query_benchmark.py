"""The benchmark of pricing runs and reports what README quotes; how fast it is, it says itself."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_query_benchmark_prices_a_53_layer_network_and_reports_both_ratios() -> None:
    command = [sys.executable, "benchmarks/query.py", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["layers"] == 53
    assert result["policies"] == 2000
    assert result["total_s"] > 0
    assert result["ratio_to_bare_layers"] > 0
    assert result["ratio_to_bare_blocks"] > 0
