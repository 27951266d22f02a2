"""``quantmeter calibrate`` without a model: measure this device, or rescale another to it."""

import argparse
from pathlib import Path

from costmodels.errors import BackendError
from quantmeter.commands.options import console, print_json, progress_bar, store_of


def run_device(arguments: argparse.Namespace) -> int:
    """Measure, write the device, and say how good its predictions are."""
    from costmodels.units import parse_duration
    from hil.providers import find_provider
    from quantmeter.device_calibrating import PROBES, calibrate_device, transfer_device
    from quantmeter.files import require_file, write
    from quantmeter.prediction import describe_device

    backend_name, _, device = arguments.cost.partition(":")
    if backend_name == "ort" and device:
        find_provider(device)  # says so if it is not there
        raise BackendError(
            f"{arguments.cost} is calibrated for one network at a time: name MODEL.onnx; only the "
            "CPU (--cost ort) is measured by random networks"
        )
    if arguments.cost != "ort":
        raise BackendError(f"{arguments.cost} cannot measure a device; calibrate with --cost ort")
    if arguments.data is not None:
        raise BackendError("--data belongs to a network: name MODEL.onnx, or leave it out")
    if arguments.probes is not None and arguments.known is None:
        raise BackendError("--probes rescale a device that is known: name it by --from")
    if arguments.raw is not None and arguments.known is not None:
        raise BackendError("--raw goes with a calibration of its own: leave --from out")
    seconds = parse_duration(arguments.time)
    out = Path(arguments.out)
    require_file(out, arguments.known)
    if arguments.raw is not None:
        require_file(arguments.raw, out)
    shared = {
        "threads": arguments.threads,
        "seed": arguments.seed,
        "store": store_of(arguments),
        "anew": arguments.anew,
    }
    with progress_bar("calibrating") as progress:
        if arguments.known is None:
            model = calibrate_device(
                seconds=seconds, raw=arguments.raw, progress=progress, **shared
            )
        else:
            model = transfer_device(
                arguments.known, probes=arguments.probes or PROBES, progress=progress, **shared
            )
    write(out, model.to_json())
    if arguments.json:
        print_json(
            {
                "out": str(out),
                "validation": dict(model.validation),
                "textbook": model.textbook.to_dict(),
                "source": dict(model.source),
            }
        )
        return 0
    console().print(f"{out}: {model.device.cpu}, {model.threads} thread(s)")
    for line in describe_device(model):
        console().print(line)
    console().print(f"price any network: --cost calibrated:{out}")
    return 0
