"""Does the file hold the bits that were asked for, and does the runtime execute them?

For each layer: asked bits (the policy), stored bits (the weight tensor in the file), executed
kernel (the graph that a default session makes of the file, traced by the layer's parameters, since
fused nodes lose their names). Every difference has a reason or makes the audit fail.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from hil.ort import optimized_graph
from hil.providers import CPU, Provider
from hil.stored_weights import StoredWeights
from hil.trace import FLOAT_KERNELS, INTEGER_KERNELS, executed_kernels, weight_types
from quantization.bits import FLOAT32, BitWidths
from quantization.channel_groups import ChannelGroups
from quantization.deployment import ExportOptions
from quantization.errors import QuantmeterError
from quantization.network import Layer, Network
from quantization.policy import Policy

_REDUCED = "8-bit weights use 7-bit values: this CPU saturates without VNNI"


class AuditError(QuantmeterError):
    """The file, or its execution, is not what was asked for."""


@dataclass(frozen=True)
class LayerAudit:
    """What became of one layer.

    Args:
        name: the layer.
        asked: bits of the policy.
        stored: such as ``int4 (bit planes)``, ``int8``, ``float32``.
        executed: the kernel, such as ``QLinearConv``; ``absent`` if none was found.
        ok: whether all three agree, or a difference has a permitted reason.
        reason: why they differ; empty if they do not.
    """

    name: str
    asked: str
    stored: str
    executed: str
    ok: bool
    reason: str = ""


@dataclass(frozen=True)
class Audit:
    """The audit of a file.

    Args:
        layers: one entry per layer.
        size_bytes: bytes of the file.
        predicted_bytes: what the exporter's layout predicts.
    """

    layers: tuple[LayerAudit, ...]
    size_bytes: int
    predicted_bytes: int

    @property
    def ok(self) -> bool:
        """Whether nothing differs without a permitted reason."""
        return self.size_bytes == self.predicted_bytes and all(a.ok for a in self.layers)

    @property
    def problems(self) -> tuple[str, ...]:
        """One line per difference that is not permitted."""
        lines = [f"layer {a.name!r}: {a.reason}" for a in self.layers if not a.ok]
        if self.size_bytes != self.predicted_bytes:
            lines.append(
                f"the file has {self.size_bytes} bytes, {self.predicted_bytes} were predicted"
            )
        return tuple(lines)

    def require(self) -> None:
        """Raise unless `ok`.

        Raises:
            AuditError: names the first problem and how many there are.
        """
        _require_none(self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as JSON values."""
        return {
            "ok": self.ok,
            "size_bytes": self.size_bytes,
            "predicted_bytes": self.predicted_bytes,
            "problems": list(self.problems),
            "layers": [asdict(a) for a in self.layers],
        }


def audit(
    network: Network,
    policy: Policy,
    model: bytes,
    predicted_bytes: int,
    options: ExportOptions | None = None,
    provider: Provider = CPU,
) -> Audit:
    """Audit an exported model.

    Args:
        network: what was exported.
        policy: what was asked for.
        model: the file's bytes.
        predicted_bytes: `quantization.export.Exporter.size_bytes` of the policy.
        options: with which it was exported; they permit some differences.
        provider: that is to execute it.

    Raises:
        ModelError: if the runtime refuses the file.
        PolicyError: if the policy does not fit the network.
    """
    policy.check(network)
    given = options or ExportOptions()
    graph = optimized_graph(model, provider)
    kernels, types = executed_kernels(network, graph), _types(network, graph, provider.emulated)
    stored = StoredWeights(onnx.load_model_from_string(model))
    layers = tuple(
        _judge(layer, policy[layer.name], stored, (kernels[layer.name], types[layer.name]), given)
        for layer in network.layers
    )
    return Audit(layers, len(model), predicted_bytes)


def require_kernels(
    network: Network, policy: Policy, graph: onnx.GraphProto, *, emulated: bool = False
) -> None:
    """Raise unless every layer is executed as `policy` asks: by integers, floats, or halves.

    The part of an audit that needs no more than the graph of a session that is loaded anyway.

    Args:
        network: what was exported.
        policy: what was asked for.
        graph: the optimized graph.
        emulated: see `hil.providers.Provider`.

    Raises:
        AuditError: names the first layer that is not, and how many others are not.
    """
    types = _types(network, graph, emulated)
    kernels = executed_kernels(network, graph)
    faults = {n: _kernel_fault(policy[n], k, types[n]) for n, k in kernels.items()}
    _require_none([f"layer {name!r}: {fault}" for name, fault in faults.items() if fault])


def _require_none(problems: Sequence[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise AuditError(f"audit failed: {problems[0]}{more}")


def _types(network: Network, graph: onnx.GraphProto, emulated: bool) -> dict[str, int]:
    """Element types of the layers' weights in the optimized graph; 0 where they do not matter."""
    return dict.fromkeys(network.layer_names, 0) if emulated else weight_types(network, graph)


def _kernel_fault(bits: BitWidths, kernel: str, weight_type: int) -> str:
    """What is wrong with executing a layer at `bits` by `kernel`; empty if nothing is."""
    integer = not bits.reads.is_float
    if kernel in (INTEGER_KERNELS if integer else FLOAT_KERNELS):
        if bits.half and weight_type == TensorProto.FLOAT:
            return f"asked for half precision, executed {kernel} of float32"
        if bits == FLOAT32 and weight_type == TensorProto.FLOAT16:
            return f"asked for float32, executed {kernel} of half precision"
        return ""
    wanted = "an integer kernel" if integer else "a float kernel"
    what = "was re-quantized at load" if kernel in INTEGER_KERNELS else "runs otherwise"
    return f"asked for {wanted}, executed {kernel}: the layer {what}"


def _judge(
    layer: Layer,
    bits: BitWidths,
    stored: StoredWeights,
    executed: tuple[str, int],
    options: ExportOptions,
) -> LayerAudit:
    kernel, weight_type = executed
    if isinstance(bits, ChannelGroups):
        return _judge_groups(layer, bits, stored, kernel, options)
    width, how = stored.of(layer)
    integer = not bits.reads.is_float
    asked_width = bits.weights if layer.has_weights else width
    notes: list[str] = []
    fault = _kernel_fault(bits, kernel, weight_type)
    faults = [fault] if fault else []
    if width != asked_width:
        planes = not options.pack and bits.weights < 8 and width == 8
        (notes if planes else faults).append(
            f"asked for {asked_width}-bit weights, stored {width}-bit"
            + (" (packing is off)" if planes else "")
        )
    reduced = options.reduce_range and layer.has_weights and bits.weights == 8
    allowed = 7 if reduced else bits.weights
    # No value of a tensor uses more bits than it is stored in; only wider ones need a look.
    look = layer.has_weights and integer and width > allowed
    if look and (found := stored.used_bits(layer)) > allowed:
        faults.append(f"weights use {found} bits, asked for {allowed}")
    if reduced:
        notes.append(_REDUCED)
    reason = "; ".join((*faults, *notes))
    return LayerAudit(layer.name, str(bits), how, kernel, not faults, reason)


def _judge_groups(
    layer: Layer,
    bits: ChannelGroups,
    stored: StoredWeights,
    kernel: str,
    options: ExportOptions,
) -> LayerAudit:
    """Judge each channel by the width of its group."""
    asked = np.empty(bits.channel_count, np.int64)
    for width, channels in bits.groups:
        asked[list(channels)] = width
    widths, used, how = stored.of_channels(layer)
    notes: list[str] = []
    fault = _kernel_fault(bits, kernel, 0)
    faults = [fault] if fault else []
    if not np.array_equal(widths, asked):
        whole = not options.pack and bool((widths == 8).all())
        (notes if whole else faults).append(
            f"asked for {', '.join(map(str, bits.weight_widths))}-bit channels, stored {how}"
            + (" (packing is off)" if whole else "")
        )
    reduced = options.reduce_range and 8 in bits.weight_widths
    allowed = np.where(asked == 8, 7, asked) if reduced else asked
    if len(used) == len(allowed) and (used > allowed).any():
        channel = int(np.flatnonzero(used > allowed)[0])
        faults.append(f"channel {channel} uses {used[channel]} bits, asked for {allowed[channel]}")
    if reduced:
        notes.append(_REDUCED)
    reason = "; ".join((*faults, *notes))
    return LayerAudit(layer.name, str(bits), how, kernel, not faults, reason)
