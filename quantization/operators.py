"""What is known about each ONNX operator that is not a layer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GlueTraits:
    """How a glue operator behaves under quantization.

    Args:
        integer: ONNX Runtime's CPU provider runs it on uint8 (checked on optimized graphs of
            version 1.32 by `tests/hil/test_audit.py`).
        moves_only: values are moved or selected, never computed: input and output share a scale.
        takes_constants: it still runs on integers if one operand is a constant (its shape, axes).
    """

    integer: bool = False
    moves_only: bool = False
    takes_constants: bool = True


_FLOAT = GlueTraits()
_INTEGER = GlueTraits(integer=True)
_ARITHMETIC = GlueTraits(integer=True, takes_constants=False)
_MOVES = GlueTraits(integer=True, moves_only=True)

GLUE: dict[str, GlueTraits] = {
    **dict.fromkeys(("Sigmoid", "LeakyRelu", "GlobalAveragePool", "AveragePool"), _INTEGER),
    **dict.fromkeys(("Add", "Mul", "Concat"), _ARITHMETIC),
    **dict.fromkeys(("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "MaxPool"), _MOVES),
    **dict.fromkeys(
        (
            *("Relu", "Clip"),  # on their own; fused ones follow their producer
            *("Sub", "Div", "Pow", "Sqrt", "Exp", "Log", "Erf", "Neg", "Abs", "Min", "Max"),
            *("Softmax", "LogSoftmax", "HardSigmoid", "HardSwish", "Gelu", "Tanh", "Elu", "PRelu"),
            *("BatchNormalization", "LayerNormalization", "InstanceNormalization", "ReduceMean"),
            *("ReduceSum", "ReduceMax", "GlobalMaxPool", "Split", "Slice", "Gather", "Pad"),
            *("Resize", "DepthToSpace", "SpaceToDepth", "Cast", "Expand", "ArgMax", "Where"),
        ),
        _FLOAT,
    ),
}
"""Known glue operators. Anything else is reported as unknown and runs in float."""

FUSABLE_ACTIVATIONS = frozenset({"Relu", "Clip"})
"""Activations that requantization with a clamped range replaces."""
