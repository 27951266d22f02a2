"""What decides an exported file besides the policy, and what can be deployed at all."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from quantization.bits import DEFAULT_CHOICES, FLOAT32, BitWidths, Format
from quantization.channel_groups import ChannelGroups
from quantization.errors import PolicyError, did_you_mean
from quantization.network import Layer
from quantization.quantizer import Float32Array, WeightMethod
from quantization.range_choices import RangeChoices
from quantization.ranges import RANGE_METHODS, RangeMethod

_POLICY_OPTIONS = frozenset({"accuracy_level", "ranges"})
_IDLE_OPTIONS = frozenset({"accuracy_level"})


@dataclass(frozen=True)
class Target:
    """What is to run a network, as far as it decides what can be deployed.

    An execution provider of ONNX Runtime, or kernels of our own.

    Args:
        name: as reasons name it.
        narrow: the bits beside float32 for which it has kernels; stands for all choices that
            execute these.
        own_kernels: whether it has kernels of its own for each width, as what is compiled by
            Apache TVM has.

    >>> [given.label for given in CUDA_TARGET.formats]
    ['float16', 'float32']
    """

    name: str
    narrow: BitWidths
    own_kernels: bool = False

    @property
    def formats(self) -> tuple[Format, ...]:
        """Formats that tensors of a file for it may have, narrowest first."""
        return (self.narrow.reads, Format.FLOAT32)

    @property
    def default_choices(self) -> tuple[BitWidths, ...]:
        """Bit-widths that a table or a search has unless others are asked for."""
        return (self.narrow, FLOAT32) if self.narrow.half else DEFAULT_CHOICES


CPU_TARGET = Target("the CPU provider", BitWidths(8, 8))
CUDA_TARGET = Target("the CUDA provider", BitWidths(16, 16, half=True))
TVM_TARGET = Target("TVM", BitWidths(8, 8), own_kernels=True)
TARGETS = {each.name: each for each in (CPU_TARGET, CUDA_TARGET, TVM_TARGET)}


@dataclass(frozen=True)
class ExportOptions:
    """What decides the exported file besides the policy.

    Args:
        weight_method: how weight ranges are chosen.
        reduce_range: 8-bit weights use 7-bit values, because products of 8-bit activations and
            weights saturate on x86 processors without VNNI.
        pack: store weights below 8 bits as bit planes; without, as int8 (same execution, for
            timing without the unpacking at load).
        guard_float: keep float layers between integer ones from being re-quantized at load.
    """

    weight_method: WeightMethod = "mse"
    reduce_range: bool = False
    pack: bool = True
    guard_float: bool = True


@dataclass(frozen=True, eq=False)
class Correction:
    """What brings the statistics of a quantized layer's output back: ``y' = gain * y + shift``.

    Args:
        gain: (channels,), folded into the weight scales and the bias.
        shift: (channels,), folded into the bias; zero for a `MatMul`, which has none.
    """

    gain: Float32Array
    shift: Float32Array


Corrections = Mapping[str, Correction]


def check_options(options: Mapping[str, object]) -> None:
    """Raise unless every execution option of a policy is known.

    ``ranges`` is one of `RANGE_METHODS` or a table, see `range_method`. ``accuracy_level`` belongs
    to weights-only matrix products, which are not deployed yet: it is accepted, decides nothing.

    Raises:
        PolicyError: names the option, or its value, and close matches.
    """
    for name in options:
        if name not in _POLICY_OPTIONS:
            known = ", ".join(sorted(_POLICY_OPTIONS))
            raise PolicyError(
                f"the policy's option {name!r} is not known"
                f"{did_you_mean(name, _POLICY_OPTIONS)}; known: {known}"
            )
    range_method(options)


def idle_options(options: Mapping[str, object]) -> tuple[str, ...]:
    """Return the known options of a policy that decide nothing when it is deployed."""
    return tuple(sorted(_IDLE_OPTIONS & set(options)))


def range_method(options: Mapping[str, object]) -> RangeMethod | RangeChoices:
    """Return how ranges are chosen for a policy with `options`.

    Raises:
        PolicyError: if the option ``ranges`` is neither a method nor a table of methods.
    """
    asked = options.get("ranges", RANGE_METHODS[0])
    if isinstance(asked, Mapping):
        return RangeChoices.from_json(asked)
    for method in RANGE_METHODS:
        if method == asked:
            return method
    known = ", ".join(RANGE_METHODS)
    raise PolicyError(
        f"the policy's option ranges is {asked!r}; choose {known}, or let a search write a table"
    )


def misfit_of(layer: Layer, bits: BitWidths) -> str:
    """Say why `bits` are none of `layer`: channel groups of other channels; "" if they may be."""
    if not isinstance(bits, ChannelGroups):
        return ""
    if not layer.groupable:
        what = "a ConvTranspose" if layer.has_weights else "a product of two activations"
        return f"{what} has no channel groups; give it one width"
    if bits.channel_count != layer.out_channels:
        return (
            f"channel groups of {bits.channel_count} channels, but it has {layer.out_channels}: "
            f"name every channel from 0 to {layer.out_channels - 1} once"
        )
    return ""


def not_deployable(layer: Layer, bits: BitWidths, target: Target = CPU_TARGET) -> str:
    """Say why a target cannot run `layer` at `bits` as asked; "" if it can.

    Channel groups run: all integer widths execute one kernel, which takes a scale per channel.

    Args:
        layer: the layer.
        bits: what is asked for.
        target: who is to run it.
    """
    if bits == FLOAT32:
        return ""
    if misfit := misfit_of(layer, bits):
        return misfit
    if target.own_kernels:
        return _not_compiled(layer, bits)
    if target.narrow.half:
        return "" if bits.half else f"runs as float on {target.name}, which has no integer kernels"
    if bits.half or 16 in bits.weight_widths or bits.activations == 16:
        return f"no 16-bit kernels on {target.name}"
    if bits.activations == 32:
        return "weights-only quantization of this operator runs as float"
    if bits.activations != 8:
        return "no kernels for activations below 8 bits"
    if layer.kind == "ConvTranspose":
        return "no integer kernel for ConvTranspose"
    return ""


def _not_compiled(layer: Layer, bits: BitWidths) -> str:
    """Say why kernels of our own cannot run a quantized layer; "" if they can."""
    if bits.half:
        return "no kernels of half precision in TVM here"
    if bits.reads.is_float:
        return "no kernel in TVM here multiplies floats by integers"
    if layer.kind == "ConvTranspose":
        return "no integer kernel for ConvTranspose in TVM here"
    if layer.factor_counts is not None:
        pairs = layer.batch * layer.in_channels
        whole = (pairs * math.prod(layer.in_size), pairs * layer.out_channels)
        if bits != TVM_TARGET.narrow:
            return "products of two activations run at w8a8 and w32a32 only"
        if layer.kind != "MatMul" or layer.factor_counts != whole:
            return "no integer kernel in TVM here for factors that are broadcast"
    if layer.kind == "Conv" and (len(layer.kernel) > 2 or layer.batch > 1):
        return "kernels of TVM convolve one image, over one or two axes"
    return ""
