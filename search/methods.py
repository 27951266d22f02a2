"""The search methods by name: what each is, and how to make one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from costmodels.table import FloatArray
from quantization.errors import QuantmeterError, did_you_mean
from quantization.policy import IndexArray
from search.bayesian import Bayesian
from search.evolution import Evolution
from search.exact import Exact
from search.greedy import Greedy
from search.manual import Manual
from search.neighbourhood import Neighbourhood
from search.sampling import RandomSearch
from search.searcher import Searcher
from search.uniform import Uniform
from search.zero_shot import ZeroShot

if TYPE_CHECKING:
    from search.reinforce import ReinforceConfig
    from search.transfer import SavedAgent


@dataclass(frozen=True, eq=False)
class MethodSettings:
    """What a method can be told; each takes what concerns it.

    Args:
        start: (L,) the policy that an iterative method begins with; None starts cold.
        repair: whether infeasible proposals are repaired (`search.repair`), or rejected: these cost
            no evaluation.
        agent: knobs of the agent; None takes the defaults for a cold or a warm start.
        inherited: agents of earlier searches that the agent continues.
        trained: is handed the agent when its search ends, to be saved.
        seconds: wall time of an exact solver.
        proxy: (L, K) losses that zero-shot looks at; None takes those of the problem.
    """

    start: IndexArray | None = None
    repair: bool = True
    agent: "ReinforceConfig | None" = None
    inherited: "tuple[SavedAgent, ...]" = ()
    trained: "Callable[[SavedAgent], None] | None" = None
    seconds: float = 60.0
    proxy: FloatArray | None = None


@dataclass(frozen=True)
class Method:
    """A search method.

    Args:
        make: returns the searcher.
        summary: what it does, in a few words.
        iterative: whether it proposes policies, one after the other, until the evaluations are
            spent; only these take a start and the repair. Others score a few policies that they
            find without evaluating any.
    """

    make: Callable[[MethodSettings], Searcher]
    summary: str
    iterative: bool


def _reinforce(settings: MethodSettings) -> Searcher:
    from search.reinforce import Reinforce, ReinforceConfig

    default = ReinforceConfig if settings.start is None else ReinforceConfig.warm
    config = settings.agent or default()
    if not settings.repair and config.constraint == "repair":
        config = replace(config, constraint="reject")
    return Reinforce(config, settings.start, settings.inherited, settings.trained)


def _differentiable(settings: MethodSettings) -> Searcher:
    from search.differentiable import Differentiable

    return Differentiable(settings.start, settings.repair)


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "reinforce": Method(_reinforce, "an LSTM agent learns by policy gradient", iterative=True),
        "exact": Method(lambda s: Exact(s.seconds), "proved optimum of the proxy", iterative=False),
        "greedy": Method(lambda _: Greedy(), "sensitivity per cost, step by step", iterative=False),
        "uniform": Method(lambda _: Uniform(), "the same bits everywhere", iterative=False),
        "random": Method(
            lambda s: RandomSearch(s.start, s.repair), "independent draws", iterative=True
        ),
        "neighbourhood": Method(
            lambda s: Neighbourhood(s.start, s.repair),
            "random changes of the best so far",
            iterative=True,
        ),
        "evolution": Method(
            lambda s: Evolution(s.start, s.repair), "NSGA-II of optuna", iterative=True
        ),
        "bayesian": Method(lambda s: Bayesian(s.start, s.repair), "TPE of optuna", iterative=True),
        "differentiable": Method(
            _differentiable, "gradient descent on softened bit choices", iterative=True
        ),
        "manual": Method(lambda _: Manual(), "8 bits at both ends, depthwise low", iterative=False),
        "zero-shot": Method(
            lambda s: ZeroShot(s.proxy, s.seconds), "a proxy alone, no evaluation", iterative=False
        ),
    }
)
"""Every search method by its name."""


def make_searcher(name: str, settings: MethodSettings | None = None) -> Searcher:
    """Return the search method called `name`.

    Args:
        name: one of `METHODS`.
        settings: what it is told; None tells nothing.

    Raises:
        QuantmeterError: if there is none; names close matches.

    >>> make_searcher("greedy").name
    'greedy'
    """
    if name not in METHODS:
        raise QuantmeterError(
            f"no method {name!r}{did_you_mean(name, METHODS)}; choose {', '.join(METHODS)}"
        )
    return METHODS[name].make(settings or MethodSettings())
