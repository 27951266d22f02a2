"""The shipped contract, over kernels that TVM compiles."""

from collections.abc import Mapping
from typing import ClassVar

import pytest

pytest.importorskip("tvm", reason="Apache TVM is not installed: pip install 'quantmeter[tvm]'")

from costmodels.model import BackendContext, CostModel
from costmodels.registry import backend
from costmodels.testing import CostModelContract
from quantization.bits import parse_choices


class TestTvm(CostModelContract):
    """Times every kernel of a small network."""

    choices = parse_choices("w4a8,w8a8,w32a32,w2a2,w8a16,w4a32,fp16")
    policies = 5
    exemptions: ClassVar[Mapping[str, str]] = {
        "test_total_is_the_sum_over_the_cells_of_the_table": (
            "total times the whole network; the table is the sum of kernels that were timed alone"
        ),
    }

    @classmethod
    def model(cls) -> CostModel:
        return backend("tvm", BackendContext())
