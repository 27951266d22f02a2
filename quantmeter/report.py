"""The report page of a demo run: one HTML file without outside references.

The template prints; everything that is computed for it is computed here, the geometry of the charts
in `quantmeter.charts`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from costmodels.units import Unit, format_quantity
from quantization.bits import BitWidths
from quantmeter.charts import accuracy_chart, latency_chart
from quantmeter.prediction import describe_validation

TEMPLATES = Path(__file__).parent / "templates"

_ABSENT = "–"
_SPACE = "\N{NO-BREAK SPACE}"


def render(result: Mapping[str, Any]) -> str:
    """Return the page of what `quantmeter.demo.to_dict` returned."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "quantity": _or_absent(lambda value, unit: format_quantity(value, Unit(unit))),
        "percent": _or_absent(lambda value, digits=1: f"{100 * value:.{digits}f}{_SPACE}%"),
        "gap": _or_absent(lambda value: f"{format_gap(value)}{_SPACE}%"),
        "points": _or_absent(lambda value, sign="+": f"{100 * value:{sign}.1f}"),
        "divergence": _or_absent(lambda value: f"{value:.4f}" if value >= 5e-5 else "<0.0001"),
        "times": _or_absent(lambda value, digits=3: f"{value:.{digits}f}x"),
        "count": _or_absent(lambda value: f"{value:,.0f}"),
        "significant": _or_absent(lambda value, digits=2: f"{value:#.{digits}g}"),
        "place": lambda value: f"{value:.2f}%",
    }
    return environment.get_template("demo.html").render(page=describe_page(result))


def format_gap(gap: float) -> str:
    """Print a gap in percent, without the sign: a decimal below 100.

    >>> format_gap(0.2634), format_gap(-1e-17), format_gap(22.951)
    ('+26.3', '+0.0', '+2,295')
    """
    return f"{100 * gap:+z,.{1 if abs(gap) < 1 else 0}f}"


def _or_absent(formatter: Callable[..., str]) -> Callable[..., str]:
    def formatted(value: float | None, *arguments: Any) -> str:
        return _ABSENT if value is None else formatter(value, *arguments)

    return formatted


def describe_page(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the template prints: the result, its rows judged by the budgets, the charts."""
    rows = describe_rows(result)
    policies = [row for row in rows if row["kind"] != "float"]
    deployed = next((row for row in rows if row["deployed"]), None)
    rival = next((r for r in rows if r["name"] == result["budgets"]["size_is_that_of"]), None)
    in_size = [row for row in policies if row["size_met"]] or policies
    budget = result["budgets"]
    return {
        "result": result,
        "rows": rows,
        "deployed": deployed,
        "rival": rival,
        "reference": rows[-1],
        "gain": _gain(deployed, rival),
        "ahead": _ahead(policies, deployed),
        "validation": describe_validation(result["calibration"]["validation"]),
        "compared": [r for r in (rows[-1], deployed, rival) if r is not None],
        "spare_bytes": None if deployed is None else -deployed["over_bytes"],
        "audit": None if deployed is None else _count_audit(deployed["audit"]),
        "closest": min(in_size, key=lambda row: float(row["ratio"]["high"])),
        "accuracy_chart": accuracy_chart(rows),
        "latency_chart": latency_chart(policies, budget["latency_ratio"]),
        "table_refuses": [
            row["name"]
            for row in policies
            if row["size_met"] and row["latency_met"] and not row["feasible"]
        ],
        "layers": [describe_layer(layer) for layer in result["layers"]],
    }


def _gain(
    deployed: Mapping[str, Any] | None, rival: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """Return what the deployed policy wins in test accuracy over uniform bits of equal size."""
    if deployed is None or rival is None or deployed is rival:
        return None
    points = deployed["accuracy"] - rival["accuracy"]
    side = "below" if points < 0 else "above"
    return {"points": abs(points), "side": side, "apart": _apart(deployed, rival)}


def _ahead(
    policies: Sequence[Mapping[str, Any]], deployed: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """Return which policies within the budgets lead on the held-out images, if not the deployed.

    Where the interval of the first overlaps that of the deployed policy, so do all between them.
    """
    fitting = [row for row in policies if row["met"]]
    first = max(fitting, key=lambda row: float(row["accuracy"]), default=None)
    if deployed is None or first is None or first["accuracy"] <= deployed["accuracy"]:
        return None
    return {
        "names": [row["name"] for row in fitting if row["accuracy"] == first["accuracy"]],
        "accuracy": first["accuracy"],
        "interval": first["interval"],
        "apart": _apart(deployed, first),
    }


def _apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the intervals of two rows have no accuracy in common."""
    a, b = one["interval"], other["interval"]
    return bool(a[0] > b[1] or b[0] > a[1])


def _count_audit(audit: Mapping[str, Any]) -> Mapping[str, Any]:
    layers = audit["layers"]
    reasons = sorted({layer["reason"] for layer in layers if layer["reason"]})
    return {"ok": sum(layer["ok"] for layer in layers), "layers": len(layers), "reasons": reasons}


def describe_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the searched and uniform policies as given, then the float network.

    A budget counts as met when the file itself meets it: the upper limit of the measured latency
    ratio, with the noise floor above it, and the exported bytes. A gap to the optimum under the
    budgets means something only for a policy that keeps to them, which is why it is never negative.
    """
    budget = result["budgets"]
    rows = []
    for row in [*result["rows"], {"name": "float", **result["float"]}]:
        name, timed = row["name"], row["timed"]
        predicted, over = timed["predicted_ratio_to_float"], timed["size_bytes"]
        over -= budget["size_bytes"]
        keeps = over <= 0 and (predicted is None or predicted <= budget["latency_ratio"])
        gap = row.get("gap") if keeps else None
        limit = timed["ratio_to_float"]["high"] * (1 + timed["floor"])
        fast = limit <= budget["latency_ratio"]
        audit = timed["audit"]
        kind = "float" if name == "float" else "uniform"
        rows.append(
            {
                "name": name,
                "kind": kind if kind == "float" or name.startswith("uniform ") else "searched",
                "deployed": name == result["deployed"],
                "loss": row.get("proxy_loss"),
                "gap": gap if row.get("feasible") or (gap or 0.0) >= 0 else None,
                "search_accuracy": row.get("search_accuracy"),
                "accuracy": row["test_accuracy"],
                "interval": row["test_accuracy_interval"],
                "predicted": predicted,
                "ratio": timed["ratio_to_float"],
                "median_s": timed["median_s"],
                "size_bytes": timed["size_bytes"],
                "over_bytes": over,
                "times_smaller": result["float"]["timed"]["size_bytes"] / timed["size_bytes"],
                "energy": row.get("costs", {}).get("energy"),
                "latency_met": fast,
                "size_met": over <= 0,
                "met": fast and over <= 0 and audit["ok"],
                "feasible": row.get("feasible", False),
                "audit": audit,
            }
        )
    return rows


def describe_layer(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a layer with the choices that its line of the table prints.

    Every integer width executes the same kernel, so one of them speaks for INT8.
    """
    choices: Mapping[str, Mapping[str, Any]] = layer["choices"]
    integer = {bits: cell for bits, cell in choices.items() if bits != "w32a32"}
    absent: Mapping[str, Any] = {"latency": None, "kernel": _ABSENT}
    measured = [cell for cell in integer.values() if cell["latency"] is not None]
    fast, slow = measured[-1] if measured else absent, choices.get("w32a32", absent)
    deployed = layer["deployed_bits"]
    weight_bits = None if deployed is None else BitWidths.parse(deployed).weights
    return {
        **layer,
        "float": slow,
        "int8": fast,
        "slower": (fast["latency"] or 0.0) > (slow["latency"] or math.inf),
        "weight_bits": weight_bits,
        "bar": None if weight_bits is None else 100.0 * min(weight_bits, 8) / 8,
        "energy": None if deployed is None else choices[deployed]["energy"],
        "widths": [
            {**cell, "bits": bits, "shade": shade(cell["kl"]), "deployed": bits == deployed}
            for bits, cell in integer.items()
        ],
    }


def shade(kl: float) -> float:
    """Return how dark a cell is, 0 to 0.5, for a divergence: a step of 0.15 a decade from 1e-3."""
    return min(max(0.15 * (math.log10(max(kl, 1e-9)) + 3.0), 0.0), 0.5)
