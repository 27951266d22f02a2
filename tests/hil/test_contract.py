"""The shipped contract, over the backend that measures."""

from collections.abc import Mapping
from typing import ClassVar

from costmodels.model import BackendContext, CostModel
from costmodels.registry import backend
from costmodels.testing import CostModelContract
from quantization.bits import DEFAULT_CHOICES, parse_choices

SECONDS = 8.0


class TestOrt(CostModelContract):
    """Measures for a few seconds: what it answers is rough, but must keep the contract."""

    choices = (*DEFAULT_CHOICES, *parse_choices("w4a4,fp16"))
    exemptions: ClassVar[Mapping[str, str]] = {
        "test_total_is_the_sum_over_the_cells_of_the_table": (
            "total times the whole network; the table is the best sum that explains such times"
        ),
    }

    @classmethod
    def model(cls) -> CostModel:
        return backend("ort", BackendContext(seconds=SECONDS))
