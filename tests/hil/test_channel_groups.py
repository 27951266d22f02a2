"""Channel groups at the backend that measures: they run by the kernel of every integer width."""

import pytest

from costmodels.errors import UnsupportedChoiceError
from costmodels.model import BackendContext
from costmodels.units import Metric
from hil.design import Pattern
from hil.live import OrtLive
from quantization.bits import BitWidths
from quantization.channel_groups import ChannelGroups
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch
from tests.networks import small_mobilenet

NARROW = range(8)


def groups(*widths: int, activations: int = 8) -> ChannelGroups:
    return ChannelGroups(activations, {widths[0]: NARROW, widths[1]: range(8, 16)})


def test_groups_are_timed_as_the_integers_that_they_execute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed: list[list[bool]] = []

    def remember(self: OrtLive, network: Network, pattern: Pattern) -> float:
        del self, network
        timed.append(pattern.tolist())
        return 1.0

    monkeypatch.setattr(OrtLive, "_time", remember)
    network = small_mobilenet()
    policies = [Policy({"stem": bits}) for bits in (groups(2, 4), BitWidths(8, 8))]
    batch = PolicyBatch.of(network, policies)
    OrtLive(BackendContext()).total(network, batch, Metric.LATENCY)
    assert timed[0] == timed[1] == [name == "stem" for name in network.layer_names]


@pytest.mark.parametrize(
    ("bits", "reason"),
    [
        (groups(2, 16), "no 16-bit kernels"),
        (groups(2, 4, activations=4), "no kernels for activations below 8 bits"),
    ],
)
def test_groups_that_cannot_be_executed_are_told_before_anything_is_measured(
    bits: ChannelGroups, reason: str
) -> None:
    network = small_mobilenet()
    batch = PolicyBatch.of(network, [Policy({"stem": bits})])
    with pytest.raises(UnsupportedChoiceError, match=r"layer 'stem' at w2a.*" + reason) as caught:
        OrtLive(BackendContext()).total(network, batch, Metric.LATENCY)
    assert "\n" not in str(caught.value)
