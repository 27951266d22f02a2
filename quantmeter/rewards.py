"""What a search maximises, by name. Imports nothing heavy: every command line reads it."""

from quantization.errors import QuantmeterError

REWARDS = ("accuracy", "kl", "proxy")
"""The first one is the default."""


def check_reward(reward: str) -> None:
    """Raise unless `reward` is one of `REWARDS`.

    Raises:
        QuantmeterError: if it is not.
    """
    if reward not in REWARDS:
        raise QuantmeterError(f"no reward {reward!r}; choose {' or '.join(REWARDS)}")
