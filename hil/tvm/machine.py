"""The processor that kernels are compiled for, and which of its instructions they use."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import tvm
from tvm.target import codegen

from costmodels.errors import BackendError
from hil.tvm.arithmetic import InstructionSet, choose_instructions
from quantization.errors import did_you_mean

_SHUFFLES = "avx512vbmi"
_KNOWN = ("mcpu", "mtriple")


@dataclass(frozen=True)
class Machine:
    """A processor as LLVM knows it.

    Args:
        mcpu: its name.
        mtriple: architecture and system; empty for that of this machine.

    Raises:
        BackendError: if LLVM has no such processor.
    """

    mcpu: str
    mtriple: str = ""

    def __post_init__(self) -> None:
        if not codegen.llvm_is_valid_cpu(self.mcpu, self.triple):
            named = tvm.target.Target({"kind": "llvm", "mtriple": self.triple})
            known = [str(each) for each in codegen.llvm_get_cpu_archlist(named)]
            raise BackendError(
                f"LLVM has no processor {self.mcpu!r} for {self.triple}"
                f"{did_you_mean(self.mcpu, known)}; mtriple=TRIPLE names another kind"
            )

    @property
    def triple(self) -> str:
        """Architecture and system."""
        return self.mtriple or str(codegen.llvm_get_system_triple())

    @property
    def target(self) -> Any:
        """The ``tvm.target.Target`` of one core."""
        described: dict[str, Any] = {"kind": "llvm", "mcpu": self.mcpu, "num-cores": 1}
        return tvm.target.Target(described | ({"mtriple": self.mtriple} if self.mtriple else {}))

    @cached_property
    def features(self) -> frozenset[str]:
        """What the processor offers, as LLVM names it."""
        return frozenset(str(each) for each in codegen.llvm_get_cpu_features(self.target))

    @property
    def instructions(self) -> InstructionSet:
        """What kernels use of that."""
        return choose_instructions(self.features)

    @property
    def shuffles(self) -> bool:
        """Whether bytes are looked up by shuffles."""
        return _SHUFFLES in self.features


def this_machine() -> Machine:
    """Return the processor that this process runs on."""
    return Machine(str(codegen.llvm_get_system_cpu()))


def parse_machine(text: str) -> Machine:
    """Read what stands behind ``tvm:``, such as ``mcpu=cortex-a72,mtriple=aarch64-linux-gnu``.

    Raises:
        BackendError: if it is nothing like it.
    """
    given: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or key not in _KNOWN or not value:
            raise BackendError(
                f"{part!r} describes no processor{did_you_mean(key, _KNOWN)}; write for example "
                "tvm:mcpu=cortex-a72,mtriple=aarch64-linux-gnu"
            )
        given[key] = value
    if "mcpu" not in given:
        raise BackendError("a processor needs its name: add mcpu=NAME")
    return Machine(**given)
