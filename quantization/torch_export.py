"""Export torch modules to ONNX with nodes that carry the names of their modules."""

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    import torch

INPUT = "x"


def export_module(
    module: "torch.nn.Module", example: "torch.Tensor", path: str | Path | None = None
) -> onnx.ModelProto:
    """Export `module` to ONNX, batch-norms kept, each node with a weight named by its module.

    Needs the package `onnxscript` (extra ``train``).

    Args:
        module: a module in evaluation mode that takes one tensor.
        example: an input; its shape becomes the fixed shape of the model's input ``x``.
        path: where to write the model; None writes nothing.

    Returns:
        The model.
    """
    import torch

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
            optimize=False,
            verbose=False,
        )
    assert program is not None  # dynamo=True always returns a program
    model: onnx.ModelProto = program.model_proto
    for node in model.graph.node:
        if len(node.input) > 1 and node.input[1].endswith(".weight"):
            node.name = node.input[1].removesuffix(".weight")
        del node.metadata_props[:]
    del model.graph.value_info[:], model.metadata_props[:], model.functions[:]
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    model.graph.doc_string = model.doc_string = ""
    if path is not None:
        Path(path).write_bytes(model.SerializeToString(deterministic=True))
    return model
