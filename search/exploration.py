"""How much the agent still tries that is new, and how it is kept trying."""

from dataclasses import dataclass, field

from quantization.policy import IndexArray
from search.reinforce_config import ReinforceConfig
from search.repair import Repaired


@dataclass
class Exploration:
    """Counts what is new among the policies of each update, and sets the sampling temperature.

    An update in which fewer policies are new than `ReinforceConfig.new_share` raises the
    temperature by `temperature_step`; any other lowers it, down to 1. A policy counts as it is
    after repair: many trajectories may be repaired into one.

    Args:
        config: the knobs.
        temperature: of the next update.
    """

    config: ReinforceConfig
    temperature: float = 1.0
    idle: int = 0
    """Updates in a row, up to the last, without a new accepted policy."""
    _met: set[bytes] = field(default_factory=set)
    _sampled: set[bytes] = field(default_factory=set)
    _episodes: int = 0
    _updates: int = 0
    _new: int = 0
    _repaired: int = 0
    _rejected: int = 0
    _collapsed: int = 0
    _highest: float = 1.0

    @property
    def ended(self) -> bool:
        """Whether the episodes are over, or nothing new came for too long."""
        c = self.config
        return self.idle >= c.patience or (c.episodes is not None and self._episodes >= c.episodes)

    @property
    def updates(self) -> int:
        """Updates so far."""
        return self._updates

    def know(self, index: IndexArray) -> None:
        """Count policies, (P, L), as met."""
        self._met.update(row.tobytes() for row in index)

    def take_in(self, decisions: IndexArray, outcome: Repaired) -> None:
        """Count one update, and set the temperature of the next.

        Args:
            decisions: (B, G) as sampled.
            outcome: what became of them.
        """
        fresh = {row.tobytes() for row in outcome.index} - self._met
        accepted = {row.tobytes() for row in outcome.index[~outcome.rejected]}
        self._met |= fresh
        new = len(fresh)
        self._sampled.update(row.tobytes() for row in decisions)
        self._episodes += len(decisions)
        self._updates += 1
        self._new += new
        self._repaired += int(outcome.repaired.sum())
        self._rejected += int(outcome.rejected.sum())
        self.idle = 0 if fresh & accepted else self.idle + 1
        c, step = self.config, self.config.temperature_step
        low = new < c.new_share * len(decisions)
        self._collapsed += low
        warmer = self.temperature * step if low else self.temperature / step
        self.temperature = min(max(warmer, 1.0), c.temperature_limit)
        self._highest = max(self._highest, self.temperature)

    def figures(self) -> dict[str, float | str]:
        """Return what the log tells."""
        episodes, updates = max(1, self._episodes), max(1, self._updates)
        return {
            "episodes": float(self._episodes),
            "updates": float(self._updates),
            "distinct_sampled": float(len(self._sampled)),
            "new_share": self._new / episodes,
            "repaired_share": self._repaired / episodes,
            "rejected_share": self._rejected / episodes,
            "collapsed_share": self._collapsed / updates,
            "temperature": self.temperature,
            "highest_temperature": self._highest,
            "gave_up": float(self.idle >= self.config.patience),
        }
