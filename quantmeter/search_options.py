"""How a search scores, starts and explains: its knobs beside model, data, costs and budgets."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from costmodels.units import Metric
from quantization.errors import QuantmeterError, did_you_mean
from search import methods
from search.refit import FEWEST
from search.sensitivity import SENSITIVITIES, check_sensitivity

if TYPE_CHECKING:
    from search.transfer import SavedAgent

ZERO_SHOT = "zero-shot"
"""The method that looks at no quantized network."""

PTQ, QAT = ORACLES = ("ptq", "qat")
"""What finds the accuracy of a policy: post-training quantization, or training."""

STARTS = ("greedy", "exact")
"""What an iterative method can start from: a solution of the proxy loss under the tables' costs."""


@dataclass(frozen=True)
class Scoring:
    """How policies are scored.

    Args:
        reward: ``accuracy`` on the search part; ``kl``, the negative mean divergence of the class
            probabilities from the float network's there, which needs no labels; or ``proxy``, the
            negative proxy loss.
        sensitivity: what the proxy loss sums up over the layers, see `search.sensitivity`; None
            for the default of the method (`for_method`).
        race: score on growing parts of the images, and abandon a policy once so many better ones
            beat it (`search.racing`); 0 runs every policy on all of them.
        totals: backend that prices each tried policy as a whole, such as ``ort``, which builds and
            times it, briefly; one above its budget is rejected. None goes by the sum of the table.
        refit: policies near the proxy's optimum that are scored first, of the episodes: the proxy
            is refitted to them (`search.refit`) before the method begins; 0 for none.
        oracle: ``ptq``, post-training quantization with statistics corrections, or ``qat``, short
            training with quantization in the loop (`quantmeter.training`).

    Raises:
        QuantmeterError: if there is no such sensitivity or oracle, a proxy is to race, to be
            refitted or to be trained, divergence is to race or to be trained, training is to race,
            or the policies, or those that a race runs to the end, are too few for a refit.
    """

    reward: str = "accuracy"
    sensitivity: str | None = None
    race: int = 0
    totals: str | None = None
    refit: int = 0
    oracle: str = PTQ

    def __post_init__(self) -> None:
        if self.sensitivity is not None:
            check_sensitivity(self.sensitivity)
        if self.reward == "proxy" and self.refit:
            raise QuantmeterError(
                "the reward proxy has nothing to be refitted to: leave out --refit"
            )
        if 0 < self.refit < FEWEST:
            raise QuantmeterError(f"a refit needs at least {FEWEST} policies: --refit {FEWEST}")
        if self.refit and 0 < self.race < FEWEST:
            raise QuantmeterError(
                f"--race {self.race} may run fewer than the {FEWEST} policies to the end that "
                f"--refit needs: --race {FEWEST}"
            )
        if self.reward == "proxy" and self.race:
            raise QuantmeterError("the reward proxy needs no images: leave out --race")
        if self.reward == "kl" and self.race:
            raise QuantmeterError("a race ranks by accuracy: leave out --race or --reward kl")
        if self.reward == "kl" and self.oracle == QAT:
            raise QuantmeterError(
                f"training leaves the float network that --reward kl compares with: leave out one "
                f"of it and --oracle {QAT}"
            )
        if self.oracle not in ORACLES:
            raise QuantmeterError(f"no oracle {self.oracle!r}; choose {' or '.join(ORACLES)}")
        if self.oracle == QAT and self.reward == "proxy":
            raise QuantmeterError(f"the reward proxy trains nothing: leave out --oracle {QAT}")
        if self.oracle == QAT and self.race:
            raise QuantmeterError(
                f"--oracle {QAT} takes its time to train, not to score: leave out --race"
            )

    def for_method(self, method: str) -> "Scoring":
        """Return it with the sensitivity that `method` has by default, if none is named.

        Zero-shot takes gradients of the float network, for which no quantized network is run.
        """
        default = "fisher" if method == ZERO_SHOT else SENSITIVITIES[0]
        return replace(self, sensitivity=self.sensitivity or default)

    def check(self, method: str, episodes: int, constraint: str) -> None:
        """Raise unless a search by `method` under `constraint` can score so.

        Raises:
            QuantmeterError: if not.
        """
        if self.refit >= episodes > 0:
            raise QuantmeterError(
                f"--refit {self.refit} leaves nothing of {episodes} episodes: give more --episodes"
            )
        if self.refit and method == ZERO_SHOT:
            raise QuantmeterError(
                "zero-shot scores nothing, so it has no refit: take --method exact, which finds "
                "the same optimum"
            )
        if self.refit and constraint == "weighted":
            raise QuantmeterError(
                "a refit is to scores that hold no costs: leave out --refit or --weight"
            )
        if self.race and constraint in ("soft", "weighted"):
            raise QuantmeterError(
                f"a race ranks by accuracy alone: leave out --race or --constraint {constraint}"
            )
        if self.race and not (self.refit or methods.METHODS[method].iterative):
            raise QuantmeterError(f"--method {method} tries no policies: leave out --race")


CONSTRAINTS = ("repair", "mask", "reject", "soft", "weighted")
"""What becomes of policies beyond a budget; the first one is the default."""


@dataclass(frozen=True)
class Objective:
    """What budgets mean to a search.

    Args:
        constraint: ``repair`` mends policies beyond a budget, ``reject`` drops them; ``mask`` keeps
            the agent from them, ``soft`` makes it pay for the excess; ``weighted`` repairs, and
            maximises the score less weighted costs.
        weights: ``METRIC=WEIGHT`` each: what a cost as large as its budget takes off the score.

    Raises:
        QuantmeterError: if there is no such constraint, or weights and constraint do not go
            together.
    """

    constraint: str = CONSTRAINTS[0]
    weights: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.constraint not in CONSTRAINTS:
            raise QuantmeterError(
                f"no constraint {self.constraint!r}{did_you_mean(self.constraint, CONSTRAINTS)}; "
                f"choose {', '.join(CONSTRAINTS)}"
            )
        if self.constraint == "weighted" and not self.weights:
            raise QuantmeterError("--constraint weighted needs weights: --weight latency=0.1")
        if self.weights and self.constraint != "weighted":
            raise QuantmeterError("weights need --constraint weighted")
        assert self.by_metric is not None

    @cached_property
    def by_metric(self) -> dict[Metric, float]:
        """The weights as numbers."""
        found: dict[Metric, float] = {}
        for text in self.weights:
            name, _, value = (part.strip() for part in text.partition("="))
            if name not in set(Metric) or not re.fullmatch(r"[0-9]*\.?[0-9]+", value):
                raise QuantmeterError(
                    f"{text!r} is no weight; write METRIC=WEIGHT, such as latency=0.1"
                )
            if Metric(name) in found:
                raise QuantmeterError(f"two weights for {name}; give one for each metric")
            found[Metric(name)] = float(value)
        return found

    def check(self, method: str) -> None:
        """Raise unless `method` can follow it.

        Raises:
            QuantmeterError: if not.
        """
        if self.constraint in ("mask", "soft") and method != "reinforce":
            raise QuantmeterError(
                f"--constraint {self.constraint} is the agent's: take --method reinforce"
            )
        if self.constraint != CONSTRAINTS[0] and not methods.METHODS[method].iterative:
            raise QuantmeterError(f"--method {method} proposes no policies: leave out --constraint")


@dataclass(frozen=True)
class FrontRequest:
    """Which front is wanted beside the best policy.

    Args:
        metric: the cost that is swept.
        count: budgets, at least 2.
    """

    metric: Metric
    count: int


def parse_front(text: str) -> FrontRequest:
    """Read ``--front``: ``METRIC=COUNT``.

    Raises:
        QuantmeterError: if it is none.

    >>> parse_front("latency=8").count
    8
    """
    name, _, count = (part.strip() for part in text.partition("="))
    if name not in set(Metric) or not count.isdecimal() or not 2 <= int(count) <= 100:
        raise QuantmeterError(f"{text!r} is no front; write METRIC=COUNT, such as latency=8")
    return FrontRequest(Metric(name), int(count))


AGENT = "agent.npz"
"""The file of a run of REINFORCE that holds its trained agent."""


def read_agents(
    runs: Sequence[str | Path], method: str, out: str | Path | None = None
) -> "tuple[SavedAgent, ...]":
    """Read the agents of earlier runs, ``--init-from``.

    Args:
        runs: their folders.
        method: that is to continue them.
        out: folder of the run that is to come, if it has one.

    Raises:
        QuantmeterError: if `method` has no agent, or the run that is to come would replace one.
        PolicyError: if a run has none.
    """
    for earlier in runs:
        if out is not None and Path(earlier).resolve() == Path(out).resolve():
            raise QuantmeterError(
                f"--init-from {earlier} is also the folder of this run, which would replace its "
                "agent: give another --out"
            )
    if runs and method != "reinforce":
        raise QuantmeterError(f"--method {method} has no agent: leave out --init-from")
    if not runs:
        return ()
    from search.transfer import SavedAgent

    return tuple(SavedAgent.read(Path(run) / AGENT) for run in runs)


def check_start(warm: str | None, method: str) -> None:
    """Raise unless `warm` is one of `STARTS` that `method` can use, or None.

    Raises:
        QuantmeterError: if not.
    """
    if warm is None:
        return
    if warm not in STARTS:
        raise QuantmeterError(
            f"no start {warm!r}{did_you_mean(warm, STARTS)}; choose {' or '.join(STARTS)}"
        )
    if not methods.METHODS[method].iterative:
        raise QuantmeterError(f"--method {method} takes no start: leave out --warm")
