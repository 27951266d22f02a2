"""Export torch modules to ONNX with nodes that carry the names of their modules."""

import ast
import copy
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from quantization.errors import ModelError
from quantization.network import LAYER_KINDS

if TYPE_CHECKING:
    import torch

INPUT = "x"
_SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata of a node: the modules that it comes from, outermost first, then its own name."""
_TOLERANCE = 1e-4
"""Of the largest output: float sums in another order differ by less."""


def export_module(
    module: "torch.nn.Module", example: "torch.Tensor", path: str | Path | None = None
) -> onnx.ModelProto:
    """Export `module` to ONNX, batch-norms kept, each layer and batch-norm named by its module.

    Needs the package `onnxscript` (extra ``train``).

    Args:
        module: a module that takes one tensor; put into evaluation mode. Exported as if its
            tensors were in the default memory format: views of others export for one batch only.
        example: an input; its shape becomes the fixed shape of the model's input ``x``.
        path: where to write the model; None writes nothing.

    Returns:
        The model; its output is ``logits``.

    Raises:
        ModelError: if ONNX Runtime computes something else than torch from `example`, or
            onnxscript is not installed.
    """
    import torch

    try:
        from onnxscript import optimizer
    except ImportError:
        raise ModelError("torch exports with onnxscript: pip install 'quantmeter[train]'") from None

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            copy.deepcopy(module.eval()).to(memory_format=torch.contiguous_format),  # type: ignore[call-overload]  # stub lacks it
            (torch.empty(example.shape, dtype=example.dtype).copy_(example),),
            dynamo=True,
            opset_version=21,
            input_names=[INPUT],
            output_names=["logits"],
            optimize=False,  # would fold the batch-norms into the convolutions
            verbose=False,
        )
    assert program is not None  # dynamo=True always returns a program
    optimizer.fold_constants(program.model)  # arithmetic on shapes
    optimizer.remove_unused_nodes(program.model)
    model: onnx.ModelProto = program.model_proto
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        _name_by_module(node, constants)
        del node.metadata_props[:]
    del model.graph.value_info[:], model.metadata_props[:], model.functions[:]
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    model.graph.doc_string = model.doc_string = ""
    _check_against_torch(model, module, example)
    if path is not None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(model.SerializeToString(deterministic=True))
    return model


def _name_by_module(node: onnx.NodeProto, constants: set[str]) -> None:
    if len(node.input) > 1 and node.input[1].endswith(".weight"):
        node.name = node.input[1].removesuffix(".weight")
    elif node.op_type in LAYER_KINDS and set(node.input[1:]) & constants:
        # A weight that was transposed lost its name; the module is still told.
        scopes = [entry.value for entry in node.metadata_props if entry.key == _SCOPES]
        path = ast.literal_eval(scopes[0])[:-1] if scopes else []
        if path and path[-1]:
            node.name = path[-1]


def _check_against_torch(
    model: onnx.ModelProto, module: "torch.nn.Module", example: "torch.Tensor"
) -> None:
    import onnxruntime
    import torch

    with torch.inference_mode():
        expected = module(example).numpy()
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    [found] = session.run(["logits"], {INPUT: example.numpy()})
    difference = float(np.abs(found - expected).max())
    if not difference <= _TOLERANCE * max(float(np.abs(expected).max()), 1e-6):
        raise ModelError(f"the exported model differs from torch by {difference:.2e}")
