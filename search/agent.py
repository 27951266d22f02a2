"""The agent: a two-layer LSTM that decides layer after layer, and how it is sampled.

Trajectories are sampled without gradient, one step at a time, because the next state depends on the
choice. Their log-probabilities are then computed in one teacher-forced pass of the same weights.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from quantization.policy import IndexArray
from search.environment import Environment

_LAYERS = 2


class Agent(nn.Module):
    """Two LSTM layers and a linear head.

    Args:
        features: length of a state, S.
        choices: K logits.
        hidden: hidden units of each LSTM layer, H.
        mask: (G, K) true where a choice is allowed; others have probability 0.
    """

    mask: Tensor

    def __init__(
        self, features: int, choices: int, hidden: int, mask: npt.NDArray[np.bool_]
    ) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, _LAYERS)
        self.head = nn.Linear(hidden, choices)
        penalty = np.where(mask, 0.0, -1e9).astype(np.float32)  # not -inf: 0 * -inf is NaN
        self.register_buffer("mask", torch.from_numpy(penalty)[:, None])
        nn.init.zeros_(self.head.bias)
        nn.init.normal_(self.head.weight, std=0.01)  # starts close to the uniform distribution

    def forward(self, states: Tensor) -> Tensor:
        """Return log-probabilities (G, B, K) under the masked distributions of states (G, B, S)."""
        hidden, _ = self.lstm(states)
        logits = cast(Tensor, self.head(hidden)) + self.mask
        return torch.log_softmax(logits, dim=2)


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
        """Return the logits (B, K), before the mask, of the next states (B, S)."""
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
        logits: (G, B, K) what it drew from, before the mask.
    """

    states: Tensor
    choices: Tensor
    logits: Tensor

    @property
    def decisions(self) -> IndexArray:
        """(B, G)."""
        return np.ascontiguousarray(self.choices.numpy().T.astype(np.uint8))


def sample(
    agent: Agent, environment: Environment, rollouts: int, generator: torch.Generator
) -> Trajectories:
    """Sample `rollouts` trajectories from the agent's masked distributions.

    A sample of a categorical distribution is the largest of the logits with Gumbel noise, so that
    the random numbers of all steps are drawn at once.
    """
    steps, choices = environment.mask.shape
    uniform = torch.rand(steps, rollouts, choices, generator=generator).clamp_(min=1e-20)
    noise = agent.mask - torch.log(-torch.log(uniform))
    taken = torch.empty(steps, rollouts, dtype=torch.int64)
    logits = torch.empty(steps, rollouts, choices)
    running = environment.begin(rollouts)
    states = torch.from_numpy(running.features)
    with torch.no_grad():
        stepper = Stepper(agent, rollouts)
        for step in range(steps):
            logits[step] = stepper.step(states[step])
            torch.argmax(logits[step] + noise[step], dim=1, out=taken[step])
            running.step(taken[step].numpy())
    return Trajectories(states, taken, logits)
