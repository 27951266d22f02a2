"""Ranges whose method differs by tensor, layer and width; what a policy carries of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from quantization.errors import DataError, PolicyError, did_you_mean
from quantization.network import Network
from quantization.quantizer import WEIGHT_METHODS, Float32Array, WeightMethod
from quantization.ranges import RANGE_METHODS, Limits, RangeMethod, Ranges, collect_ranges

Methods = Mapping[int, Mapping[str, str]]


@dataclass(frozen=True)
class RangeChoices:
    """Which method chooses a range, where it is not the default.

    Args:
        activations: width to tensor to method; the default is ``minmax``. A tensor that only holds
            another's values in another shape follows that one.
        weights: width to layer to method; the default is the exporter's.

    Raises:
        PolicyError: for a method that is not known.
    """

    activations: Mapping[int, Mapping[str, RangeMethod]] = field(default_factory=dict)
    weights: Mapping[int, Mapping[str, WeightMethod]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for given, known in ((self.activations, RANGE_METHODS), (self.weights, WEIGHT_METHODS)):
            for width, methods in given.items():
                for name, method in methods.items():
                    if method not in known:
                        raise PolicyError(
                            f"the range of {name!r} at {width} bits is chosen by {method!r}"
                            f"{did_you_mean(str(method), known)}; choose {', '.join(known)}"
                        )

    def to_json(self) -> dict[str, dict[str, dict[str, str]]]:
        """Return what a policy's option ``ranges`` holds, as JSON values."""
        parts: dict[str, Methods] = {"activations": self.activations, "weights": self.weights}
        return {
            part: {str(width): dict(sorted(m.items())) for width, m in sorted(given.items()) if m}
            for part, given in parts.items()
        }

    @classmethod
    def from_json(cls, content: object) -> "RangeChoices":
        """Read what `to_json` made.

        Raises:
            PolicyError: if it is no such thing.
        """
        example = '{"activations": {"8": {"TENSOR": "mse"}}, "weights": {"4": {"LAYER": "minmax"}}}'
        if not isinstance(content, dict) or set(content) - {"activations", "weights"}:
            raise PolicyError(f"a table of ranges looks like {example}")
        read: dict[str, dict[int, dict[str, str]]] = {"activations": {}, "weights": {}}
        for part, by_width in content.items():
            if not isinstance(by_width, dict):
                raise PolicyError(f"a table of ranges looks like {example}")
            for width, methods in by_width.items():
                if not (str(width).isdecimal() and isinstance(methods, dict)):
                    raise PolicyError(f"a table of ranges looks like {example}")
                read[part][int(width)] = {str(n): str(method) for n, method in methods.items()}
        return cls(read["activations"], read["weights"])  # type: ignore[arg-type]


def chosen_ranges(network: Network, inputs: Float32Array, choices: RangeChoices) -> Ranges:
    """Collect ranges as `choices` say; a squared error is the least at the width that it is for.

    Args:
        network: a network with one input.
        inputs: (N, ...) float32.
        choices: the methods.

    Raises:
        DataError: if the inputs do not fit the network, or it has no such tensor or layer.
    """
    tensors = {t.name for t in network.tensors} - network.inner_tensors
    layers = set(network.layer_names)
    for given, known, what in (
        (choices.activations, tensors, "tensor"),
        (choices.weights, layers, "layer"),
    ):
        for methods in given.values():
            if unknown := sorted(set(methods) - known):
                raise DataError(
                    f"the table of ranges names {what} {unknown[0]!r}, which the network lacks"
                    f"{did_you_mean(unknown[0], known)}"
                )
    base = collect_ranges(network, inputs)
    at_width: dict[int, dict[str, Limits]] = {}
    for width, methods in choices.activations.items():
        collected = {m: collect_ranges(network, inputs, m, width) for m in set(methods.values())}
        limits = {name: collected[method].limits[name] for name, method in methods.items()}
        at_width[width] = followed(network, limits)
    weights = {(n, width): m for width, ms in choices.weights.items() for n, m in ms.items()}
    return replace(base, method="best", at_width=at_width, weights=weights)


def followed(network: Network, limits: Mapping[str, Limits]) -> dict[str, Limits]:
    """Give what only moves values the limits of what it moves, also where that has none."""
    result = dict(limits)
    for glue in network.glue:
        if glue.moves_only and glue.outputs:
            result.pop(glue.outputs[0], None)
            if glue.inputs[0] in result:
                result[glue.outputs[0]] = result[glue.inputs[0]]
    return result
