"""REINFORCE: an LSTM learns which layers deserve bits from the scores of whole policies."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from costmodels.table import FloatArray
from quantization.errors import PolicyError
from quantization.policy import IndexArray
from search.agent import Agent, Trajectories, sample
from search.archive import Ledger
from search.environment import Environment
from search.problem import Problem
from search.repair import Repaired
from search.searcher import Evaluate, Progress, Record, SearchResult

_SMALLEST_DEVIATION = 1e-12


@dataclass(frozen=True)
class ReinforceConfig:
    """Knobs of the agent. The defaults start cold; `warm` is for a given start policy."""

    episodes: int = 600
    """Trajectories after which the search stops, if evaluations do not end it before."""

    rollouts: int = 10
    """Whole trajectories of one update."""

    hidden: int = 300
    """Hidden units of each of the two LSTM layers."""

    learning_rate: float = 1e-3
    """Of Adam."""

    baseline_momentum: float = 0.8
    """Share of the average reward, and of its deviation, that survives an update."""

    advantage_limit: float = 3.0
    """Advantages are counted in deviations of the reward and cut off here."""

    entropy: float = 0.01
    """Weight of the entropy bonus (nats a decision) against advantages of one deviation."""

    gradient_limit: float = 1.0
    """Largest norm of the gradient."""

    imitation_probability: float = 0.8
    """Mean probability of the start policy's choices at which imitation ends."""

    imitation_steps: int = 200
    """Steps of imitation at most."""

    archive: int = 32
    """Best distinct policies that are kept."""

    @classmethod
    def warm(cls, episodes: int = 600) -> "ReinforceConfig":
        """Return what works from a good start policy: small steps, no entropy bonus."""
        return cls(episodes=episodes, learning_rate=3e-4, entropy=0.0)


@dataclass
class Baseline:
    """Moving average and deviation of the rewards of accepted trajectories.

    Rejected trajectories do not enter. They are rewarded as if they were one deviation below the
    average, and up to another one the farther they are from feasible.

    Args:
        momentum: share of the past that survives an update.
        mean: average reward; None before the first accepted trajectory.
        deviation: root of the moving mean squared distance from the average.
    """

    momentum: float
    mean: float | None = None
    deviation: float = 0.0

    def advantages(self, rewards: FloatArray, violation: FloatArray) -> FloatArray:
        """Take in one batch; return its advantages, (B,), in deviations of the reward.

        Args:
            rewards: (B,); entries of rejected trajectories are not looked at.
            violation: (B,) 0 for accepted trajectories, positive for rejected ones.
        """
        accepted = violation == 0
        depth = np.minimum(violation, 1.0)
        if accepted.any():
            self._take_in(rewards[accepted])
        if self.mean is None:  # nothing was ever feasible: climb towards the budgets
            mean, scale = float(depth.mean()), float(depth.std())
            return (mean - depth) / max(scale, _SMALLEST_DEVIATION)
        scale = max(self.deviation, _SMALLEST_DEVIATION)
        advantages: FloatArray = np.where(accepted, (rewards - self.mean) / scale, -1.0 - depth)
        return advantages

    def _take_in(self, rewards: FloatArray) -> None:
        if self.mean is None:
            self.mean, self.deviation = float(rewards.mean()), float(rewards.std())
            return
        spread = float(np.mean((rewards - self.mean) ** 2))
        keep, new = self.momentum, 1.0 - self.momentum
        self.deviation = float(np.sqrt(keep * self.deviation**2 + new * spread))
        self.mean = keep * self.mean + new * float(rewards.mean())


@dataclass
class _Counts:
    """Figures of a run."""

    episodes: int = 0
    updates: int = 0
    repaired: int = 0
    rejected: int = 0
    sampled: set[bytes] = field(default_factory=set)

    def add(self, decisions: IndexArray, outcome: Repaired) -> None:
        self.episodes += len(decisions)
        self.repaired += int(outcome.repaired.sum())
        self.rejected += int(outcome.rejected.sum())
        self.sampled.update(row.tobytes() for row in decisions)


def imitate(agent: Agent, environment: Environment, start: IndexArray, c: ReinforceConfig) -> float:
    """Train the agent to take the choices of `start`, (L,), with some probability.

    Returns:
        The mean probability of its choices at the end.

    Raises:
        PolicyError: if `start` breaks a tie or uses a masked choice.
    """
    problem = environment.problem
    decisions = problem.decide(start[None])
    tied = np.array_equal(problem.expand(decisions), start[None])
    if not tied or not environment.mask[np.arange(environment.steps), decisions[0]].all():
        raise PolicyError("the start policy breaks a tie or uses bits that are not supported")
    states = torch.from_numpy(environment.replay(decisions).features)
    wanted = torch.from_numpy(decisions.T.astype(np.int64))[:, :, None]
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3)
    for _ in range(c.imitation_steps):
        log_p = agent(states).gather(2, wanted)
        if float(log_p.detach().exp().mean()) >= c.imitation_probability:
            break
        optimizer.zero_grad()
        torch.autograd.backward(-log_p.mean())
        optimizer.step()
    with torch.no_grad():
        return float(agent(states).gather(2, wanted).exp().mean())


def policy_loss(
    agent: Agent, batch: Trajectories, advantages: FloatArray, entropy: float
) -> Tensor:
    """Return ``-mean(advantage * log p(choice)) - entropy * mean(H)`` over decisions."""
    log_p: Tensor = agent(batch.states)
    taken = log_p.gather(2, batch.choices[:, :, None])[:, :, 0]
    weight = torch.from_numpy(advantages.astype(np.float32))
    spread = -(log_p.exp() * log_p).sum(2)
    return -(weight * taken).mean() - entropy * spread.mean()


@dataclass(frozen=True, eq=False)
class Reinforce:
    """The agent behind the interface of every searcher; `evaluate` is its reward.

    Args:
        config: the knobs.
        start: (L,) a policy that the agent imitates first, or None to start cold.
    """

    config: ReinforceConfig = field(default_factory=ReinforceConfig)
    start: IndexArray | None = None
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

        Stops after `evaluations` distinct policies or `config.episodes` trajectories. Infeasible
        trajectories are repaired; the reward of the repaired policy belongs to the sampled choices.
        """
        c = self.config
        ledger = Ledger(problem, evaluate, evaluations, progress, record, c.archive)
        environment = Environment(problem)
        agent = seeded_agent(environment, c.hidden, seed)
        generator = torch.Generator().manual_seed(seed)
        log: dict[str, float | str] = {}
        if self.start is not None:
            log["imitated_probability"] = imitate(agent, environment, self.start, c)
            if problem.feasible(self.start[None])[0]:
                ledger.score(self.start[None], f"{self.name} start")
        optimizer = torch.optim.Adam(agent.parameters(), lr=c.learning_rate, fused=True)
        baseline = Baseline(c.baseline_momentum)
        counts = _Counts()

        while counts.episodes < c.episodes and ledger.left > 0:
            # 1. whole trajectories, without gradient
            batch = sample(agent, environment, c.rollouts, generator)
            # 2. hard budgets: repair or reject
            outcome = environment.finish(batch.decisions)
            counts.add(batch.decisions, outcome)
            # 3. rewards of what is feasible
            accepted = ~outcome.rejected
            rewards = np.zeros(c.rollouts)
            origin = f"{self.name} update {counts.updates}"
            rewards[accepted] = ledger.score(outcome.index[accepted], origin)
            if np.isnan(rewards).any():  # evaluations ended within the batch
                break
            # 4. one step along the policy gradient
            advantages = baseline.advantages(rewards, outcome.violation)
            advantages = advantages.clip(-c.advantage_limit, c.advantage_limit)
            loss = policy_loss(agent, batch, advantages, c.entropy)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(agent.parameters(), c.gradient_limit)
            optimizer.step()
            counts.updates += 1

        return ledger.result({**log, **_figures(counts)})


def seeded_agent(environment: Environment, hidden: int, seed: int) -> Agent:
    """Return a new agent whose weights depend on `seed` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mask = environment.mask
        return Agent(environment.feature_count, mask.shape[1], hidden, mask)


def _figures(counts: _Counts) -> dict[str, float]:
    episodes = max(1, counts.episodes)
    return {
        "episodes": float(counts.episodes),
        "updates": float(counts.updates),
        "distinct_sampled": float(len(counts.sampled)),
        "repaired_share": counts.repaired / episodes,
        "rejected_share": counts.rejected / episodes,
    }
