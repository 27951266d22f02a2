"""Operators that have no kernel of ours: as Apache TVM imports them from ONNX."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from quantization.reading import OPSET

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class OnnxOperator:
    """One operator of ONNX.

    Args:
        model: a model of it alone, serialized; its inputs in order are those of the step.
        inputs: shapes.
    """

    model: bytes
    inputs: tuple[tuple[int, ...], ...]

    @classmethod
    def of(
        cls,
        node: onnx.NodeProto,
        shapes: Mapping[str, tuple[int, ...]],
        output: str,
        constants: Mapping[str, Array],
        content: str = "float32",
    ) -> "OnnxOperator":
        """Return the operator of a node.

        Args:
            node: the node.
            shapes: of its inputs.
            output: the one that is wanted.
            constants: values of its other inputs, and more.
            content: type of the elements that it reads and writes; floats unless it moves them.
        """
        alone = onnx.NodeProto()
        alone.CopyFrom(node)
        alone.name = ""
        names = {name: f"x{i}" for i, name in enumerate(shapes)}
        held = [name for name in dict.fromkeys(node.input) if name and name not in shapes]
        names |= {name: f"c{i}" for i, name in enumerate(held)}
        alone.input[:] = [names.get(name, "") for name in node.input]
        alone.output[:] = [f"y{i}" if name else "" for i, name in enumerate(node.output)]
        form = helper.np_dtype_to_tensor_dtype(np.dtype(content))
        wanted = f"y{list(node.output).index(output)}"
        graph = helper.make_graph(
            [alone],
            "operator",
            [
                helper.make_tensor_value_info(names[name], form, shape)
                for name, shape in shapes.items()
            ],
            [helper.make_tensor_value_info(wanted, form, None)],
            [numpy_helper.from_array(np.asarray(constants[n]), names[n]) for n in held],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model = onnx.shape_inference.infer_shapes(model)  # that of the output, which TVM warns of
        return cls(model.SerializeToString(deterministic=True), tuple(shapes.values()))

    def function(self, name: str) -> Any:
        """Return a ``relax.Function`` that takes and returns tensors shaped as in ONNX."""
        from tvm.relax.frontend.onnx import from_onnx

        del name  # whoever adds it to a module gives it one
        made = from_onnx(onnx.load_model_from_string(self.model), keep_params_in_input=False)
        return made["main"].without_attr("global_symbol")
