"""Agents outlive their search: saved beside a run, and the start of searches on other networks.

One saved agent is continued with its own weights. Several are combined by what they *do*, not by
their weights: units of networks that were trained apart do not correspond, so averages of their
weights mean nothing. The new agent takes the weights of the first, and learns to take each choice
with the mean of their probabilities, on trajectories that they sample on the new network; that
costs no evaluation. Before, each is made so even that its likeliest choices have some mean
probability at most (`ReinforceConfig.imitation_probability`): an agent that has settled on one
network would try nothing on another.
"""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from quantization.bits import BitWidths
from quantization.errors import PolicyError
from search.agent import Agent, AnyEnvironment, Trajectories, sample
from search.features import Float32Array
from search.reinforce_config import ReinforceConfig

FORMAT = 1
_EVENER = 1.25
_MOST_DIVISIONS = 64
_LEARNING_RATE = 3e-3
_META = "meta"


@dataclass(frozen=True, eq=False)
class SavedAgent:
    """The weights of a trained agent, and what it chose among.

    Args:
        weights: of `Agent`, by their names.
        choices: bit-widths in the order of its actions.
    """

    weights: Mapping[str, Float32Array]
    choices: tuple[str, ...]

    @classmethod
    def of(cls, agent: Agent, choices: Sequence[BitWidths]) -> "SavedAgent":
        """Copy the weights of `agent`."""
        weights = {name: value.detach().numpy().copy() for name, value in _named(agent)}
        return cls(weights, tuple(map(str, choices)))

    @classmethod
    def read(cls, path: Path) -> "SavedAgent":
        """Read what `write` wrote; nothing in the file is executed.

        Raises:
            PolicyError: if it is no such file, or of another version.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                meta = json.loads(str(file[_META]))
                weights = {n: file[n].astype(np.float32) for n in file.files if n != _META}
                version, choices = meta["format"], tuple(meta["choices"])
        except FileNotFoundError:
            raise PolicyError(f"there is no saved agent {path}; name a run of reinforce") from None
        except (OSError, EOFError, BadZipFile, ValueError, KeyError, TypeError, IndexError):
            raise PolicyError(f"{path} is no saved agent; name a run of reinforce") from None
        if version != FORMAT:
            raise PolicyError(f"{path} has format {version}, not {FORMAT}; train the agent anew")
        return cls(weights, choices)

    def write(self, path: Path) -> None:
        """Write arrays by name (NumPy's npz) with a JSON text beside them."""
        meta = json.dumps({"format": FORMAT, "choices": self.choices})
        with path.open("wb") as file:
            np.savez(file, **{_META: np.array(meta)}, **dict(self.weights))  # type: ignore[arg-type]

    def agent(self, environment: AnyEnvironment) -> Agent:
        """Return an agent with these weights for a network with the same choices.

        Raises:
            PolicyError: if its states or choices are others.
        """
        wanted = tuple(map(str, environment.problem.choices))
        if self.choices != wanted:
            raise PolicyError(
                f"the saved agent chooses among {','.join(self.choices)}, not {','.join(wanted)}; "
                f"search with --choices {','.join(self.choices)}"
            )
        try:
            hidden = self.weights["lstm.weight_hh_l0"].shape[1]
            agent = Agent(environment.feature_count, environment.mask.shape[1], hidden)
            agent.load_state_dict({n: torch.from_numpy(w) for n, w in self.weights.items()})
        except (KeyError, IndexError, RuntimeError):
            raise PolicyError(
                "the saved agent has other states: give --agent weights_first=true or false as its "
                "run did, or train it anew"
            ) from None
        return agent


def inherit(
    saved: Sequence[SavedAgent],
    environment: AnyEnvironment,
    c: ReinforceConfig,
    generator: torch.Generator,
) -> Agent:
    """Return the agent that continues one or several saved ones; see the module.

    Args:
        saved: at least one.
        environment: of the new network.
        c: how even the agents are made, and how many steps of imitation are taken.
        generator: of the sampled trajectories.

    Raises:
        PolicyError: if the states or choices of a saved agent are others.
    """
    agents = [one.agent(environment) for one in saved]
    batches = [_even(agent, environment, c, generator) for agent in agents]
    if len(agents) == 1:
        return agents[0]
    student = deepcopy(agents[0])
    with torch.no_grad():
        wanted = [
            torch.stack([a(b.states, b.penalty).exp() for a in agents]).mean(0) for b in batches
        ]
    optimizer = torch.optim.Adam(student.parameters(), lr=_LEARNING_RATE)
    for step in range(c.imitation_steps):
        batch, target = batches[step % len(batches)], wanted[step % len(batches)]
        loss: Tensor = -(target * student(batch.states, batch.penalty)).sum(2).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return student


def _even(
    agent: Agent, environment: AnyEnvironment, c: ReinforceConfig, generator: torch.Generator
) -> Trajectories:
    """Divide the agent's logits until its likeliest choices are not too likely.

    Steps with one choice are left out: nothing makes that choice less likely.
    """
    batch = sample(agent, environment, c.rollouts, generator)
    # of each rollout: under a mask earlier choices may leave but one
    is_open = ((batch.penalty == 0).sum(2) > 1).expand(batch.choices.shape)
    if not is_open.any():
        return batch
    with torch.no_grad():
        for _ in range(_MOST_DIVISIONS):
            log_p: Tensor = agent(batch.states, batch.penalty)
            likeliest = log_p.max(2).values.exp()[is_open]
            if float(likeliest.mean()) <= c.imitation_probability:
                break
            for weight in agent.head.parameters():
                weight.div_(_EVENER)
    return batch


def _named(agent: Agent) -> Sequence[tuple[str, Tensor]]:
    return list(agent.state_dict().items())
