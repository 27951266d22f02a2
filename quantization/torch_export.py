"""Export torch modules to ONNX with nodes that carry the names of their modules."""

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from quantization.errors import ModelError

if TYPE_CHECKING:
    import torch

INPUT = "x"
_TOLERANCE = 1e-4
"""Of the largest output: float sums in another order differ by less."""


def export_module(
    module: "torch.nn.Module", example: "torch.Tensor", path: str | Path | None = None
) -> onnx.ModelProto:
    """Export `module` to ONNX, batch-norms kept, each node with a weight named by its module.

    Needs the package `onnxscript` (extra ``train``).

    Args:
        module: a module that takes one tensor; put into evaluation mode.
        example: an input; its shape becomes the fixed shape of the model's input ``x``.
        path: where to write the model; None writes nothing.

    Returns:
        The model; its output is ``logits``.

    Raises:
        ModelError: if ONNX Runtime computes something else than torch from `example`.
    """
    import torch
    from onnxscript import optimizer

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            (example,),
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
    for node in model.graph.node:
        if len(node.input) > 1 and node.input[1].endswith(".weight"):
            node.name = node.input[1].removesuffix(".weight")
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
