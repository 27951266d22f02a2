"""Sessions of ONNX Runtime with fixed threads, and what they really execute."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from costmodels.errors import BackendError
from hil.buffers import BoundRun
from hil.cuda import load_libraries
from hil.providers import CPU, Provider
from quantization.errors import ModelError
from quantization.network import Network
from quantization.quantizer import Float32Array

_FATAL_ONLY = 4
_EXTERNAL = "session.optimized_model_external_initializers_"
_ENTRIES = {
    "session.set_denormal_as_zero": "1",
    "session.intra_op.allow_spinning": "1",
    "session.inter_op.allow_spinning": "0",
    "session.force_spinning_stop": "0",
    "session.use_env_allocators": "0",
    "session.disable_prepacking": "0",
}
"""Given explicitly, so that a new default of the runtime cannot change a timing unseen.

All but denormals and the pool between operators, which sequential execution never asks for work,
are the defaults of version 1.32: what a user's session does. Threads within an operator spin for a
moment after a run ends; a turn's discarded first runs outlast that of the candidate before.
"""


class Runner:
    """A loaded model, run with fixed inputs.

    Args:
        model: serialized ONNX model.
        threads: threads within an operator; operators run one after the other.
        feed: inputs by name that every `__call__` uses.
        check: gets the graph that this session executes; what it raises is passed on. Loading
            takes longer with it, running does not.
        provider: who executes it. One with bound buffers leaves the outputs of calls on its device.

    Raises:
        BackendError: if the provider's device is not there.
        ModelError: if the runtime refuses the model.
    """

    def __init__(
        self,
        model: bytes,
        threads: int,
        feed: Mapping[str, Float32Array],
        check: Callable[[onnx.GraphProto], None] | None = None,
        provider: Provider = CPU,
    ) -> None:
        options = session_options(threads)
        if check is None:
            self._session = load_session(model, options, provider)
        else:
            self._session, graph = load_with_graph(model, options, provider=provider)
            check(graph)
        self._feed = dict(feed)
        self._bound = BoundRun(self._session, provider, feed) if provider.bound else None

    def __call__(self) -> list[np.ndarray[Any, Any]]:
        """Run once on the fixed inputs; returns the outputs, none where they stay on a device."""
        if self._bound is not None:
            self._bound()
            return []
        outputs: list[np.ndarray[Any, Any]] = self._session.run(None, self._feed)
        return outputs

    def outputs(self) -> list[np.ndarray[Any, Any]]:
        """Run once on the fixed inputs and return the outputs, wherever they lie."""
        found = self()
        return found if self._bound is None else self._bound.outputs()

    def run(self, feed: Mapping[str, Float32Array]) -> list[np.ndarray[Any, Any]]:
        """Run once on other inputs."""
        outputs: list[np.ndarray[Any, Any]] = self._session.run(None, dict(feed))
        return outputs


def load_session(model: bytes, options: Any, provider: Provider = CPU) -> Any:
    """Return an ``onnxruntime.InferenceSession`` of `model`.

    Raises:
        BackendError: if the provider's device is not there.
        ModelError: if the runtime refuses the model.
    """
    import onnxruntime as ort

    given: dict[str, Any] = {"providers": provider.session_providers}
    if not provider.is_cpu:
        load_libraries()
        given["enable_fallback"] = 0  # its own retry prints, and hides why the device refused
    try:
        session = ort.InferenceSession(model, options, **given)
    except Exception as error:  # the runtime's errors share no base of their own
        raise ModelError(f"ONNX Runtime cannot load the model: {error}") from error
    if provider.executes not in session.get_providers():  # it falls back without an error
        raise BackendError(
            f"no such device: {provider.executes} cannot be used here, the session has only "
            f"{', '.join(session.get_providers())}; look for the libraries that it needs"
        )
    return session


def session_options(threads: int) -> Any:
    """Return options that fix what timing depends on and change no graph optimization."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _FATAL_ONLY
    options.enable_cpu_mem_arena = True
    options.enable_mem_pattern = True
    options.enable_mem_reuse = True
    for key, value in _ENTRIES.items():
        options.add_session_config_entry(key, value)
    return options


def recorded_options(threads: int, provider: Provider = CPU) -> dict[str, object]:
    """Return what `session_options` and the provider fix, for records.

    They are part of the identity of what is measured: providers never share measurements.
    """
    return {
        **provider.recorded(),
        "threads": threads,
        "execution": "sequential",
        "denormals": "zero",
        "optimization": "default",
        "memory_arena": True,
        "memory_pattern": True,
        "memory_reuse": True,
        **_ENTRIES,
    }


def optimized_graph(model: bytes, provider: Provider = CPU) -> onnx.GraphProto:
    """Return the graph that a default session makes of `model`, with the values of its constants.

    Raises:
        ModelError: if the runtime refuses the model.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    return load_with_graph(model, options, values=True, provider=provider)[1]


def load_with_graph(
    model: bytes, options: Any, *, values: bool = False, provider: Provider = CPU
) -> tuple[Any, onnx.GraphProto]:
    """Return a session as `load_session`, and the graph that it executes.

    Args:
        model: serialized ONNX model.
        options: of the session; where it writes its graph is set in them.
        values: whether the graph's constants have values; without, names, types and shapes only.
        provider: who executes it.

    Raises:
        BackendError: if the provider's device is not there.
        ModelError: if the runtime refuses the model.
    """
    # The graph is written to memory that vanishes with this process, however it ends. So are
    # constants left out, by a name relative to the graph's, since the runtime demands it; not to
    # /dev/null, which it would remove first where it is allowed to.
    with (
        os.fdopen(os.memfd_create("optimized.onnx"), "rb") as written,
        os.fdopen(os.memfd_create("constants"), "rb") as left_out,
    ):
        options.optimized_model_filepath = f"/proc/self/fd/{written.fileno()}"
        if not values:
            options.add_session_config_entry(f"{_EXTERNAL}file_name", str(left_out.fileno()))
            options.add_session_config_entry(f"{_EXTERNAL}min_size_in_bytes", "0")
        session = load_session(model, options, provider)
        return session, onnx.load_model_from_string(written.read()).graph


def random_inputs(network: Network, count: int, seed: int = 0) -> Float32Array:
    """Return made-up inputs, (count, ...): standard normal. For timing only, never for accuracy."""
    shape = network.tensor_by_name[network.input_names[0]].shape
    normal = np.random.default_rng(seed).standard_normal((count, *shape[1:]))
    return normal.astype(np.float32)


def one_feed(network: Network, inputs: Float32Array) -> dict[str, Float32Array]:
    """Return the first batch of `inputs` as a feed."""
    name = network.input_names[0]
    batch = network.tensor_by_name[name].shape[0]
    return {name: np.ascontiguousarray(np.resize(inputs[:batch], (batch, *inputs.shape[1:])))}
