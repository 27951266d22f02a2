"""Every knob of the agent, documented."""

from dataclasses import dataclass
from typing import Literal

from search.archive import KEPT

Constraint = Literal["repair", "mask", "reject", "soft"]


@dataclass(frozen=True)
class ReinforceConfig:
    """Knobs of the agent. The defaults start cold; `warm` is for a given start policy."""

    episodes: int | None = None
    """Trajectories after which the search stops; None lets evaluations and `patience` end it."""

    patience: int = 50
    """Updates in a row without any new accepted policy after which the search stops."""

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

    new_share: float = 0.5
    """Share of an update's policies that shall be new; below it the sampling temperature rises.

    A policy that was scored before costs no evaluation and teaches nothing. Where an agent settles
    early, this turns what it learned into the centre of a search around it."""

    temperature_step: float = 1.15
    """Factor by which the temperature rises or falls after an update; 1 leaves it at 1."""

    temperature_limit: float = 8.0
    """Highest sampling temperature; the lowest is 1."""

    elites: int = 5
    """Best policies so far that every update also imitates (`search.elites`); 0 for none."""

    elite_weight: float = 3.0
    """Weight of that imitation, nats a step, against advantages of one deviation."""

    gradient_limit: float = 1.0
    """Largest norm of the gradient."""

    constraint: Constraint = "repair"
    """What happens to trajectories beyond a budget.

    ``repair`` changes single decisions at the best rate until they fit, and rejects the rest.
    ``mask`` never takes a choice after which, by a bound on what the decisions to come cost at
    least, nothing fits; what exceeds a budget all the same is repaired. ``reject`` rejects.
    ``soft`` scores them with a penalty (`search.objective.Penalty`); only what fits is returned."""

    weights_first: bool = False
    """Whether a layer is decided in two steps, the width of its weights and then that of its
    activations, instead of both together."""

    soft_target: float = 0.3
    """Share of policies that may be beyond a soft budget; the weight rises where there are more."""

    soft_rate: float = 0.5
    """How fast the weight of a soft budget adapts, see `search.objective.Penalty`."""

    imitation_probability: float = 0.8
    """Mean probability of the start policy's choices in what is imitated (`search.softened`), and
    of the likeliest choices of inherited agents, which are made so even (`search.transfer`)."""

    imitation_steps: int = 300
    """Steps of imitation at most, of a start policy or of several inherited agents."""

    archive: int = KEPT
    """Best distinct policies that are kept."""

    @classmethod
    def warm(cls, episodes: int | None = None) -> "ReinforceConfig":
        """Return what works from a good start policy: no entropy bonus."""
        return cls(episodes=episodes, entropy=0.0)
