"""REINFORCE: an LSTM learns which layers deserve bits from the scores of whole policies."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from costmodels.table import FloatArray
from quantization.policy import IndexArray
from search.agent import Agent, Trajectories, sample, seeded_agent
from search.archive import Ledger
from search.baseline import Baseline
from search.elites import Elites
from search.environment import Environment
from search.exact import solve
from search.exploration import Exploration
from search.imitation import imitate, imitation_loss
from search.objective import Penalty
from search.problem import Problem
from search.reinforce_config import ReinforceConfig
from search.searcher import Evaluate, Progress, Record, SearchResult
from search.staged import StagedEnvironment
from search.transfer import SavedAgent, inherit

__all__ = ["Reinforce", "ReinforceConfig", "policy_loss"]


@dataclass(frozen=True, eq=False)
class Reinforce:
    """The agent behind the interface of every searcher; `evaluate` is its reward.

    Args:
        config: the knobs.
        start: (L,) a policy that the agent imitates first, or None to start cold.
        inherited: agents of earlier searches that this one continues (`search.transfer`); none
            starts from random weights.
        trained: is handed the agent when the search ends, to be saved.
    """

    config: ReinforceConfig = field(default_factory=ReinforceConfig)
    start: IndexArray | None = None
    inherited: tuple[SavedAgent, ...] = ()
    trained: Callable[[SavedAgent], None] | None = None
    name: str = "reinforce"

    def search(
        self,
        problem: Problem,
        evaluate: Evaluate,
        *,
        evaluations: int,
        seed: int,
        progress: Progress | None = None,
        record: Record | None = None,
    ) -> SearchResult:
        """See `search.searcher.Searcher`.

        The reward of a repaired policy belongs to the choices that were sampled.

        Raises:
            BudgetError: if every trajectory of the first update is rejected, and the MILP proves
                that no policy meets the budgets.
            PolicyError: if the start policy breaks a tie or uses bits that are not supported, or an
                inherited agent has other choices.
        """
        c = self.config
        ledger = Ledger(problem, evaluate, evaluations, progress, record, c.archive)
        environment = (StagedEnvironment if c.weights_first else Environment)(problem, c.constraint)
        generator = torch.Generator().manual_seed(seed)
        if self.inherited:
            agent = inherit(self.inherited, environment, c, generator)
        else:
            agent = seeded_agent(environment, c.hidden, seed)
        exploration, elites = Exploration(c), Elites(c.elites)
        baseline = Baseline(c.baseline_momentum)
        penalty = Penalty(problem, c.soft_target, c.soft_rate)
        log: dict[str, float | str] = {}
        steps = 0
        if self.start is not None:
            log["imitated_probability"] = imitate(agent, environment, self.start, c, seed)
            if problem.feasible(self.start[None])[0]:
                score = ledger.score(self.start[None], f"{self.name} start")
                elites.take_in(problem.decide(self.start[None]), self.start[None], score)
                exploration.know(self.start[None])
        optimizer = torch.optim.Adam(agent.parameters(), lr=c.learning_rate, fused=True)

        while ledger.left > 0 and not exploration.ended:
            # 1. whole trajectories, without gradient
            batch = sample(agent, environment, c.rollouts, generator, exploration.temperature)
            decisions = environment.decide(batch.actions)
            # 2. budgets: what is feasible, repaired or rejected
            outcome = environment.finish(decisions)
            if exploration.updates == 0 and outcome.rejected.all():
                solve(problem)  # raises if the budgets cannot be met at all
            # 3. rewards of what is accepted
            origin = f"{self.name} update {exploration.updates}"
            exploration.take_in(decisions, outcome)
            accepted = ~outcome.rejected
            rewards = np.full(c.rollouts, -np.inf)
            rewards[accepted] = ledger.score(outcome.index[accepted], origin)
            if np.isnan(rewards).any():  # evaluations ended within the batch
                break
            within = accepted & problem.within(outcome.costs)  # soft budgets accept others too
            elites.take_in(decisions[within], outcome.index[within], rewards[within])
            if c.constraint == "soft" and accepted.any():
                tried = {metric: cost[accepted] for metric, cost in outcome.costs.items()}
                rewards[accepted] = penalty.take_in(rewards[accepted], tried)
            # 4. advantages; what is infeasible as measured counts as one budget's worth beyond
            violation = np.where(accepted & np.isneginf(rewards), 1.0, outcome.violation)
            advantages = baseline.advantages(rewards, violation)
            advantages = advantages.clip(-c.advantage_limit, c.advantage_limit)
            # 5. one step along the policy gradient, in one teacher-forced pass
            loss = policy_loss(agent, batch, advantages, c.entropy)
            if len(best := elites.decisions):
                loss = loss + c.elite_weight * imitation_loss(agent, environment, best)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(agent.parameters(), c.gradient_limit)
            optimizer.step()
            steps += 1

        if self.trained is not None:
            self.trained(SavedAgent.of(agent, problem.choices))
        return ledger.result({**log, **exploration.figures(), "steps": float(steps)})


def policy_loss(
    agent: Agent, batch: Trajectories, advantages: FloatArray, entropy: float
) -> Tensor:
    """Return ``-mean(advantage * log p(choice)) - entropy * mean(H)`` over decisions.

    Args:
        agent: whose choices they are.
        batch: B trajectories; probabilities are those at the temperature that they were drawn at.
        advantages: (B,).
        entropy: weight of the mean entropy H, in nats.
    """
    log_p: Tensor = agent(batch.states, batch.penalty, batch.temperature)
    taken = log_p.gather(2, batch.choices[:, :, None])[:, :, 0]
    weight = torch.from_numpy(advantages.astype(np.float32))
    spread = -(log_p.exp() * log_p).sum(2)
    return -(weight * taken).mean() - entropy * spread.mean()
