"""``quantmeter inspect``: layers, glue and what reading changed."""

import argparse

from quantmeter.commands.options import (
    Subparsers,
    add_command,
    add_model,
    console,
    print_json,
    table,
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
    rows = table("Layers", "name", "kind", "channels", "kernel", "stride", "out", "MACs", "weights")
    for layer in network.layers:
        kind = "depthwise Conv" if layer.is_depthwise else layer.kind
        rows.add_row(
            layer.name,
            kind,
            f"{layer.in_channels} -> {layer.out_channels}",
            "x".join(map(str, layer.kernel)),
            "x".join(map(str, layer.stride)),
            "x".join(map(str, layer.out_size)),
            f"{layer.macs:,}",
            f"{layer.weight_count:,}",
        )
    out = console()
    out.print(rows)
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
