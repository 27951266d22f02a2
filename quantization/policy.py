"""Policies: which layer gets which bits; one at a time, or thousands as an index array."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantization.bits import FLOAT32, BitWidths
from quantization.channel_groups import IN_FILE, ChannelGroups, parse_groups
from quantization.deployment import check_options, misfit_of
from quantization.errors import BitWidthError, PolicyError
from quantization.network import Network

VERSION, GROUPS_VERSION = 1, 2
"""Of a policy file; the second one where a layer has channel groups."""
_KEYS = frozenset({"version", "layers", "options"})

_MOST_CHOICES = 256
"""What a byte tells apart."""

IndexArray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Policy:
    """The bits of each layer, and what else decides execution.

    A layer that is not named stays float32.

    Args:
        layers: layer name to bit-widths, or to `ChannelGroups`.
        options: execution options by name, such as ``ranges``; JSON values.
    """

    layers: Mapping[str, BitWidths]
    options: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def uniform(cls, network: Network, bits: BitWidths) -> "Policy":
        """Return the policy that gives every layer of `network` the same bits."""
        return cls(dict.fromkeys(network.layer_names, bits))

    def __getitem__(self, layer: str) -> BitWidths:
        return self.layers.get(layer, FLOAT32)

    def check(self, network: Network) -> None:
        """Raise unless the policy is one of `network`: see `check_layers`, and ties are respected.

        Raises:
            PolicyError: as `check_layers`, or for unequal bits in a tie.
        """
        self.check_layers(network)
        for tie in network.ties:
            if len({self[name] for name in tie}) > 1:
                given = ", ".join(f"{name}={self[name]}" for name in tie)
                raise PolicyError(f"tied layers must get equal bits: {given}")

    def check_layers(self, network: Network) -> None:
        """Raise unless layers and options are known, and channel groups fit.

        Raises:
            PolicyError: for an unknown layer or option (names close matches), or channel groups of
                a layer that has other channels or none.
        """
        check_options(self.options)
        for name, bits in self.layers.items():
            if misfit := misfit_of(network.layer(name), bits):
                raise PolicyError(f"layer {name!r}: {misfit}")

    def to_json(self) -> str:
        """Return the policy as the text of a policy file."""
        grouped = any(isinstance(bits, ChannelGroups) for bits in self.layers.values())
        content = {
            "version": GROUPS_VERSION if grouped else VERSION,
            "layers": {
                name: bits.texts if isinstance(bits, ChannelGroups) else str(bits)
                for name, bits in self.layers.items()
            },
            "options": dict(self.options),
        }
        return json.dumps(content, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Policy":
        """Read the text of a policy file.

        Raises:
            PolicyError: if `text` is no policy, of a newer version, names a layer twice, gives a
                layer bits that are none, or channel groups in a file of the version without them.
        """
        try:
            content = json.loads(text, object_pairs_hook=_without_repeats)
        except json.JSONDecodeError as error:
            raise PolicyError(f"a policy file is JSON; this is not: {error}") from None
        if not isinstance(content, dict) or "layers" not in content:
            raise PolicyError('a policy file holds {"version": 1, "layers": {"NAME": "w8a8"}}')
        version = content.get("version")
        if isinstance(version, bool) or version not in (VERSION, GROUPS_VERSION):  # true equals 1
            raise PolicyError(
                f"policy version {version!r} is not known; expected {VERSION}, or "
                f"{GROUPS_VERSION} with channel groups"
            )
        if unknown := sorted(set(content) - _KEYS):
            raise PolicyError(f"unknown keys in the policy: {', '.join(unknown)}")
        layers, options = content["layers"], content.get("options", {})
        if not isinstance(layers, dict) or not isinstance(options, dict):
            raise PolicyError("`layers` and `options` of a policy are JSON objects")
        grouped = [name for name, bits in layers.items() if isinstance(bits, dict)]
        if grouped and version == VERSION:
            raise PolicyError(
                f"layer {grouped[0]!r} has channel groups, which version {VERSION} does not know: "
                f'write "version": {GROUPS_VERSION}'
            )
        return cls({name: _bits(name, bits) for name, bits in layers.items()}, options)

    @classmethod
    def read(cls, path: str | Path) -> "Policy":
        """Read a policy file.

        Raises:
            PolicyError: if the file is missing or is no policy; names the file.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text file"
            raise PolicyError(f"{path}: {reason}") from None
        except PolicyError as error:
            raise PolicyError(f"{path}: {error}") from None


def _bits(layer: str, written: object) -> BitWidths:
    """Read what stands beside a layer's name in a policy file."""
    try:
        return parse_groups(written) if isinstance(written, dict) else BitWidths.parse(str(written))
    except BitWidthError as error:
        meant = f"; {IN_FILE}" if isinstance(written, str) and "[" in written else ""
        raise PolicyError(f"layer {layer!r}: {error}{meant}") from None


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise PolicyError(f"given twice: {', '.join(repeated)}")
    return content


@dataclass(frozen=True, eq=False)
class PolicyBatch:
    """Many policies of one network as an index array; what the fast paths take.

    Args:
        layers: names of the layers, one per column.
        choices: the bit-widths that the indices point into.
        index: (policies, layers) of uint8, each below ``len(choices)``.

    Raises:
        PolicyError: if the shapes or the indices do not fit.
    """

    layers: tuple[str, ...]
    choices: tuple[BitWidths, ...]
    index: IndexArray

    def __post_init__(self) -> None:
        index = np.asarray(self.index)
        if index.ndim != 2 or index.shape[1] != len(self.layers):
            raise PolicyError(f"index has shape {index.shape}, expected (P, {len(self.layers)})")
        if index.dtype.kind not in "iu" and index.size:
            raise PolicyError(f"indices are whole numbers, not {index.dtype}")
        if index.size and (index.min() < 0 or index.max() >= len(self.choices)):
            raise PolicyError(f"an index is outside 0..{len(self.choices) - 1}")
        object.__setattr__(self, "index", np.ascontiguousarray(index, np.uint8))

    def __len__(self) -> int:
        return int(self.index.shape[0])

    def __getitem__(self, position: int) -> Policy:
        row = self.index[position]
        return Policy({n: self.choices[int(i)] for n, i in zip(self.layers, row, strict=True)})

    @classmethod
    def of(
        cls,
        network: Network,
        policies: Iterable[Policy],
        choices: Sequence[BitWidths] | None = None,
    ) -> "PolicyBatch":
        """Collect `policies` of `network`; `choices` default to those that occur.

        Raises:
            PolicyError: if a policy does not fit the network or uses other bits than `choices`, or
                there are more choices than a byte tells apart.
        """
        listed = list(policies)
        for policy in listed:
            policy.check(network)
        if choices is None:
            used = {policy[name] for policy in listed for name in network.layer_names}
            choices = sorted(used or {FLOAT32})
        if len(choices) > _MOST_CHOICES:
            raise PolicyError(f"a batch holds {_MOST_CHOICES} choices at most, not {len(choices)}")
        position = {bits: i for i, bits in enumerate(choices)}
        try:
            rows = [[position[policy[name]] for name in network.layer_names] for policy in listed]
        except KeyError as error:
            allowed = ", ".join(map(str, choices))
            raise PolicyError(f"{error.args[0]} is not among the choices {allowed}") from None
        index = np.array(rows, np.uint8).reshape(len(listed), len(network.layers))
        return cls(network.layer_names, tuple(choices), index)
