"""``quantmeter inspect``: layers, glue and what reading changed."""

import argparse
from collections.abc import Sequence

from quantmeter.commands.options import (
    Subparsers,
    add_command,
    add_model,
    console,
    print_json,
)


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    add_model(add_command(subparsers, "inspect", "list layers, glue and coverage", run))


def run(arguments: argparse.Namespace) -> int:
    """Print what Quantmeter sees in a model."""
    from quantization.reading import read_network

    network = read_network(arguments.model)
    coverage = network.coverage
    folded = {name: n for name, n in (network.folded or {}).items() if n}
    if arguments.json:
        print_json(
            {
                "digest": network.digest,
                "macs": network.macs,
                "weight_count": sum(layer.weight_count for layer in network.layers),
                "coverage": {
                    "layers": coverage.layers,
                    "glue": coverage.glue,
                    "unknown": list(coverage.unknown),
                    "unknown_macs": coverage.unknown_macs,
                },
                "folded": folded,
                "layers": [
                    {
                        "name": layer.name,
                        "kind": layer.kind,
                        "macs": layer.macs,
                        "weight_count": layer.weight_count,
                        "in_channels": layer.in_channels,
                        "out_channels": layer.out_channels,
                        "kernel": list(layer.kernel),
                        "stride": list(layer.stride),
                        "groups": layer.groups,
                        "in_size": list(layer.in_size),
                        "out_size": list(layer.out_size),
                        "batch": layer.batch,
                    }
                    for layer in network.layers
                ],
            }
        )
        return 0
    from quantmeter.columns import Column, column_table, fitted

    layers = network.layers
    columns = [
        Column("layer", tuple(layer.name for layer in layers), left=True),
        Column("kind", tuple("depthwise" if n.is_depthwise else n.kind for n in layers), left=True),
        Column("channels", tuple(f"{n.in_channels}->{n.out_channels}" for n in layers)),
        Column("kernel", tuple(_extent(n.kernel) + _stride(n.stride) for n in layers)),
        Column("out", tuple(_extent(layer.out_size) for layer in layers)),
        Column("MACs", tuple(f"{layer.macs:,}" for layer in layers)),
        Column("weights", tuple(f"{layer.weight_count:,}" for layer in layers)),
    ]
    out = console()
    out.print(column_table(fitted(columns, 0, out.width)[0]), crop=False)
    out.print(
        f"{network.macs:,} multiply-accumulates, {coverage.layers} layers, "
        f"{coverage.glue} glue operators"
    )
    if coverage.unknown:
        uncounted = f" ({coverage.unknown_macs:,} more MACs)" if coverage.unknown_macs else ""
        out.print(f"unknown operators, run in float: {', '.join(coverage.unknown)}{uncounted}")
    changes = ", ".join(f"{n} {name}" for name, n in folded.items())
    out.print(f"folded or copied while reading: {changes or 'nothing'}")
    return 0


def _extent(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _stride(sizes: Sequence[int]) -> str:
    """Nothing if it is 1, ``/2`` if it is 2 in every direction, ``/2x1`` if they differ."""
    if set(sizes) <= {1}:
        return ""
    return f"/{sizes[0]}" if len(set(sizes)) == 1 else f"/{_extent(sizes)}"
