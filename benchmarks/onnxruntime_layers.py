"""Single layers as ONNX Runtime runs them: bound buffers, one thread, nothing around."""

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from hil.ort import session_options
from hil.timing import Run
from hil.tvm.shapes import Convolution
from quantization.reading import OPSET

_BLOCK = 32
"""Weights of `MatMulNBits` that share a scale."""
_ACCURACY = 4
"""Its activations become bytes: the quickest of its kernels."""
_TYPES = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}


def is_matrix(shape: Convolution) -> bool:
    """Whether a layer is a matrix product: rows of one image, a pointwise kernel."""
    return shape.height == 1 and shape.pointwise


def float_layer(shape: Convolution) -> Run:
    """Return what runs a layer in float32."""
    weights = _weights(shape).astype(np.float32)
    if is_matrix(shape):
        matrix = np.ascontiguousarray(weights.reshape(shape.out_channels, -1).T)
        product = helper.make_node("MatMul", ["x", "w"], ["y"])
        return _bound([product], {"w": matrix}, _extents(shape), _made(shape), "float32")
    node = helper.make_node("Conv", ["x", "w"], ["y"], **_attributes(shape))
    return _bound([node], {"w": weights}, _extents(shape), _made(shape), "float32")


def integer_layer(shape: Convolution) -> Run:
    """Return what runs a layer on bytes, requantized to bytes: ``QLinearConv`` or ``QGemm``."""
    weights, axis = _weights(shape), 0
    spread = np.float32(np.sqrt(weights[0].size) * 0.1)
    operator = helper.make_node("Conv", ["xf", "wf", "bf"], ["yf"], **_attributes(shape))
    if is_matrix(shape):
        weights, axis = np.ascontiguousarray(weights.reshape(shape.out_channels, -1).T), 1
        operator = helper.make_node("Gemm", ["xf", "wf", "bf"], ["yf"])
    scale = np.full(shape.out_channels, 0.01, np.float32)
    step = np.float32(0.02)
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=axis),
        helper.make_node("DequantizeLinear", ["b", "bs"], ["bf"], axis=0),
        operator,
        helper.make_node("QuantizeLinear", ["yf", "ys", "yz"], ["y"]),
    ]
    values = {
        "w": weights,
        "ws": scale,
        "wz": np.zeros(shape.out_channels, np.int8),
        "xs": step,
        "xz": np.uint8(37),
        "b": np.zeros(shape.out_channels, np.int32),
        "bs": step * scale,
        "ys": spread,
        "yz": np.uint8(11),
    }
    return _bound(nodes, values, _extents(shape), _made(shape), "uint8")


def weights_only(shape: Convolution, bits: int) -> Run:
    """Return what runs a matrix product with weights of so many bits: ``MatMulNBits``."""
    inner, outer = shape.in_channels, shape.out_channels
    random = np.random.default_rng(0)
    blocks = -(-inner // _BLOCK)
    packed = random.integers(0, 256, (outer, blocks, _BLOCK * bits // 8)).astype(np.uint8)
    scales = random.random(outer * blocks).astype(np.float32)
    node = helper.make_node(
        "MatMulNBits",
        ["x", "w", "s"],
        ["y"],
        domain="com.microsoft",
        K=inner,
        N=outer,
        bits=bits,
        block_size=_BLOCK,
        accuracy_level=_ACCURACY,
    )
    return _bound([node], {"w": packed, "s": scales}, _extents(shape), _made(shape), "float32")


def empty_session() -> Run:
    """Return a session that does next to nothing: what calling one takes."""
    return _bound([helper.make_node("Identity", ["x"], ["y"])], {}, (1,), (1,), "uint8")


def _weights(shape: Convolution) -> npt.NDArray[np.int8]:
    inner = 1 if shape.depthwise else shape.in_channels
    kind = (shape.out_channels, inner, *shape.kernel)
    return np.random.default_rng(0).integers(-127, 128, kind).astype(np.int8)


def _attributes(shape: Convolution) -> dict[str, object]:
    return {
        "kernel_shape": shape.kernel,
        "strides": shape.stride,
        "pads": shape.pads,
        "group": shape.out_channels if shape.depthwise else 1,
    }


def _extents(shape: Convolution) -> tuple[int, ...]:
    if is_matrix(shape):
        return shape.width, shape.in_channels
    return 1, shape.in_channels, shape.height, shape.width


def _made(shape: Convolution) -> tuple[int, ...]:
    if is_matrix(shape):
        return shape.width, shape.out_channels
    return 1, shape.out_channels, *shape.output


def _bound(
    nodes: list[onnx.NodeProto],
    values: "dict[str, npt.NDArray[np.generic] | np.generic]",
    extents: tuple[int, ...],
    made: tuple[int, ...],
    content: str,
) -> Run:
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", _TYPES[content], extents)],
        [helper.make_tensor_value_info("y", _TYPES[content], made)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(
        model.SerializeToString(), session_options(1), providers=["CPUExecutionProvider"]
    )
    random = np.random.default_rng(0)
    given = random.integers(0, 256, extents).astype(content)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(given))
    room = ort.OrtValue.ortvalue_from_shape_and_type(made, np.dtype(content).type, "cpu")
    binding.bind_ortvalue_output("y", room)
    return lambda: session.run_with_iobinding(binding)
