"""One of our accelerators as `zigzag-dse` describes it, and what that says of a layer.

Alike in both: units and what they unroll, MACs a cycle at 8/8, capacity of the buffer, half of it
for double buffering, bandwidth of the outermost memory, energy of a product at 8/8 and of a bit at
each level, 32-bit sums, 8-bit outputs. Theirs has one accumulator a column and lets its optimiser
choose what stays; it prices a product alike at every width, since its array has no width.
"""

import logging
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costmodels.accelerator import Accelerator
from costmodels.quantity import Quantity
from costmodels.tiling import ACCUMULATOR_BITS, STAYS
from quantization.bits import BitWidths
from quantization.network import Layer

LOOPS, SPATIAL = 4, 3
"""The optimiser's budget: prime factors of loops to permute, and ways to unroll."""

_PICO = 1e12
_OPERANDS = {"I1": ("tl", "fh"), "I2": ("tl", "fh"), "O": ("tl", "th", "fh", "fl")}
"""Inputs, weights and outputs, read (t) and written (f) to and from the levels around."""
_WIDTH = 8


@dataclass(frozen=True)
class Priced:
    """What theirs says of one layer.

    Args:
        joules: the least energy of the mappings that it tried.
        product_joules: that of products alone.
        cycles: the fewest cycles of the mappings that it tried.
        mappings: how many it tried.
    """

    joules: float
    product_joules: float
    cycles: float
    mappings: int


@dataclass(frozen=True)
class Shape:
    """What of a layer determines its cost."""

    channels: int
    outputs: int
    groups: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    in_size: tuple[int, int]
    out_size: tuple[int, int]

    @classmethod
    def of(cls, layer: Layer) -> "Shape":
        """Return the shape of a convolution on images, or of a matrix product as one of 1 x 1."""
        groups, spatial = layer.groups, len(layer.kernel) == 2
        rows = math.prod(layer.out_size)
        return cls(
            layer.in_channels // groups,
            layer.out_channels // groups,
            groups,
            (layer.kernel[0], layer.kernel[1]) if spatial else (1, 1),
            (layer.stride[0], layer.stride[1]) if spatial else (1, 1),
            (layer.in_size[0], layer.in_size[1]) if spatial else (rows, 1),
            (layer.out_size[0], layer.out_size[1]) if spatial else (rows, 1),
        )

    def __str__(self) -> str:
        kernel, size = (f"{a}x{b}" for a, b in (self.kernel, self.out_size))
        return f"{self.groups}x({self.channels} -> {self.outputs}) {kernel} at {size}"


def clock(accelerator: Accelerator) -> float:
    """Return the cycles a second at which every unit makes one product at 8/8 a cycle."""
    array, throughput = accelerator.array, accelerator.throughput
    assert array is not None
    assert throughput is not None
    units = array.rows.value * array.columns.value * array.dot_length.value
    return throughput.integer[_WIDTH].value / units


def hardware(accelerator: Accelerator) -> dict[str, Any]:
    """Return `accelerator` in their form: an array of one row, one buffer, one outer memory."""
    array, energy = accelerator.array, accelerator.mac_energy
    outer, buffer = accelerator.memories
    assert array is not None
    assert energy is not None
    assert array.rows.value == 1
    assert STAYS == 0.5, "their double buffering holds half"
    columns, dot = int(array.columns.value), int(array.dot_length.value)
    # The buffer keeps up with the array: as wide as all weights, or all sums, of one cycle.
    wide = max(columns * dot * _WIDTH, columns * ACCUMULATOR_BITS)
    narrow = int(_value(outer.bandwidth) / clock(accelerator))
    accumulator = {
        **_memory(ACCUMULATOR_BITS, 0.0, ("O",), ("D2",)),
        "ports": _ports(("O",), ACCUMULATOR_BITS),
    }
    inner = {
        **_memory(int(_value(buffer.capacity)), _value(buffer.energy) * wide * _PICO),
        "force_double_buffering": True,
        "ports": _ports(tuple(_OPERANDS), wide),
    }
    all_ways = [f"{operand}, {way}" for operand, ways in _OPERANDS.items() for way in ways]
    outside = {
        **_memory(10**12, _value(outer.energy) * narrow * _PICO),
        "ports": [_port("rw_port_1", "read_write", narrow, all_ways)],
    }
    return {
        "name": accelerator.name,
        "memories": {"accumulator": accumulator, buffer.name: inner, outer.name: outside},
        "operational_array": {
            "unit_energy": energy.integer[_WIDTH].value * _PICO,
            "unit_area": 1.0,
            "dimensions": ["D1", "D2"],
            "sizes": [columns, dot],
        },
    }


def workload(shape: Shape, bits: BitWidths) -> dict[str, Any]:
    """Return one layer in their form; also their optimiser's input."""
    pairs = zip(shape.kernel, shape.stride, shape.in_size, shape.out_size, strict=True)
    spatial = (*shape.out_size, *shape.kernel)
    missing = [max(0, (out - 1) * step + taps - into) for taps, step, into, out in pairs]
    return {
        "id": 0,
        "name": "layer",
        "operator_type": "Conv",
        "equation": "O[b][g][k][oy][ox]+=W[g][k][c][fy][fx]*I[b][g][c][iy][ix]",
        "dimension_relations": [
            f"iy={shape.stride[0]}*oy+1*fy",
            f"ix={shape.stride[1]}*ox+1*fx",
        ],
        "loop_dims": ["B", "G", "K", "C", "OY", "OX", "FY", "FX"],
        "loop_sizes": [1, shape.groups, shape.outputs, shape.channels, *spatial],
        "operand_precision": {
            "W": bits.weights,
            "I": bits.activations,
            "O": ACCUMULATOR_BITS,
            "O_final": bits.writes.bits,
        },
        "operand_source": {"W": 0, "I": 0},
        "pr_loop_dims": ["IY", "IX"],
        "pr_loop_sizes": list(shape.in_size),
        "padding": [[each // 2, each - each // 2] for each in missing],
    }


MAPPING = [
    {
        "name": "default",
        "spatial_mapping_hint": {"D1": ["K"], "D2": ["C", "FX", "FY"]},
        "memory_operand_links": {"O": "O", "W": "I2", "I": "I1"},
    }
]
"""Columns are output channels, a dot product contracts channels and taps: as ours."""


def price(accelerator: Accelerator, shape: Shape, bits: BitWidths) -> Priced | str:
    """Return what theirs says of one layer, or its error."""
    import yaml
    from zigzag.mapping.temporal_mapping import TemporalMappingType
    from zigzag.stages.evaluation.cost_model_evaluation import CostModelStage
    from zigzag.stages.main import MainStage
    from zigzag.stages.mapping.spatial_mapping_generation import SpatialMappingGeneratorStage
    from zigzag.stages.mapping.temporal_mapping_generator_stage import (
        TemporalMappingGeneratorStage,
    )
    from zigzag.stages.parser.accelerator_parser import AcceleratorParserStage
    from zigzag.stages.parser.workload_parser import WorkloadParserStage
    from zigzag.stages.workload_iterator import WorkloadStage

    logging.getLogger("zigzag").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        machine, mapping = Path(folder, "hardware.yaml"), Path(folder, "mapping.yaml")
        machine.write_text(yaml.safe_dump(hardware(accelerator), sort_keys=False))
        mapping.write_text(yaml.safe_dump(MAPPING))
        stages = MainStage(
            [
                WorkloadParserStage,
                AcceleratorParserStage,
                WorkloadStage,
                SpatialMappingGeneratorStage,
                TemporalMappingGeneratorStage,
                CostModelStage,
            ],
            workload=[workload(shape, bits)],
            accelerator=str(machine),
            mapping=str(mapping),
            loma_lpf_limit=LOOPS,
            loma_show_progress_bar=False,
            nb_mappings_generated=SPATIAL,
            enable_mix_spatial_mapping_generation=True,
            temporal_mapping_type=TemporalMappingType.UNEVEN,
        )
        try:
            found = [evaluation for evaluation, _ in stages.run()]
        except Exception as error:  # whatever stops a layer there is counted and named here
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    frugal = min(found, key=lambda evaluation: evaluation.energy_total)
    fast = min(found, key=lambda evaluation: evaluation.latency_total2)
    return Priced(
        frugal.energy_total / _PICO,
        frugal.mac_energy / _PICO,
        float(fast.latency_total2),
        len(found),
    )


def _value(quantity: Quantity | None) -> float:
    assert quantity is not None
    return quantity.value


def _memory(
    size: int,
    cost: float,
    operands: tuple[str, ...] = tuple(_OPERANDS),
    served: tuple[str, ...] = ("D1", "D2"),
) -> dict[str, Any]:
    """Return a level without its ports; `cost` is picojoules an access of its whole width."""
    return {
        "size": size,
        "r_cost": cost,
        "w_cost": cost,
        "area": 0.0,
        "latency": 1,
        "operands": list(operands),
        "served_dimensions": list(served),
    }


def _ports(operands: tuple[str, ...], width: int) -> list[dict[str, Any]]:
    """Return a port for each operand and way, so that none waits for another."""
    reads = [f"{operand}, {way}" for operand in operands for way in _OPERANDS[operand]]
    kinds = {"r": "read", "w": "write"}
    found = []
    for kind, first in (("r", "t"), ("w", "f")):
        ways = [way for way in reads if way.split(", ")[1].startswith(first)]
        found += [
            _port(f"{kind}_port_{i}", kinds[kind], width, [way]) for i, way in enumerate(ways, 1)
        ]
    return found


def _port(name: str, kind: str, width: int, ways: list[str]) -> dict[str, Any]:
    """Return a port; a part of its width costs that part, down to a bit."""
    return {
        "name": name,
        "type": kind,
        "bandwidth_min": 1,
        "bandwidth_max": width,
        "allocation": ways,
    }
