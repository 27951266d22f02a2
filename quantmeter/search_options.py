"""How a search scores, starts and explains: its knobs beside model, data, costs and budgets."""

from dataclasses import dataclass

from costmodels.units import Metric
from quantization.errors import QuantmeterError, did_you_mean
from search import methods
from search.sensitivity import SENSITIVITIES, check_sensitivity

STARTS = ("greedy", "exact")
"""What an iterative method can start from: a solution of the proxy loss under the tables' costs."""


@dataclass(frozen=True)
class Scoring:
    """How policies are scored.

    Args:
        reward: ``accuracy`` on the search part, or ``proxy``, the negative proxy loss.
        sensitivity: what the proxy loss sums up over the layers, see `search.sensitivity`.
        race: score on growing parts of the images, and abandon a policy once so many better ones
            beat it (`search.racing`); 0 runs every policy on all of them.
        totals: backend that prices each tried policy as a whole, such as ``ort``, which builds and
            times it, briefly; one above its budget is rejected. None goes by the sum of the table.
        refit: policies near the proxy's optimum that are scored first, of the episodes: the proxy
            is refitted to them (`search.refit`) before the method begins; 0 for none.

    Raises:
        QuantmeterError: if there is no such sensitivity, a proxy is to race or to be refitted, or
            the policies are too few for a refit.
    """

    reward: str = "accuracy"
    sensitivity: str = SENSITIVITIES[0]
    race: int = 0
    totals: str | None = None
    refit: int = 0

    def __post_init__(self) -> None:
        check_sensitivity(self.sensitivity)
        if self.reward == "proxy" and self.refit:
            raise QuantmeterError(
                "the reward proxy has nothing to be refitted to: leave out --refit"
            )
        if 0 < self.refit < 10:
            raise QuantmeterError("a refit needs at least 10 policies: --refit 10")
        if self.reward == "proxy" and self.race:
            raise QuantmeterError("the reward proxy needs no images: leave out --race")


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
