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
        separates: it runs on floats in every session: the runtime has no integer kernel for it,
            never removes it, and moves nothing across it. Behind it no operator is re-quantized
            (checked by `tests/hil/test_audit.py`).
    """

    integer: bool = False
    moves_only: bool = False
    takes_constants: bool = True
    separates: bool = False


_FLOAT = GlueTraits()
_INTEGER = GlueTraits(integer=True)
_ARITHMETIC = GlueTraits(integer=True, takes_constants=False)
_MOVES = GlueTraits(integer=True, moves_only=True)
_SEPARATES = GlueTraits(separates=True)

GLUE: dict[str, GlueTraits] = {
    **dict.fromkeys(("Sigmoid", "LeakyRelu", "GlobalAveragePool", "AveragePool"), _INTEGER),
    **dict.fromkeys(("Add", "Mul", "Concat"), _ARITHMETIC),
    **dict.fromkeys(("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "MaxPool"), _MOVES),
    **dict.fromkeys(
        (
            *("Relu", "Clip"),  # on their own; fused ones follow their producer
            *("Sub", "Div", "Pow", "Min", "Max", "Softmax", "LogSoftmax", "PRelu"),
            *("BatchNormalization", "LayerNormalization", "InstanceNormalization", "ReduceMean"),
            *("ReduceSum", "ReduceMax", "GlobalMaxPool", "Split", "Slice", "Gather", "Pad"),
            *("Resize", "DepthToSpace", "SpaceToDepth", "Cast", "Expand", "ArgMax", "Where"),
        ),
        _FLOAT,
    ),
    **dict.fromkeys(
        (
            *("HardSigmoid", "HardSwish", "Gelu", "Tanh", "Elu"),
            *("Sqrt", "Exp", "Log", "Erf", "Neg", "Abs"),
        ),
        _SEPARATES,
    ),
}
"""Known glue operators. Anything else is reported as unknown and runs in float."""

FUSABLE_ACTIVATIONS = frozenset({"Relu", "Clip"})
"""Activations that requantization with a clamped range replaces."""
