"""A start policy becomes what the agent most probably does."""

import numpy as np
import torch

from quantization.errors import PolicyError
from quantization.policy import IndexArray
from search.agent import Agent, AnyEnvironment, mask_penalty
from search.reinforce_config import ReinforceConfig

_LEARNING_RATE = 1e-3


def imitate(
    agent: Agent, environment: AnyEnvironment, start: IndexArray, c: ReinforceConfig
) -> float:
    """Train the agent to take the choices of `start`, (L,), with some probability.

    Returns:
        The mean probability of its choices at the end, over the steps at which there is a choice;
        1 if there is no such step.

    Raises:
        PolicyError: if `start` breaks a tie or uses a masked choice.
    """
    problem = environment.problem
    decisions = problem.decide(start[None])
    tied = np.array_equal(problem.expand(decisions), start[None])
    allowed = problem.allowed_decisions[np.arange(len(problem.groups)), decisions[0]]
    if not tied or not allowed.all():
        raise PolicyError("the start policy breaks a tie or uses bits that are not supported")
    actions = environment.act(decisions)
    states = torch.from_numpy(environment.replay(actions).features)
    wanted = torch.from_numpy(actions.T.astype(np.int64))[:, :, None]
    penalty = mask_penalty(environment.mask)[:, None]
    is_open = torch.from_numpy(environment.mask.sum(1) > 1)
    if not is_open.any():
        return 1.0
    optimizer = torch.optim.Adam(agent.parameters(), lr=_LEARNING_RATE)
    for _ in range(c.imitation_steps):
        log_p = agent(states, penalty).gather(2, wanted)[is_open]
        if float(log_p.detach().exp().mean()) >= c.imitation_probability:
            break
        optimizer.zero_grad()
        torch.autograd.backward(-log_p.mean())
        optimizer.step()
    with torch.no_grad():
        return float(agent(states, penalty).gather(2, wanted)[is_open].exp().mean())
