"""Training with quantization in the loop, as a search asks for it: how long, and on what."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from quantization.deployment import Target
from quantization.errors import DataError, QuantmeterError
from quantmeter.run_folder import data_digest
from quantmeter.search_options import QAT, Scoring
from quantmeter.workbench import Workbench
from search.archive import KEPT

if TYPE_CHECKING:
    from quantization.qat.training import Recipe
    from search.qat_oracle import QatOracle


@dataclass(frozen=True)
class Training:
    """How long policies are trained: each one that the oracle ``qat`` scores, and the best found.

    Args:
        fine_tune: so many of the best policies found go through phase 1 and phase 2, and the best
            of them is exported with the weights and scales that were trained; 0 for none.
        epochs: of phase 1, for each policy; None for those of `quantization.qat.training.PHASE_1`.
        fine_tune_epochs: of phase 2; None for those of `PHASE_2`.
        images: of an epoch, drawn anew for each; None takes all.
        learning_rate: of both phases, at the start; None for that of each.
    """

    fine_tune: int = 0
    epochs: int | None = None
    fine_tune_epochs: int | None = None
    images: int | None = None
    learning_rate: float | None = None

    def asked_by(self, scoring: Scoring) -> str:
        """Return the option that asks for training, "" if none does."""
        if scoring.oracle == QAT:
            return f"--oracle {QAT}"
        return f"--fine-tune {self.fine_tune}" if self.fine_tune else ""

    def check(self, scoring: Scoring, *, exported: bool, with_task: bool) -> None:
        """Raise unless a search that scores by `scoring` can train so.

        Args:
            scoring: names the oracle.
            exported: whether policies are for this runtime.
            with_task: whether there are training images.

        Raises:
            DataError: if a number makes no sense, or training images are missing.
            QuantmeterError: if options contradict each other.
        """
        self._check_numbers()
        if self.fine_tune > KEPT:
            raise QuantmeterError(f"a search keeps its {KEPT} best: --fine-tune {KEPT} at most")
        if self.fine_tune and not exported:
            raise QuantmeterError("--fine-tune exports what it trained: leave out --no-export")
        if self.fine_tune_epochs is not None and not self.fine_tune:
            raise QuantmeterError("--fine-tune-epochs trains nothing without --fine-tune K")
        if self != Training() and not self.asked_by(scoring):
            raise QuantmeterError(
                f"nothing is trained: give --oracle {QAT} or --fine-tune K, or leave the epochs, "
                "images and learning rate of training out"
            )
        if self.asked_by(scoring):
            self.recipes()
            if not with_task:
                raise DataError(
                    f"{self.asked_by(scoring)} needs the images that the network learned from, "
                    "which a task brings: give --task MODULE:FUNCTION"
                )

    def _check_numbers(self) -> None:
        """Raise, naming the option, unless each number makes sense by itself."""
        if self.fine_tune < 0:
            raise DataError(f"--fine-tune is a positive number, not {self.fine_tune}")
        for option, number in (
            ("--qat-epochs", self.epochs),
            ("--fine-tune-epochs", self.fine_tune_epochs),
            ("--qat-images", self.images),
            ("--qat-learning-rate", self.learning_rate),
        ):
            if number is not None and not 0 < number < math.inf:
                raise DataError(f"{option} is a positive number, not {number:g}")

    def recipes(self) -> "tuple[Recipe, Recipe | None]":
        """Return the recipes of phase 1 and, if anything is fine-tuned, of phase 2.

        Raises:
            DataError: if a number makes no sense.
        """
        from quantization.qat.training import PHASE_1, PHASE_2

        changed: dict[str, Any] = {"images": self.images}
        if self.learning_rate is not None:
            changed["learning_rate"] = self.learning_rate
        first, second = (
            replace(phase, **changed, epochs=phase.epochs if epochs is None else epochs)
            for phase, epochs in ((PHASE_1, self.epochs), (PHASE_2, self.fine_tune_epochs))
        )
        return first, second if self.fine_tune else None

    def request(self, bench: Workbench, scoring: Scoring) -> Mapping[str, Any] | None:
        """Return all that decides what training finds, as JSON values; None if nothing is trained.

        What changes images at random is told by its name only.
        """
        if not self.asked_by(scoring):
            return None
        assert bench.task is not None  # `check`
        train, augment = bench.task.train, bench.task.augment
        first, second = self.recipes()
        return {
            "fine_tune": self.fine_tune,
            "phase_1": asdict(first),
            "phase_2": None if second is None else asdict(second),
            "images": data_digest(train.images, train.labels),
            "augment": getattr(augment, "__qualname__", None if augment is None else "unnamed"),
        }


def check_target(bench: Workbench, target: Target, option: str) -> None:
    """Raise unless what is priced is what trained files are exported for.

    Args:
        bench: network and data.
        target: the provider that is priced.
        option: that asks for training.

    Raises:
        QuantmeterError: if not.
    """
    if target != bench.target:
        raise QuantmeterError(
            f"{option} trains integers for {bench.target.name}, but --cost prices {target.name}"
        )


def open_oracle(
    bench: Workbench,
    training: Training,
    seed: int,
    on_epoch: Callable[[int, float], None] | None = None,
) -> "QatOracle":
    """Return the oracle that trains each policy by phase 1, and scores it on the search part.

    Training that diverges is an error there, not a score.

    Args:
        bench: of a task.
        training: says how long.
        seed: of the training.
        on_epoch: called after every epoch with its number and mean loss.
    """
    from search.qat_oracle import QatOracle

    task = bench.task
    assert task is not None
    recipe, _ = training.recipes()
    return QatOracle(
        bench.exporter,
        bench.range_inputs,
        task.train,
        task.search,
        recipe,
        seed=seed,
        augment=task.augment,
        on_epoch=on_epoch,
    )
