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
    if not (environment.mask.sum(1) > 1).any():
        return 1.0
    wanted = softened(problem, start, c.imitation_probability)
    entropy = -float((wanted * np.log(np.maximum(wanted, 1e-300))).sum())
    draw = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(agent.parameters(), lr=_LEARNING_RATE)
    recent = np.inf
    for step in range(c.imitation_steps):
        log_p, is_open = _log_likelihood(agent, environment, _drawn(wanted, draw))
        apart = -float((log_p.detach() * is_open).sum(0).mean()) - entropy
        recent = apart if step == 0 else 0.8 * recent + 0.2 * apart
        if recent < _CLOSE * len(wanted):
            break
        optimizer.zero_grad()
        torch.autograd.backward(-log_p[is_open].mean())
        optimizer.step()
    with torch.no_grad():
        log_p, is_open = _log_likelihood(agent, environment, decisions)
    return float(log_p[is_open].exp().mean())


def imitation_loss(agent: Agent, environment: AnyEnvironment, decisions: IndexArray) -> Tensor:
    """Return the mean negative log-likelihood of decisions (P, G), in nats.

    Over the steps at which there is a choice; 0 if there is none.
    """
    log_p, is_open = _log_likelihood(agent, environment, decisions)
    return -log_p[is_open].sum() / max(1, int(is_open.sum()))


def _log_likelihood(
    agent: Agent, environment: AnyEnvironment, decisions: IndexArray
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (steps, P) of decisions (P, G), and where they were a choice (steps, P).

    A step is none if one thing is allowed there, or what is taken is not.
    """
    actions = environment.act(decisions)
    allowed = np.repeat(environment.mask[:, None], len(decisions), 1)
    running = environment.begin(len(decisions))
    for step, action in enumerate(actions.T):
        if environment.mask_varies:
            allowed[step] = running.allowed()
        running.step(action.astype(np.intp))
    taken = torch.from_numpy(actions.T.astype(np.int64))[:, :, None]
    choice = torch.from_numpy(allowed)
    is_open = (choice.sum(2) > 1) & choice.gather(2, taken)[:, :, 0]
    log_p: Tensor = agent(torch.from_numpy(running.features), mask_penalty(allowed))
    return log_p.gather(2, taken)[:, :, 0], is_open


def _drawn(probabilities: FloatArray, draw: np.random.Generator) -> IndexArray:
    """Draw decisions (P, G)."""
    below = probabilities.cumsum(1)
    below /= below[:, -1:]  # so that rounding lets nothing impossible be drawn
    uniform = draw.random((_EXAMPLES, len(below), 1))
    return np.ascontiguousarray((below <= uniform).sum(2), np.uint8)
