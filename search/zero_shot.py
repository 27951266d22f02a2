"""Zero-shot: the optimum of a proxy, taken without scoring a single policy."""

from dataclasses import dataclass, replace

from costmodels.table import FloatArray
from search.exact import solve
from search.problem import Problem
from search.searcher import Evaluate, Progress, Record, SearchResult, Trial


@dataclass(frozen=True, eq=False)
class ZeroShot:
    """The exact optimum of a proxy loss; its score is the negative proxy loss, nothing is measured.

    `search.exact.Exact` differs in that it scores its policy, which counts as an evaluation, and
    that its proxy is the problem's loss: measured sensitivities, one evaluation for each layer
    and choice. Here it may be one that looks at no data, such as the error of the weights.

    Args:
        proxy: (L, K) losses, not negative; None takes those of the problem.
        seconds: wall time after which the best policy so far is taken.
    """

    proxy: FloatArray | None = None
    seconds: float = 60.0
    name: str = "zero-shot"

    def search(
        self,
        problem: Problem,
        evaluate: Evaluate,  # noqa: ARG002 - that is the point
        *,
        evaluations: int,
        seed: int,  # noqa: ARG002 - nothing is random here
        progress: Progress | None = None,
        record: Record | None = None,  # noqa: ARG002 - a trial is a policy that was scored
    ) -> SearchResult:
        """See `search.searcher.Searcher`.

        Returns:
            An archive of one policy, and no trials.
        """
        seen = problem if self.proxy is None else replace(problem, loss=self.proxy)
        solution = solve(seen, seconds=self.seconds)
        index = solution.index[None]
        costs = {metric: float(cost[0]) for metric, cost in problem.costs(index).items()}
        loss = float(problem.proxy_loss(index)[0])
        best = Trial(solution.index, -solution.loss, loss, costs, self.name)
        if progress is not None:
            progress(1.0, self.name)
        log = {"proxy_loss": solution.loss, "proven": float(solution.proven)}
        return SearchResult((best,) if evaluations > 0 else (), (), log)
