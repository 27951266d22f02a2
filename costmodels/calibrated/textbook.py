"""The field's closed formula, fitted to a device: a rival of its model, and a preset.

    seconds = alpha * b/8 * params + beta * macs * f(b)

with f(8) = 1, summed over layers; glue and conversions have no term.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from costmodels.calibrated.items import is_layer
from costmodels.calibrated.samples import Sample
from costmodels.cells import FloatArray
from costmodels.presets import LatencyCoefficients, Preset
from costmodels.quantity import CoefficientUnit, Quantity, Source, SourceKind, WidthCurve

_FLOAT_BYTES, _INTEGER_BYTES = 4.0, 1.0
_LEAST = 1e-14
"""Where a fit wants none of a term: the smallest coefficient that a preset takes."""


@dataclass(frozen=True)
class Textbook:
    """Coefficients of the formula.

    Args:
        alpha: seconds per byte of weights.
        beta: seconds per multiply-accumulate at 8 bits.
        f_float: time of a float32 multiply-accumulate over one at 8 bits.
    """

    alpha: float
    beta: float
    f_float: float

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "Textbook":
        """Fit the formula to whole runs by least relative squares; no coefficient is negative."""
        from scipy.optimize import nnls

        terms = np.array([_terms(sample) for sample in samples])
        totals = np.array([sample.total_s for sample in samples])
        scale = terms.mean(axis=0)  # columns of one order, or the smallest gets lost
        found, _ = nnls(terms / scale / totals[:, None], np.ones(len(totals)))
        alpha, integer, floats = np.maximum(found / scale, _LEAST)
        return cls(float(alpha), float(integer), float(floats / integer))

    def seconds(self, samples: Sequence[Sample]) -> FloatArray:
        """Return what the formula says of each sample, (P,)."""
        terms = np.array([_terms(sample) for sample in samples])
        return np.asarray(terms @ np.array([self.alpha, self.beta, self.beta * self.f_float]))

    def preset(self, name: str, device: str) -> Preset:
        """Return the coefficients as a preset of the analytical backend.

        Args:
            name: what ``analytical:NAME`` calls it.
            device: who was measured.
        """
        source = Source(device, "fitted to random networks", SourceKind.MEASURED)
        ratio = CoefficientUnit.RATIO
        return Preset(
            name,
            f"the closed formula, fitted to {device}",
            None,
            LatencyCoefficients(
                Quantity(self.alpha, CoefficientUnit.SECONDS_PER_BYTE, source),
                Quantity(self.beta, CoefficientUnit.SECONDS_PER_MAC, source),
                WidthCurve(
                    {8: Quantity(1.0, ratio, source)}, Quantity(self.f_float, ratio, source)
                ),
                (
                    "fitted to 8 bits and float; below 8 bits only the bytes of weights change, "
                    "though the runtime executes 8-bit kernels",
                ),
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Textbook":
        """Read what `to_dict` wrote."""
        return cls(float(values["alpha"]), float(values["beta"]), float(values["f_float"]))


def _terms(sample: Sample) -> tuple[float, float, float]:
    """Bytes of weights, multiply-accumulates at 8 bits, and in float."""
    layer = is_layer(sample.items.kind)
    width = np.where(sample.integer, _INTEGER_BYTES, _FLOAT_BYTES)
    macs, weights = sample.items.column("macs"), sample.items.column("weights")
    return (
        float((weights * width)[layer].sum()),
        float(macs[layer & sample.integer].sum()),
        float(macs[layer & ~sample.integer].sum()),
    )
