"""What calibration knows beforehand: profiles of the float and of an integer network.

The float one is needed, since its shares are what a table adds up. The other is a prior only: where
the runtime crashes on it, timings have to do.
"""

from collections.abc import Callable
from dataclasses import dataclass

from costmodels.errors import BackendError
from hil.design import Pattern
from hil.effects import Effects
from hil.profile import Profile
from hil.records import Failure, FailureKind
from hil.regression import Prior
from hil.worker import WorkerError
from quantization.errors import ModelError
from quantization.network import Network


@dataclass(frozen=True, eq=False)
class Profiles:
    """Profiles of the float network and of a policy with as many integer layers as could be timed.

    Args:
        floats: of the float network.
        integer: of the other; None if profiling it failed.
        pattern: (L,) which layers ran as integers in the latter.
        failure: why there is none.
    """

    floats: Profile
    integer: Profile | None
    pattern: Pattern
    failure: Failure | None = None

    def prior(self, effects: Effects, ratio: float) -> Prior:
        """Return what to expect of `effects`.

        Without a profile of integers that is no effect at all, give or take the float cost.

        Args:
            effects: the columns of the model.
            ratio: time of the policy of `pattern` over that of the float network.
        """
        if self.integer is None:
            return effects.prior(self.floats.shares, self.floats.shares, 1.0)
        return effects.prior(self.floats.shares, self.integer.shares, ratio)

    def kernels(self, network: Network, free: Pattern) -> tuple[dict[str, str], dict[str, str]]:
        """Return executed kernels as integers and as floats, by layer; empty where not known.

        Args:
            network: the network.
            free: (L,) layers that can run as integers.
        """
        integer = dict.fromkeys(network.layer_names, "")
        if self.integer is not None:
            ran = self.pattern | ~free
            names = [name for name, known in zip(network.layer_names, ran, strict=True) if known]
            integer |= {name: self.integer.kernels[name] for name in names}
        return integer, dict(self.floats.kernels)


def take_profiles(inspect: Callable[[Pattern], Profile], pattern: Pattern) -> Profiles:
    """Profile the float network and the policy of `pattern`.

    Args:
        inspect: profiles the policy of a pattern.
        pattern: (L,) layers that run as integers.

    Raises:
        BackendError: if the float network cannot be profiled.
        ModelError: if the runtime refuses the float network.
    """
    try:
        floats = inspect(pattern & False)
    except WorkerError as error:
        raise BackendError(
            f"the float network could not be profiled ({error.failure.kind.value}: "
            f"{error.failure.text}), which tells what each layer takes of its time; run the same "
            "command again: timings that a store keeps are not taken again"
        ) from error
    try:
        return Profiles(floats, inspect(pattern), pattern)
    except WorkerError as error:
        return Profiles(floats, None, pattern, error.failure)
    except ModelError as error:
        return Profiles(floats, None, pattern, Failure(FailureKind.EXCEPTION, str(error)))
