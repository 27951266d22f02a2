"""Verdicts of paired comparisons in words."""

from hil.compare import Comparison


def verdict_of(name: str, compared: Comparison) -> str:
    """Return in words what the comparison of a candidate with the float network found."""
    if name == "float":
        return "reference"
    if compared.verdict.value == "undecided":
        return f"no difference above {compared.detectable:.1%}"
    return compared.verdict.value
