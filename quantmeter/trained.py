"""The best policies of a search, trained at length; the best of them is exported as trained.

A candidate is written when it was trained, ``trained-RANK.onnx`` and then ``trained-RANK.json``: a
search that is ended meanwhile trains no candidate twice.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hil.audit import audit
from quantization.policy import IndexArray, Policy
from quantmeter.benchmarking import accuracy_on_test
from quantmeter.preparing import Prepared, Progress
from quantmeter.run_files import TRAINED_MODEL, TRAINED_POLICY, candidate_files
from quantmeter.run_folder import RunFolder
from quantmeter.runs import Found, describe
from quantmeter.scoring import Scorer
from quantmeter.training import Training, open_oracle
from search.exact import Solution
from search.oracle import Interval, count_right
from search.searcher import SearchResult

if TYPE_CHECKING:
    from quantization.qat.tuned import TunedModel
    from search.qat_oracle import QatOracle


@dataclass(frozen=True, eq=False)
class Candidate:
    """A policy that was trained, by its accuracies on the search part.

    Args:
        rank: its place among those that the search found, from 1.
        index: (L,) the policy.
        first: after phase 1.
        second: after phase 2; None without fine-tuning.
        model: the exported file; None where nothing is exported.
    """

    rank: int
    index: IndexArray
    first: float
    second: float | None
    model: bytes | None

    @property
    def accuracy(self) -> float:
        """At the end of training."""
        return self.first if self.second is None else self.second


@dataclass(frozen=True, eq=False)
class Trained:
    """What training made of the best policies.

    Args:
        found: the best candidate in figures; its test accuracy is that of the exported file, or,
            where nothing is exported, of what a file would compute.
        best: the candidate itself.
        candidates: all of them, as the search ranked them.
        floats: accuracy of the float network on the test part.
        epochs: of phase 1 and phase 2; 0 without fine-tuning.
    """

    found: Found
    best: Candidate
    candidates: tuple[Candidate, ...]
    floats: Interval
    epochs: tuple[int, int]

    def files(self) -> Mapping[str, str | bytes]:
        """Return the files of a run that hold it, by name."""
        model = {} if self.best.model is None else {TRAINED_MODEL: self.best.model}
        return {**model, TRAINED_POLICY: self.found.policy.to_json()}

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            **self.found.to_dict(),
            "file": None if self.best.model is None else TRAINED_MODEL,
            "rank": self.best.rank,
            "epochs": list(self.epochs),
            "float_test_accuracy": self.floats.share,
            "float_test_accuracy_interval": [self.floats.low, self.floats.high],
            "candidates": [
                {"rank": one.rank, "phase_1": one.first, "phase_2": one.second}
                for one in self.candidates
            ],
        }


def train_best(
    prepared: Prepared,
    result: SearchResult,
    scorer: Scorer,
    optimum: Solution,
    training: Training,
    *,
    exported: bool,
    seed: int,
    folder: RunFolder | None = None,
    progress: Progress = lambda _share, _what: None,
) -> Trained:
    """Train the best policies of a search, and test the best of them on the test part.

    Without fine-tuning, the one best policy goes through phase 1 again: what a file is made of is
    not kept while policies are scored. Candidates are compared on the search part.

    Args:
        prepared: what the search stood on.
        result: what it found; of policies that race, those that were run to the end count.
        scorer: what it maximised.
        optimum: of its proxy loss.
        training: how many candidates, and how long.
        exported: whether policies are to be exported; if not, the test is simulated.
        seed: of the training.
        folder: where candidates are kept, and read back from; None keeps none.
        progress: called with the share done and what is being done.

    Raises:
        DataError: if training diverges.
        AuditError: if an exported file is not what was asked for.
    """
    whole = [trial.index for trial in result.archive if not scorer.of(trial.index).abandoned]
    first, second = training.recipes()
    epochs = first.epochs, 0 if second is None else second.epochs
    chosen = whole[: training.fine_tune or 1]
    done, wanted = 0, len(chosen) * sum(epochs)

    def on_epoch(_number: int, _loss: float) -> None:
        nonlocal done
        done += 1
        progress(done / wanted, f"training the best, epoch {done} of {wanted}")

    oracle = open_oracle(prepared.bench, training, seed, on_epoch)
    candidates, tuned = [], None
    for rank, index in enumerate(chosen, start=1):
        candidate = None if folder is None else _read(folder, rank, prepared, index)
        if candidate is None:
            candidate, tuned = _train(prepared, oracle, training, rank, index, exported=exported)
            if folder is not None:
                _keep(folder, candidate, prepared)
        else:
            done += sum(epochs)
        candidates.append(candidate)
    best = max(candidates, key=lambda one: one.accuracy)  # among equals, as the search ranked them
    if best.model is not None:
        test = accuracy_on_test(prepared.bench, best.model)
    else:
        assert tuned is not None  # the one candidate, which was not read back
        test = _simulated(prepared, tuned)
    found = describe(prepared, "trained", best.index, optimum, score=scorer.of(best.index))
    return Trained(
        replace(found, search_accuracy=best.accuracy, test_accuracy=test),
        best,
        tuple(candidates),
        _floats(prepared),
        epochs,
    )


def drop_candidates(folder: RunFolder, trained: Trained) -> None:
    """Remove what `train_best` kept of candidates, once the best of them has its own files."""
    folder.drop(name for one in trained.candidates for name in candidate_files(one.rank))


def _train(
    prepared: Prepared,
    oracle: "QatOracle",
    training: Training,
    rank: int,
    index: IndexArray,
    *,
    exported: bool,
) -> "tuple[Candidate, TunedModel]":
    """Train one policy, (L,), and export it."""
    from quantization.qat.tuned import freeze
    from search.qat_oracle import fine_tune

    policy = prepared.policy(index)
    _, recipe = training.recipes()
    second: float | None = None
    if recipe is None:
        tuned, first = freeze(oracle.trained(policy)), oracle.score(policy)
    else:
        [one] = fine_tune(oracle, [policy], keep=1, recipe=recipe)
        tuned, first, second = one.model, one.first, one.second
    model = None
    if exported:
        model = tuned.build()
        _audit(prepared, policy, tuned, model)
    return Candidate(rank, index, first, second, model), tuned


def _audit(prepared: Prepared, policy: Policy, tuned: "TunedModel", model: bytes) -> None:
    size, options = tuned.exporter.size_bytes(policy), tuned.exporter.options
    audit(prepared.bench.network, policy, model, size, options).require()


def _simulated(prepared: Prepared, tuned: "TunedModel") -> Interval:
    """Simulate a trained network, deployable or not, on the test part."""
    from quantization.simulation import Simulation

    images, labels = prepared.bench.part("test")
    assert labels is not None  # a task has them
    simulation = Simulation(tuned.exporter, prepared.bench.range_inputs)
    return Interval.wilson(
        count_right(simulation.logits(tuned.policy, images), labels), len(images)
    )


def _floats(prepared: Prepared) -> Interval:
    _, labels = prepared.bench.part("test")
    assert labels is not None
    right = int((prepared.bench.float_labels == labels).sum())
    return Interval.wilson(right, len(labels))


def _keep(folder: RunFolder, candidate: Candidate, prepared: Prepared) -> None:
    """Write a candidate; its figures last: where they are, it is there as a whole."""
    if candidate.model is None:
        return
    model, figures = candidate_files(candidate.rank)
    layers = prepared.policy(candidate.index).to_json()
    content = {"policy": layers, "phase_1": candidate.first, "phase_2": candidate.second}
    folder.keep({model: candidate.model, figures: json.dumps(content, indent=2) + "\n"})


def _read(folder: RunFolder, rank: int, prepared: Prepared, index: IndexArray) -> Candidate | None:
    """Return a candidate that was kept; None if there is none of this policy."""
    model, figures = map(folder.kept, candidate_files(rank))
    if model is None or figures is None:
        return None
    content = json.loads(figures)
    if content["policy"] != prepared.policy(index).to_json():
        return None
    return Candidate(rank, np.asarray(index), content["phase_1"], content["phase_2"], model)
