"""In words: how well a calibration predicts policies that it was not fitted to."""

from collections.abc import Mapping
from typing import Any


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
