"""``--agent``: knobs of REINFORCE's agent by the names of their fields in `ReinforceConfig`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields

from quantization.errors import QuantmeterError, did_you_mean
from search.reinforce_config import ReinforceConfig

Knobs = Mapping[str, int | float | bool]

_TINY = 1e-12
"""Instead of 0, where an agent would learn nothing."""
_RANGES: Mapping[str, tuple[float, float]] = {
    "patience": (1, math.inf),
    "rollouts": (1, 10_000),
    "hidden": (1, 10_000),
    "learning_rate": (_TINY, 1),
    "baseline_momentum": (0, 1),
    "advantage_limit": (_TINY, math.inf),
    "entropy": (0, math.inf),
    "new_share": (0, 1),
    "temperature_step": (1, 100),
    "temperature_limit": (1, 1000),
    "elites": (0, 10_000),
    "elite_weight": (0, math.inf),
    "gradient_limit": (_TINY, math.inf),
    "weights_first": (0, 1),
    "soft_target": (0, 1),
    "soft_rate": (0, math.inf),
    "imitation_probability": (0, 1),
    "imitation_steps": (0, math.inf),
}
"""Least and most of each; what is left out has a flag of its own, or decides no search."""


def parse_knobs(texts: Sequence[str]) -> Knobs:
    """Read ``--agent``: ``NAME=VALUE`` each.

    Raises:
        QuantmeterError: if there is no such knob, it is given twice, or its value is none.

    >>> parse_knobs(["learning_rate=0.002", "weights_first=true"])
    {'learning_rate': 0.002, 'weights_first': True}
    """
    kinds = {field.name: type(field.default) for field in fields(ReinforceConfig)}
    found: dict[str, int | float | bool] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or name not in _RANGES:
            raise QuantmeterError(
                f"{text!r} is no knob of the agent{did_you_mean(name, _RANGES)}; write NAME=VALUE "
                f"with one of {', '.join(_RANGES)}"
            )
        if name in found:
            raise QuantmeterError(f"two values for --agent {name}; give one")
        found[name] = _value(name, value, kinds[name])
    return found


def _value(name: str, text: str, kind: type) -> int | float | bool:
    if kind is bool:
        if text not in ("true", "false"):
            raise QuantmeterError(f"--agent {name} is true or false, not {text!r}")
        return text == "true"
    least, most = _RANGES[name]
    try:
        value = int(text) if kind is int else float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most or math.isinf(value):
        what = "a whole number" if kind is int else "a number"
        above = f"at least {least:g}" if math.isinf(most) else f"from {least:g} to {most:g}"
        raise QuantmeterError(f"--agent {name} is {what} {above}, not {text!r}")
    return value


def check_knobs(
    knobs: Knobs, method: str, constraint: str, *, started: bool, inherited: bool
) -> None:
    """Raise unless `method` has an agent that the knobs decide something of.

    Args:
        knobs: those given.
        method: of the search.
        constraint: what becomes of policies beyond a budget.
        started: whether the agent imitates a start policy.
        inherited: whether it continues others; those have the size that they were trained with.

    Raises:
        QuantmeterError: if not.
    """
    if knobs and method != "reinforce":
        raise QuantmeterError(f"--method {method} has no agent: leave out --agent")
    if inherited and "hidden" in knobs:
        raise QuantmeterError("the agents of --init-from have their size: leave out --agent hidden")
    elite = [knobs[name] for name in ("elites", "elite_weight") if name in knobs]
    if len(elite) == 2 and 0 in elite:
        raise QuantmeterError("no elites, or none that weigh: leave out elites or elite_weight")
    for name in knobs:
        if name.startswith("soft_") and constraint != "soft":
            raise QuantmeterError(f"--agent {name} needs --constraint soft")
        if name.startswith("imitation_") and not started and not inherited:
            raise QuantmeterError(f"--agent {name} needs --warm or --init-from")
