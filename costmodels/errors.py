"""What can go wrong with costs; a branch of the tree drawn in `quantization.errors`."""

from quantization.errors import QuantmeterError


class CostError(QuantmeterError):
    """Anything wrong with a cost."""


class TableError(CostError, ValueError):
    """A cost table that is inconsistent, of another network, or no table at all."""


class BackendError(CostError):
    """A cost backend that does not exist, cannot run here, or was asked in a wrong way."""


class UnsupportedChoiceError(CostError, ValueError):
    """A policy uses bits that the backend does not support on some layer."""


class StoreError(CostError):
    """The file of measurements is foreign, damaged, locked, or cannot be written."""
