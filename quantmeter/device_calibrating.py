"""The first verb without a network: a model of this device that prices any network."""

from collections.abc import Callable
from pathlib import Path

from costmodels.calibrated.device_model import DeviceModel
from costmodels.model import BackendContext

PROBES = 15


def calibrate_device(
    *,
    seconds: float = 300.0,
    threads: int = 1,
    seed: int = 0,
    store: Path | None = None,
    anew: bool = False,
    raw: Path | None = None,
    progress: Callable[[float, str], None] = lambda _share, _what: None,
) -> DeviceModel:
    """Measure this machine with random networks, and fit what prices any other.

    Args:
        seconds: of measuring; fitting comes on top.
        threads: of the runtime.
        seed: of the random networks.
        store: file of the measurements that are kept; a run that was ended goes on from there, and
            one with more time adds to it. What is older than a day is measured again. None keeps
            none.
        anew: remove first what the store holds of this device, so that all is measured again.
        raw: file for the raw readings, from which the model can be fitted again; None writes none.
        progress: called with the share done and what is being done.

    Returns:
        The model; `DeviceModel.validation` says how far off it is on networks it never saw. Write
        its `to_json` to a file for the backend ``calibrated:FILE``.

    Raises:
        BackendError: if the time was too short, or scikit-learn is not installed.
        StoreError: if the store cannot be used.
    """
    from hil.device_bench import fit_readings, measure_device
    from hil.device_readings import write_readings

    context = BackendContext(threads, seconds, seed, store=store, anew=anew, progress=progress)
    readings = measure_device(context)
    if raw is not None:
        write_readings(readings, raw)
    return fit_readings(readings)


def transfer_device(
    device: str | Path | DeviceModel,
    *,
    probes: int = PROBES,
    threads: int = 1,
    seed: int = 0,
    store: Path | None = None,
    anew: bool = False,
    progress: Callable[[float, str], None] = lambda _share, _what: None,
) -> DeviceModel:
    """Rescale a device that was calibrated elsewhere to this machine, by a few random networks.

    Args:
        device: what `calibrate_device` returned, or a file of it.
        probes: networks to measure.
        threads: of the runtime.
        seed: of the random networks.
        store: as for `calibrate_device`.
        anew: likewise.
        progress: called with the share done and what is being done.

    Raises:
        BackendError: if too few probes could be measured.
        StoreError: if the store cannot be used.
        TableError: if the file holds no calibrated device.
    """
    from hil.device_bench import transfer_device as rescaled

    model = device if isinstance(device, DeviceModel) else DeviceModel.read(device)
    context = BackendContext(threads, seed=seed, store=store, anew=anew, progress=progress)
    return rescaled(model, probes, context)
