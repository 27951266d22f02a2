"""A start policy, softened, becomes what the agent does; good policies become more likely."""

import numpy as np
import torch
from torch import Tensor

from costmodels.table import FloatArray
from quantization.errors import PolicyError
from quantization.policy import IndexArray
from search.agent import Agent, AnyEnvironment, mask_penalty
from search.reinforce_config import ReinforceConfig
from search.softened import softened

_LEARNING_RATE = 3e-3
_EXAMPLES = 32
"""Policies that are drawn for each step of imitation."""
_CLOSE = 0.02
"""Nats a decision by which the agent may differ from what it imitates."""


def imitate(
    agent: Agent, environment: AnyEnvironment, start: IndexArray, c: ReinforceConfig, seed: int
) -> float:
    """Train the agent to decide as `start`, (L,), `search.softened.softened`.

    Returns:
        The mean probability of the choices of `start` at the end, over the steps at which there is
        a choice; 1 if there is no such step.

    Raises:
        PolicyError: if `start` breaks a tie or uses a masked choice.
    """
    problem = environment.problem
    decisions = problem.decide(start[None])
    tied = np.array_equal(problem.expand(decisions), start[None])
    allowed = problem.allowed_decisions[np.arange(len(problem.groups)), decisions[0]]
    if not tied or not allowed.all():
        raise PolicyError("the start policy breaks a tie or uses bits that are not supported")
    is_open = environment.mask.sum(1) > 1
    if not is_open.any():
        return 1.0
    wanted = softened(problem, start, c.imitation_probability)
    entropy = -float((wanted * np.log(np.maximum(wanted, 1e-300))).sum())
    draw = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(agent.parameters(), lr=_LEARNING_RATE)
    recent = np.inf
    for step in range(c.imitation_steps):
        loss = imitation_loss(agent, environment, _drawn(wanted, draw))
        found = float(loss.detach()) * len(is_open) - entropy
        recent = found if step == 0 else 0.8 * recent + 0.2 * found
        if recent < _CLOSE * len(is_open):
            break
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad():
        log_p = _log_likelihood(agent, environment, decisions)
    return float(log_p[torch.from_numpy(is_open)].exp().mean())


def imitation_loss(agent: Agent, environment: AnyEnvironment, decisions: IndexArray) -> Tensor:
    """Return the mean negative log-likelihood a step, in nats, of decisions (P, G)."""
    return -_log_likelihood(agent, environment, decisions).mean()


def _log_likelihood(agent: Agent, environment: AnyEnvironment, decisions: IndexArray) -> Tensor:
    """Log-probabilities (steps, P) of decisions (P, G)."""
    actions = environment.act(decisions)
    states = torch.from_numpy(environment.replay(actions).features)
    taken = torch.from_numpy(actions.T.astype(np.int64))[:, :, None]
    log_p: Tensor = agent(states, mask_penalty(environment.mask)[:, None])
    return log_p.gather(2, taken)[:, :, 0]


def _drawn(probabilities: FloatArray, draw: np.random.Generator) -> IndexArray:
    """Draw decisions (P, G)."""
    below = probabilities.cumsum(1)
    below /= below[:, -1:]  # so that rounding lets nothing impossible be drawn
    uniform = draw.random((_EXAMPLES, len(below), 1))
    return np.ascontiguousarray((below <= uniform).sum(2), np.uint8)
