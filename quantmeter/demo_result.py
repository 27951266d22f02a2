"""What the demo found, and the files that say so."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costmodels.table import CostTable
from costmodels.units import Metric
from quantization.bits import BitWidths
from quantization.errors import BudgetError
from quantization.policy import Policy
from quantmeter.benchmarking import FLOAT, Benchmark, Benchmarked
from quantmeter.preparing import Prepared
from quantmeter.runs import Found, costs_from
from search.exact import Solution
from search.oracle import Interval

LATENCY_BUDGET = 0.7
"""Of the float network's latency."""
EQUAL_SIZE = BitWidths(3, 8)
"""The size budget is the size of this uniform policy: what would uniform quantization give up?"""


@dataclass(frozen=True, eq=False)
class DemoResult:
    """What the demo found.

    Args:
        prepared: network, data, tables, budgets, sensitivities.
        table: the measured latency table, before any tightening.
        rows: one per method and uniform policy, in figures.
        timed: all of them timed, interleaved, with float.
        optimum: the certificate.
        deployed: name of the row that is deployed; None if none meets the budget.
        attempts: searches that were needed.
        float_accuracy: of the float network on the test part.
    """

    prepared: Prepared
    table: CostTable
    rows: tuple[Found, ...]
    timed: Benchmark
    optimum: Solution
    deployed: str | None
    attempts: int
    float_accuracy: Interval

    @property
    def policy(self) -> Policy | None:
        """The deployed policy."""
        return next((row.policy for row in self.rows if row.name == self.deployed), None)

    def write(self, out: Path) -> None:
        """Write policies, the deployed model, JSON and the page into the folder `out`."""
        from quantmeter.report import render

        for row in self.rows:
            path = out / f"{_slug(row.name)}.policy.json"
            path.write_text(row.policy.to_json(), encoding="utf-8")
        if self.policy is not None:
            (out / "deployed.onnx").write_bytes(self.prepared.bench.export(self.policy))
            (out / "deployed.policy.json").write_text(self.policy.to_json(), encoding="utf-8")
        content = self.to_dict()
        text = json.dumps(content, indent=2, allow_nan=False)
        (out / "result.json").write_text(text + "\n", encoding="utf-8")
        (out / "report.html").write_text(render(content), encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        prepared, bench = self.prepared, self.prepared.bench
        problem = prepared.problem
        timed = {r.name: r.to_dict() for r in self.timed.results}
        for entry in timed.values():
            for key in ("samples", "accuracy", "accuracy_interval"):  # accuracy is the row's
                del entry[key]
        accuracy = self.float_accuracy
        return {
            "version": 1,
            "network": {
                "layers": len(bench.network.layers),
                "macs": bench.network.macs,
                "weight_count": sum(layer.weight_count for layer in bench.network.layers),
                "digest": bench.network.digest,
            },
            "device": dict(self.timed.device),
            "runtime": dict(self.timed.runtime),
            "noise_floor": {**self.timed.noise.to_dict(), "relative": self.timed.noise.furthest},
            "budgets": {
                "latency_ratio": LATENCY_BUDGET,
                "size_bytes": problem.budgets[Metric.SIZE],
                "size_is_that_of": f"uniform {EQUAL_SIZE}",
            },
            "split": {k: len(getattr(bench.split, k)) for k in ("ranges", "search", "test")},
            "certificate": {"proxy_optimum": self.optimum.loss, "proven": self.optimum.proven},
            "calibration": {
                key: self.table.source[key]
                for key in (
                    *("policies", "disturbed_policies", "unlike_policies", "failed_policies"),
                    *("inputs", "validation", "seconds"),
                )
            },
            "costs_from": costs_from(problem.tables),
            "energy": {
                "note": "analytical, not measured here",
                "source": dict(problem.tables[Metric.ENERGY].source),
            },
            "deployed": self.deployed,
            "attempts": self.attempts,
            "rows": [{**row.to_dict(), "timed": timed[row.name]} for row in self.rows],
            "float": {
                "test_accuracy": accuracy.share,
                "test_accuracy_interval": [accuracy.low, accuracy.high],
                "costs": {
                    metric.value: prepared.costs.float_reference(bench.network, metric)
                    for metric in problem.tables
                },
                "timed": timed[FLOAT],
            },
            "layers": list(self._layers()),
        }

    def _layers(self) -> Iterator[Mapping[str, Any]]:
        """Per layer: cost at each choice in each metric, and sensitivity."""
        problem, sensitivity = self.prepared.problem, self.prepared.sensitivity
        assert sensitivity is not None
        tables = {**problem.tables, Metric.LATENCY: self.table}
        for i, layer in enumerate(self.prepared.bench.network.layers):
            yield {
                "name": layer.name,
                "kind": "depthwise" if layer.is_depthwise else layer.kind,
                "macs": layer.macs,
                "weight_count": layer.weight_count,
                "deployed_bits": None if self.policy is None else str(self.policy[layer.name]),
                "choices": {
                    str(bits): {
                        **{
                            m.value: _finite(float(table.unary.value[i, k]))
                            for m, table in tables.items()
                        },
                        "kernel": str(self.table.unary.kernel[i, k]),
                        "kl": float(sensitivity.kl[i, k]),
                        "accuracy_drop": float(sensitivity.drop[i, k]),
                    }
                    for k, bits in enumerate(problem.choices)
                },
            }

    def exceeded(self) -> BudgetError:
        """Return the error that says that no policy met its budgets when measured."""
        size = self.prepared.problem.budgets[Metric.SIZE]
        small = [r for r in self.timed.results if r.size_bytes <= size]
        best = min((r.ratio_limit for r in small if r.audit.ok), default=None)
        limit = "none passed its audit"
        if best is not None:
            limit = f"the lowest upper limit, with the noise floor above it, was {best:.3f}x"
        return BudgetError(
            f"after {self.attempts} searches no audited policy of at most {size:,.0f} bytes met "
            f"{LATENCY_BUDGET}x of float when measured; {limit}"
        )


def meets(result: Benchmarked, size_bytes: float) -> bool:
    """Whether a file is what was asked for and meets the budgets, beyond the noise floor."""
    fast = result.ratio_limit <= LATENCY_BUDGET
    return result.audit.ok and fast and result.size_bytes <= size_bytes


def discard(out: Path) -> None:
    """Delete what another run left in the folder `out`, so that no two runs are mixed."""
    for pattern in ("*.policy.json", "deployed.onnx", "result.json", "report.html", "table.json"):
        for path in out.glob(pattern):
            path.unlink()


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
