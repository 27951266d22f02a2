"""The energy of exported files: measured where there is a counter, else why not; and modelled."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from costmodels.provenance import said_of
from costmodels.units import Metric
from hil.energy import NotMeasured
from hil.energy_bench import Energies, EnergyJob
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch
from quantmeter.costs import Costs

TakeEnergy = Callable[[EnergyJob], Energies | NotMeasured]
"""What measures: `hil.energy_bench.take_energy`."""


@dataclass(frozen=True)
class ModelledEnergy:
    """What a backend says of the energy of policies.

    Args:
        energy_j: per run, by policy.
        provenance: how the numbers came to be, and who says so.
    """

    energy_j: Mapping[str, float]
    provenance: str


@dataclass(frozen=True, eq=False)
class EnergyReport:
    """Energy per run of files that were timed.

    Args:
        measured: by file what was measured, or why it tells nothing; or why nothing is measurable.
        modelled: None unless a backend was named for energy.
    """

    measured: Energies | NotMeasured
    modelled: ModelledEnergy | None

    @property
    def reason(self) -> str | None:
        """Why nothing is measurable here; None if something is."""
        return self.measured.reason if isinstance(self.measured, NotMeasured) else None

    def to_dict(self) -> dict[str, Any]:
        """Return what holds of all files as JSON values."""
        reason = self.reason
        return {
            "measured": reason is None,
            "reason": None if reason is None else f"not measurable here, because {reason}",
            "modelled": None if self.modelled is None else self.modelled.provenance,
        }

    def of(self, name: str) -> dict[str, Any]:
        """Return what holds of one file as JSON values."""
        measured, modelled = self.measured, self.modelled
        found = measured if isinstance(measured, NotMeasured) else measured[name]
        model = None
        if modelled is not None:
            model = {"energy_j": modelled.energy_j[name], "provenance": modelled.provenance}
        return {"measured": found.to_dict(), "modelled": model}


def modelled_energy(
    network: Network, costs: Costs | None, asked: Mapping[str, Policy]
) -> ModelledEnergy | None:
    """Price the energy of policies; None unless a backend was named for it.

    Raises:
        UnsupportedChoiceError: if a policy uses bits that the backend does not price.
    """
    if costs is None or Metric.ENERGY not in costs.models:
        return None
    policies = list(asked.values())
    totals = costs.total(network, policies, Metric.ENERGY)
    choices = PolicyBatch.of(network, policies).choices
    table = costs.model(Metric.ENERGY).table(network, choices, Metric.ENERGY)
    return ModelledEnergy(dict(zip(asked, totals.tolist(), strict=True)), said_of(table))
