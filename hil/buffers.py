"""Runs whose inputs and outputs lie on the device: no copy is timed, all that the device does is.

A GPU executes asynchronously: a run is over when the device says so, not when the call returns. So
the synchronisation belongs to the run. The same code runs on the CPU, where it changes nothing but
who allocates the outputs.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hil.providers import Provider
from quantization.quantizer import Float32Array

_NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


class BoundRun:
    """Runs a session on inputs and outputs that lie on the device of its provider.

    Inputs are copied there once. Outputs of known shape are allocated once, others by each run.

    Args:
        session: an ``onnxruntime.InferenceSession``.
        provider: that the session was made for.
        feed: inputs by name.
    """

    def __init__(self, session: Any, provider: Provider, feed: Mapping[str, Float32Array]) -> None:
        import onnxruntime as ort

        where = provider.device, provider.device_id
        self._session, self._binding = session, session.io_binding()
        self._kept = {n: ort.OrtValue.ortvalue_from_numpy(x, *where) for n, x in feed.items()}
        for name, value in self._kept.items():
            self._binding.bind_ortvalue_input(name, value)
        for output in session.get_outputs():
            kind = _NUMPY_TYPES.get(output.type)
            if kind is not None and all(isinstance(extent, int) for extent in output.shape):
                value = ort.OrtValue.ortvalue_from_shape_and_type(output.shape, kind, *where)
                self._binding.bind_ortvalue_output(output.name, value)
            else:
                self._binding.bind_output(output.name, *where)
        self._binding.synchronize_inputs()

    def __call__(self) -> None:
        """Run once, and wait until the device is done."""
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def outputs(self) -> list[np.ndarray[Any, Any]]:
        """Return copies of what the last run left on the device."""
        copied: list[np.ndarray[Any, Any]] = self._binding.copy_outputs_to_cpu()
        return copied


def prepared_run(
    session: Any, provider: Provider, feed: Mapping[str, Float32Array]
) -> Callable[[], object]:
    """Return what runs `session` once as `provider` has it: bound, or with inputs as they are."""
    if provider.bound:
        return BoundRun(session, provider, feed)
    given = dict(feed)
    return lambda: session.run(None, given)
