"""The names of the files that only some runs write, and which of them a request asks for."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from quantization.errors import QuantmeterError
from quantmeter.search_options import AGENT, parse_front

TASK_MODEL = "model.onnx"
"""The float network of a torch task."""
TRAINED_MODEL, TRAINED_POLICY = "trained.onnx", "trained.policy.json"
"""The best trained network, ready to be deployed, and its bits."""


def candidate_files(rank: int) -> tuple[str, str]:
    """Return the files of a trained candidate, by its rank from 1: the network and its figures."""
    return f"trained-{rank}.onnx", f"trained-{rank}.json"


def front_file(number: int) -> str:
    """Return the file of a front's point, by its number from 1."""
    return f"front-{number}.policy.json"


def candidates_of(request: Mapping[str, Any]) -> frozenset[str]:
    """Return the files of candidates that a run of `request` may write."""
    training = request.get("training")
    if not isinstance(training, Mapping):
        return frozenset()
    most = training.get("fine_tune") or 1  # the one best is trained again where none is fine-tuned
    return frozenset(name for rank in range(1, int(most) + 1) for name in candidate_files(rank))


def files_of(request: Mapping[str, Any]) -> frozenset[str]:
    """Return the files that a run of `request` may write, but for those that every run does."""
    found = set(candidates_of(request))
    if request.get("training"):
        found |= {TRAINED_MODEL, TRAINED_POLICY}
    if request.get("parts"):  # those of a task
        found.add(TASK_MODEL)
    if request.get("method") == "reinforce":
        found.add(AGENT)
    if front := request.get("front"):
        with suppress(QuantmeterError):  # edited by hand
            found |= {front_file(number + 1) for number in range(parse_front(str(front)).count)}
    return frozenset(found)
