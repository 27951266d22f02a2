"""ONNX operators in torch, for the accuracy simulation. Inputs are (N, ...) for any N."""

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812 - the name that everybody uses
from onnx import helper

from quantization.errors import ModelError
from quantization.torch_windows import convolve, convolve_transposed, pool, torch_padding

Tensor = torch.Tensor
Inputs = Sequence[Tensor | None]
Attributes = dict[str, Any]
Operator = Callable[[Inputs, Attributes], Tensor | tuple[Tensor, ...]]


def attributes(node: onnx.NodeProto) -> Attributes:
    """Return the attributes of `node` by name."""
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def operator(kind: str) -> Operator:
    """Return the torch form of the ONNX operator `kind`.

    Raises:
        ModelError: if there is none.
    """
    try:
        return _OPERATORS[kind]
    except KeyError:
        raise ModelError(
            f"accuracy cannot be simulated: operator {kind} is not known; "
            "price and time the network without --data, or add it to quantization/torch_operators"
        ) from None


def product(x: Tensor, weight: Tensor, bias: Tensor | None, given: Attributes) -> Tensor:
    """Gemm, or MatMul."""
    x = x.T if given.get("transA", 0) else x
    result = x @ (weight.T if given.get("transB", 0) else weight)
    if (alpha := given.get("alpha", 1.0)) != 1.0:
        result = result * alpha
    return result if bias is None else result + bias * given.get("beta", 1.0)


def _first(inputs: Inputs) -> Tensor:
    assert inputs[0] is not None
    return inputs[0]


def _integers(inputs: Inputs, position: int, fallback: Sequence[int] | None = None) -> list[int]:
    given = inputs[position] if len(inputs) > position else None
    if given is None:
        return list(fallback or [])
    return [int(v) for v in given.flatten().tolist()]


def _clip(inputs: Inputs, _given: Attributes) -> Tensor:
    low = inputs[1] if len(inputs) > 1 else None
    high = inputs[2] if len(inputs) > 2 else None
    return _first(inputs).clamp(
        None if low is None else float(low), None if high is None else float(high)
    )


def _reshape(inputs: Inputs, given: Attributes) -> Tensor:
    """Reshape; a leading extent that is the exported batch follows the actual batch."""
    x, target = _first(inputs), _integers(inputs, 1)
    if not given.get("allowzero", 0):
        target = [x.shape[i] if extent == 0 else extent for i, extent in enumerate(target)]
    known = math.prod(extent for extent in target if extent > 0)
    if -1 not in target and known != x.numel():
        target[0] = target[0] * x.numel() // known
    elif -1 in target and target[0] > 0:
        batch = x.shape[0]
        if target[0] == 1 and batch > 1:
            target[0] = batch
    return x.reshape(target)


def _flatten(inputs: Inputs, given: Attributes) -> Tensor:
    x, axis = _first(inputs), given.get("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _reduce(run: Callable[..., Tensor]) -> Operator:
    def reduced(inputs: Inputs, given: Attributes) -> Tensor:
        x = _first(inputs)
        axes = _integers(inputs, 1, given.get("axes", list(range(x.dim()))))
        return run(x, dim=axes, keepdim=bool(given.get("keepdims", 1)))

    return reduced


def _slice(inputs: Inputs, _given: Attributes) -> Tensor:
    x = _first(inputs)
    starts, ends = _integers(inputs, 1), _integers(inputs, 2)
    axes = _integers(inputs, 3, range(len(starts)))
    steps = _integers(inputs, 4, [1] * len(starts))
    index: list[slice] = [slice(None)] * x.dim()
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 1:
            raise ModelError("Slice with a negative step cannot be simulated")
        index[axis] = slice(start, end, step)
    return x[tuple(index)]


def _split(inputs: Inputs, given: Attributes) -> tuple[Tensor, ...]:
    x, axis = _first(inputs), given.get("axis", 0)
    sizes = _integers(inputs, 1)
    if not sizes:
        return torch.split(x, math.ceil(x.shape[axis] / given["num_outputs"]), axis)
    return torch.split(x, sizes, axis)


def _squeeze(inputs: Inputs, _given: Attributes) -> Tensor:
    x = _first(inputs)
    ones = [axis for axis, extent in enumerate(x.shape) if extent == 1 and axis]
    axes = _integers(inputs, 1, ones)
    return x.squeeze(tuple(axes))


def _unsqueeze(inputs: Inputs, _given: Attributes) -> Tensor:
    x = _first(inputs)
    rank = x.dim() + len(_integers(inputs, 1))
    for axis in sorted(a % rank for a in _integers(inputs, 1)):
        x = x.unsqueeze(axis)
    return x


def _pad(inputs: Inputs, given: Attributes) -> Tensor:
    if given.get("mode", b"constant") != b"constant" or len(inputs) > 3:
        raise ModelError("only constant padding over all axes is simulated")
    value = inputs[2] if len(inputs) > 2 else None
    return F.pad(_first(inputs), torch_padding(_integers(inputs, 1)), value=float(value or 0.0))


def _layer_norm(inputs: Inputs, given: Attributes) -> Tensor:
    x = _first(inputs)
    axis = given.get("axis", -1) % x.dim()
    bias = inputs[2] if len(inputs) > 2 else None
    return F.layer_norm(x, x.shape[axis:], inputs[1], bias, given.get("epsilon", 1e-5))


def _batch_norm(inputs: Inputs, given: Attributes) -> Tensor:
    x, scale, shift, mean, variance = inputs
    assert x is not None
    return F.batch_norm(x, mean, variance, scale, shift, eps=given.get("epsilon", 1e-5))


def _gather(inputs: Inputs, given: Attributes) -> Tensor:
    x, index = _first(inputs), inputs[1]
    assert index is not None
    axis = given.get("axis", 0) % x.dim()
    return x[(slice(None),) * axis + (index.long(),)]


def _weighted(run: Callable[[Tensor, Tensor, Tensor | None, Attributes], Tensor]) -> Operator:
    """An operator of input, weight and perhaps a bias."""

    def applied(inputs: Inputs, given: Attributes) -> Tensor:
        x, weight, bias = (*inputs, None)[:3]
        assert x is not None
        assert weight is not None
        return run(x, weight, bias, given)

    return applied


def _elementwise(run: Any) -> Operator:
    return lambda inputs, _given: run(*inputs)


def _fold(run: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """An operator of any number of inputs from one of two."""
    return lambda inputs, _given: reduce(run, [x for x in inputs if x is not None])


_OPERATORS: dict[str, Operator] = {
    "Conv": _weighted(convolve),
    "ConvTranspose": _weighted(convolve_transposed),
    "Gemm": _weighted(product),
    "MatMul": _weighted(product),
    **{
        kind: _elementwise(run)
        for kind, run in {
            "Relu": torch.relu,
            "Sigmoid": torch.sigmoid,
            "Tanh": torch.tanh,
            "Erf": torch.erf,
            "Exp": torch.exp,
            "Log": torch.log,
            "Sqrt": torch.sqrt,
            "Neg": torch.neg,
            "Abs": torch.abs,
            "HardSwish": F.hardswish,
            "Add": torch.add,
            "Sub": torch.sub,
            "Mul": torch.mul,
            "Div": torch.div,
            "Pow": torch.pow,
            "Identity": torch.clone,
        }.items()
    },
    "Min": _fold(torch.minimum),
    "Max": _fold(torch.maximum),
    "Clip": _clip,
    "LeakyRelu": lambda i, a: F.leaky_relu(_first(i), a.get("alpha", 0.01)),
    "Elu": lambda i, a: F.elu(_first(i), a.get("alpha", 1.0)),
    "PRelu": lambda i, _a: torch.where(_first(i) > 0, _first(i), _first(i) * i[1]),  # type: ignore[operator]
    "HardSigmoid": lambda i, a: (_first(i) * a.get("alpha", 0.2) + a.get("beta", 0.5)).clamp(0, 1),
    "Gelu": lambda i, a: F.gelu(_first(i), approximate=a.get("approximate", b"none").decode()),
    "Softmax": lambda i, a: torch.softmax(_first(i), a.get("axis", -1)),
    "LogSoftmax": lambda i, a: torch.log_softmax(_first(i), a.get("axis", -1)),
    "Concat": lambda i, a: torch.cat([x for x in i if x is not None], a["axis"]),
    "GlobalAveragePool": lambda i, _a: _first(i).mean(
        list(range(2, _first(i).dim())), keepdim=True
    ),
    "GlobalMaxPool": lambda i, _a: _first(i).amax(list(range(2, _first(i).dim())), keepdim=True),
    "AveragePool": lambda i, a: pool(_first(i), a, largest=False),
    "MaxPool": lambda i, a: pool(_first(i), a, largest=True),
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": lambda i, a: _first(i).permute(
        a.get("perm", list(reversed(range(_first(i).dim()))))
    ),
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax),
    "Slice": _slice,
    "Split": _split,
    "Pad": _pad,
    "Gather": _gather,
    "LayerNormalization": _layer_norm,
    "BatchNormalization": _batch_norm,
}


def constant(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Tensor:
    """Return a constant of the model as a tensor of its own memory."""
    return torch.from_numpy(np.array(array))
