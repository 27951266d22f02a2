"""In words: how well a calibration predicts policies that it was not fitted to."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from costmodels.calibrated.device_model import DeviceModel


def describe_validation(validation: Mapping[str, Any] | None) -> list[str]:
    """Say what policies that were never fitted tell of a calibration, a line each.

    Args:
        validation: ``source["validation"]`` of a table, see `hil.validation.Validation`; None
            where no policy judged.
    """
    from hil.validation import LEAST_POLICIES

    if validation is None:
        return ["no policy was kept apart from the fit: how good it is remains unknown"]
    count, width = validation["policies"], validation["half_width"]
    lines = [
        f"on {count} policies that were never fitted: {_error(validation['total'])}",
        f"the table alone, which is what a search adds up: {_error(validation['table'])}",
    ]
    if width is None:
        lines.append(
            f"no interval of a new policy: {count} of {LEAST_POLICIES} policies that it needs; "
            "give more time"
        )
    else:
        lines.append(
            f"{_percent(validation['level'], 0)} interval of a new policy: from its prediction "
            f"over {1 + width:.3f} to its prediction times that"
        )
    return lines


def describe_device(model: "DeviceModel") -> list[str]:
    """Say how well a calibrated device predicts networks that it never saw, a line each.

    Args:
        model: a `costmodels.calibrated.device_model.DeviceModel`.
    """
    found, source = model.validation, model.source
    what = f"{found['networks']} random networks ({found['policies']} policies)"
    if "transferred_from" in source:
        scales = ", ".join(f"{name} x {scale:.2f}" for name, scale in source["scales"].items())
        lines = [
            f"{source['probes']} random networks, {source['way']}: {scales}",
            f"each left out once: {_error(found['total'])}",
            f"as it was: {_error(found['before'])}",
        ]
    else:
        lines = [
            f"{source['fitted_networks']} random networks fitted, {source['fitted_rows']} "
            "operators",
            f"on {what} that were never fitted: {_error(found['total'])}",
            f"the closed formula alpha b/8 P + beta MAC f(b): {_error(found['textbook'])}",
        ]
    if failed := source.get("failed"):
        lines.append(f"{len(failed)} more failed, the first: {failed[0]['kind']}")
    if model.interval is None:
        lines.append("no interval of a new network: too few were kept apart; give more time")
    else:
        short, long = 1 + model.interval.half_width(np.array([1e-3, 1e-2]))
        lines.append(
            f"{_percent(found['level'], 0)} interval of a new network: from its prediction over "
            f"{short:.2f} to its prediction times that at 1 ms, {long:.2f} at 10 ms"
        )
    return lines


def _error(error: Mapping[str, Any]) -> str:
    rank = error["rank_correlation"]
    return (
        f"mean absolute error {_percent(error['mean_absolute'])}, "
        f"{_percent(error['near'])} within 10 %, "
        f"rank correlation {'not known' if rank is None else f'{rank:.2f}'}"
    )


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def describe_policies(source: Mapping[str, Any]) -> str:
    """Say how many policies a calibration timed, and what became of them, in one line.

    Args:
        source: of a table that was measured.
    """
    failed = source["failed_policies"]
    parts = [f"{source['policies']} policies timed ({source['inputs']} inputs)"]
    if count := source["disturbed_policies"]:
        parts.append(f"{count} of them count for less: others disturbed the machine")
    if count := source["unlike_policies"]:
        parts.append(f"{count} of them left out as unlike all others")
    if failed:
        parts.append(
            f"{len(failed)} more failed, the first: {failed[0]['kind']}, {failed[0]['text']}"
        )
    if failure := source.get("profile_failure"):
        parts.append(
            f"no profile of integer layers ({failure['kind']}, {failure['text']}): timings alone "
            "tell what they gain"
        )
    return "; ".join(parts)
