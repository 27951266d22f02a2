"""The shipped contract, over every accelerator that is shipped."""

from typing import ClassVar

from costmodels.accelerator import Accelerator
from costmodels.accelerator_files import find, shipped
from costmodels.model import CostModel
from costmodels.registry import backend
from costmodels.testing import CostModelContract
from quantization.bits import parse_choices

EVERY_WIDTH = parse_choices("w2a2,w3a3,w4a4,w4a8,w5a8,w8a8,w16a16,w8a32,fp16,w32a32")


class _Contract(CostModelContract):
    name: ClassVar[str]
    choices = EVERY_WIDTH

    @classmethod
    def model(cls) -> CostModel:
        return backend(f"analytical:{cls.name}")


class TestBitFusion(_Contract):
    name = "bit-fusion"


class TestBitSerialCloud(_Contract):
    name = "bit-serial-cloud"


class TestBitSerialEdge(_Contract):
    name = "bit-serial-edge"


class TestFpga(_Contract):
    name = "fpga"


class TestGpuT4(_Contract):
    name = "gpu-t4"


class TestServerCpu(_Contract):
    name = "server-cpu"


class TestSystolicInt8(_Contract):
    name = "systolic-int8"


def test_every_accelerator_has_a_contract_test() -> None:
    tested = {contract.name for contract in _Contract.__subclasses__()}
    assert tested == {name for name in shipped() if isinstance(find(name), Accelerator)}
