"""Compares models in a worker process, which a model may crash or hang."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hil.compare import CompareOptions, Comparison, compare_many
from hil.ort import Runner
from hil.providers import CPU, Provider
from hil.turns import Run
from hil.worker import Worker
from quantization.quantizer import Float32Array

_LIMIT_S = 1800.0
"""Longest time of a race; what takes longer counts as hung. Large networks take minutes."""


@dataclass(frozen=True, eq=False)
class Race:
    """Models to compare with one of them.

    Args:
        models: serialized ONNX models by name.
        libraries: files that ``quantmeter export --runtime tvm`` wrote, by name; they take part
            beside the models.
        reference: the name of the one that all others are compared with.
        again: that of the same model, loaded once more: what it differs by is noise.
        feed: inputs by name that every run uses.
        threads: of the runtime.
        options: of the comparison.
        provider: who executes the models.
    """

    models: Mapping[str, bytes]
    reference: str
    again: str
    feed: Mapping[str, Float32Array]
    threads: int
    options: CompareOptions
    provider: Provider = CPU
    libraries: Mapping[str, Path] = field(default_factory=dict)


class Racer:
    """Loads the models of a race and compares them; made for a worker process.

    Args:
        nothing: workers give an argument.
    """

    def __init__(self, nothing: None) -> None:
        del nothing

    def __call__(self, race: Race) -> dict[str, Comparison]:
        """Return a comparison for each model but the reference.

        Raises:
            BackendError: if the provider's device is not there.
            ModelError: if the runtime refuses a model.
        """
        runs: dict[str, Run] = {
            name: Runner(model, race.threads, race.feed, provider=race.provider)
            for name, model in race.models.items()
        }
        reference = runs.pop(race.reference)
        if race.libraries:
            from hil.tvm.compiling import CompiledNetwork

            for name, path in race.libraries.items():
                runs[name] = CompiledNetwork.read(path).bound(race.feed)
        return compare_many(runs, reference, race.options, again=race.again)


def run(race: Race, limit_s: float = _LIMIT_S) -> dict[str, Comparison]:
    """Run a race in a worker process of its own.

    Args:
        race: who takes part.
        limit_s: longest time that it may take.

    Raises:
        ModelError: if the runtime refuses a model.
        WorkerError: if a model crashed or hung, or memory ran out; the error says which of these.
    """
    with Worker("hil.race:Racer", None, limit_s=limit_s) as worker:
        found = worker.call(race)
    assert isinstance(found, dict)
    return found
