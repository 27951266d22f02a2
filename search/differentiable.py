"""A differentiable relaxation: gradient descent on softened bit choices."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from costmodels.table import FloatArray
from quantization.policy import IndexArray
from search.problem import Problem
from search.proposing import Iterative, Proposer
from search.relaxation import Relaxation

_TINY = 1e-12


@dataclass(frozen=True)
class DifferentiableConfig:
    """Knobs of the relaxation."""

    steps: int = 200
    """Gradient steps of one descent; then another one starts from other random chances."""

    between: int = 10
    """Gradient steps between two batches of policies that are drawn from the chances."""

    batch: int = 10
    """Policies of a batch: the most likely one, and draws."""

    learning_rate: float = 0.1
    """Of Adam, on the logits."""

    multiplier_rate: float = 1.0
    """What a budget that is exceeded by its whole adds to the weight of its penalty in a step."""

    temperature: tuple[float, float] = (2.0, 0.2)
    """Of the softmax, at the beginning and the end of a descent; geometric in between."""

    start_chance: float = 0.8
    """Chance of the start's choices at the beginning."""


@dataclass(frozen=True, eq=False)
class Differentiable(Iterative):
    """Descends on the expected proxy loss under the expected costs, and scores what it draws.

        minimise over logits:  log E[loss] + sum_m lambda_m max(0, E[cost_m] / budget_m - 1)

    with chances softmax(logits / temperature) over the allowed choices, and each lambda growing
    while its budget is exceeded. The chances are drawn from after every few steps, rounded policies
    are repaired, and the best scored one wins. The gradient sees the proxy loss only: the measured
    score chooses among the policies, as in the source.

    B. Wu et al., "Mixed precision quantization of ConvNets via differentiable neural architecture
    search", arXiv:1812.00090; there the loss is that of a network of all choices at once.

    Args:
        start: (L,) a policy that is scored first and that the first descent begins near, or None.
        repaired: whether infeasible policies are repaired or rejected.
        config: the knobs.
    """

    config: DifferentiableConfig = field(default_factory=DifferentiableConfig)
    name: str = "differentiable"

    @property
    def batch(self) -> int:
        """See `search.proposing.Iterative`."""
        return self.config.batch

    def proposer(self, problem: Problem, seed: int) -> Proposer:
        """See `search.proposing.Iterative`."""
        return _Descents(problem, self.config, self.start, seed)


class _Descents(Proposer):
    """One descent after another; proposes what their chances yield."""

    def __init__(
        self, problem: Problem, config: DifferentiableConfig, start: IndexArray | None, seed: int
    ) -> None:
        self.count = 0
        self._problem, self._config = problem, config
        self._relaxation = Relaxation(problem)
        self._mask = torch.from_numpy(np.where(problem.allowed_decisions, 0.0, -np.inf))
        self._start = start
        self._rng = np.random.default_rng(seed)
        self._begin()

    def _begin(self) -> None:
        c, shape = self._config, tuple(self._mask.shape)
        logits = self._rng.normal(0.0, 0.1 if self.count == 0 else 1.0, shape)
        if self._start is not None and self.count == 0:
            others = max(1, shape[1] - 1)
            lead = np.log(c.start_chance / (1.0 - c.start_chance) * others) * c.temperature[0]
            taken = self._problem.decide(self._start[None])[0]
            logits[np.arange(shape[0]), taken] += lead
        self._logits = torch.from_numpy(logits).requires_grad_()
        self._optimizer = torch.optim.Adam([self._logits], lr=c.learning_rate)
        self._multipliers = torch.ones(len(self._problem.budgets), dtype=torch.float64)
        self._step = 0
        self.count += 1

    def _chances(self) -> Tensor:
        first, last = self._config.temperature
        done = min(1.0, self._step / max(1, self._config.steps - 1))
        temperature = first * (last / first) ** done
        return torch.softmax(self._logits / temperature + self._mask, dim=1)

    def _descend(self) -> None:
        for _ in range(self._config.between):
            chances = self._chances()
            excess = (self._relaxation.shares(chances) - 1.0).clamp(min=0.0)
            loss = torch.log(self._relaxation.loss(chances) + _TINY)
            self._optimizer.zero_grad()
            torch.autograd.backward(loss + (self._multipliers * excess).sum())
            self._optimizer.step()
            self._multipliers += self._config.multiplier_rate * excess.detach()
            self._step += 1

    def propose(self, count: int) -> IndexArray:
        """See `search.proposing.Proposer`."""
        if self._step >= self._config.steps:
            self._begin()
        self._descend()
        with torch.no_grad():
            chances = self._chances().numpy()
        noise = self._rng.gumbel(size=(count, *chances.shape))
        noise[0] = 0.0  # the most likely policy
        with np.errstate(divide="ignore"):
            decisions = (np.log(chances) + noise).argmax(2).astype(np.uint8)
        return self._problem.expand(decisions)

    def learn(self, index: IndexArray, scores: FloatArray, violation: FloatArray) -> None:
        """See `search.proposing.Proposer`; the gradient comes from the proxy."""

    def figures(self) -> dict[str, float]:
        """See `search.proposing.Proposer`."""
        return {"descents": float(self.count)}
