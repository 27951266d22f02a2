"""The agent: a two-layer LSTM that decides layer after layer, and how it is sampled.

Trajectories are sampled without gradient, one step at a time, because the next state depends on the
choice. Their log-probabilities are then computed in one teacher-forced pass of the same weights.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from costmodels.table import BoolArray
from quantization.policy import IndexArray
from search.environment import Environment
from search.staged import StagedEnvironment

_LAYERS = 2

AnyEnvironment = Environment | StagedEnvironment
"""What an agent walks through: one step a decision, or two."""


class Agent(nn.Module):
    """Two LSTM layers and a linear head; nothing in it belongs to one network.

    Args:
        features: length of a state, S.
        choices: K logits.
        hidden: hidden units of each LSTM layer, H.
    """

    def __init__(self, features: int, choices: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, _LAYERS)
        self.head = nn.Linear(hidden, choices)
        nn.init.zeros_(self.head.bias)
        nn.init.normal_(self.head.weight, std=0.01)  # starts close to the uniform distribution

    def forward(self, states: Tensor, penalty: Tensor, temperature: float = 1.0) -> Tensor:
        """Return log-probabilities (G, B, K) of the masked, tempered distributions.

        Args:
            states: (G, B, S).
            penalty: (G, B or 1, K), see `mask_penalty`.
            temperature: divides the logits; above 1 the choices are more even.
        """
        hidden, _ = self.lstm(states)
        logits = cast(Tensor, self.head(hidden)) / temperature + penalty
        return torch.log_softmax(logits, dim=2)


def seeded_agent(environment: AnyEnvironment, hidden: int, seed: int) -> Agent:
    """Return a new agent whose weights depend on `seed` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Agent(environment.feature_count, environment.mask.shape[1], hidden)


def mask_penalty(allowed: BoolArray) -> Tensor:
    """Return what is added to logits: 0 where a choice is allowed, a large negative elsewhere."""
    # not -inf: 0 * -inf is NaN
    return torch.from_numpy(np.where(allowed, 0.0, -1e9).astype(np.float32))


class Stepper:
    """The agent's forward pass one step at a time, without gradient.

    The same arithmetic as `torch.nn.LSTM`, whose single steps cost twice as much: input and
    recurrent weights are one transposed matrix per layer, made once per batch of trajectories.

    Args:
        agent: its weights are copied.
        rollouts: trajectories side by side, B.
    """

    def __init__(self, agent: Agent, rollouts: int) -> None:
        lstm = agent.lstm
        self._hidden = lstm.hidden_size
        self._layers = []
        for layer in range(_LAYERS):
            inputs = getattr(lstm, f"weight_ih_l{layer}").detach()
            recurrent = getattr(lstm, f"weight_hh_l{layer}").detach()
            bias = getattr(lstm, f"bias_ih_l{layer}") + getattr(lstm, f"bias_hh_l{layer}")
            matrix = torch.cat([inputs, recurrent], dim=1).t().contiguous()
            given = torch.zeros(rollouts, inputs.shape[1] + self._hidden)
            cell = torch.zeros(rollouts, self._hidden)
            self._layers.append((matrix, bias.detach(), given, cell))
        self._head = agent.head.weight.detach().t(), agent.head.bias.detach()

    def step(self, state: Tensor) -> Tensor:
        """Return the logits (B, K), before mask and temperature, of the next states (B, S)."""
        below = state
        for matrix, bias, given, cell in self._layers:
            given[:, : -self._hidden] = below
            gates = torch.addmm(bias, given, matrix)
            enter, forget, fresh, leave = gates.chunk(4, dim=1)
            cell.mul_(forget.sigmoid_()).addcmul_(enter.sigmoid_(), fresh.tanh_())
            below = torch.mul(leave.sigmoid_(), cell.tanh(), out=given[:, -self._hidden :])
        weight, bias = self._head
        return torch.addmm(bias, below, weight)


@dataclass(frozen=True, eq=False)
class Trajectories:
    """A batch of sampled trajectories.

    Args:
        states: (G, B, S) what the agent saw.
        choices: (G, B) int64 what it took.
        logits: (G, B, K) what it drew from, before mask and temperature.
        penalty: (G, B or 1, K) the masks, see `mask_penalty`.
        temperature: that it was drawn at.
    """

    states: Tensor
    choices: Tensor
    logits: Tensor
    penalty: Tensor
    temperature: float

    @property
    def actions(self) -> IndexArray:
        """(B, G)."""
        return np.ascontiguousarray(self.choices.numpy().T.astype(np.uint8))


def sample(
    agent: Agent,
    environment: AnyEnvironment,
    rollouts: int,
    generator: torch.Generator,
    temperature: float = 1.0,
) -> Trajectories:
    """Sample `rollouts` trajectories from the agent's masked, tempered distributions.

    A sample of a categorical distribution is the largest of the logits with Gumbel noise, so that
    the random numbers of all steps are drawn at once.
    """
    steps, choices = environment.mask.shape
    uniform = torch.rand(steps, rollouts, choices, generator=generator).clamp_(min=1e-20)
    noise = -torch.log(-torch.log(uniform))
    taken = torch.empty(steps, rollouts, dtype=torch.int64)
    logits = torch.empty(steps, rollouts, choices)
    penalty = mask_penalty(environment.mask)[:, None]
    if environment.mask_varies:
        penalty = penalty.repeat(1, rollouts, 1)
    running = environment.begin(rollouts)
    states = torch.from_numpy(running.features)
    with torch.no_grad():
        stepper = Stepper(agent, rollouts)
        for step in range(steps):
            if environment.mask_varies:
                penalty[step] = mask_penalty(running.allowed())
            logits[step] = stepper.step(states[step])
            perturbed = logits[step] / temperature + penalty[step] + noise[step]
            torch.argmax(perturbed, dim=1, out=taken[step])
            running.step(taken[step].numpy())
    return Trajectories(states, taken, logits, penalty, temperature)
