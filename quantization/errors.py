"""The errors of Quantmeter, as a tree.

    QuantmeterError              anything that a user can cause and mend; the command line exits 2
    ├── ModelError               the ONNX file is missing, truncated, foreign or not supported
    ├── BitWidthError            a text or a pair of numbers that is no bit-width
    ├── PolicyError              a policy that does not fit its network, or is no policy
    ├── DataError                images, labels or ranges that do not fit the network
    ├── CostError                costmodels.errors: tables, backends, unsupported choices
    │   ├── TableError
    │   ├── BackendError
    │   ├── EnergyError          hil.meters: it cannot be measured, or the measurement tells nothing
    │   ├── StoreError           hil.store: the file of measurements cannot be used
    │   └── UnsupportedChoiceError
    ├── BudgetError              a budget that cannot be read, or cannot be met
    ├── DisagreementError        search.exact: two computations of one cost differ; to be reported
    ├── AuditError               hil.audit: the file or its execution is not what was asked for
    └── WorkerError              hil.worker: a job failed, hung or was killed

Each message is one line that names what is wrong and what to do next.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class QuantmeterError(Exception):
    """Root of every error that a user can cause and mend."""


class ModelError(QuantmeterError):
    """The ONNX model cannot be read or is not supported."""


class BitWidthError(QuantmeterError, ValueError):
    """The text or the numbers are no bit-width."""


class PolicyError(QuantmeterError, ValueError):
    """The policy does not fit its network, or the file is no policy."""


class DataError(QuantmeterError, ValueError):
    """The images, labels or ranges do not fit the network."""


class BudgetError(QuantmeterError, ValueError):
    """The budget cannot be read, or cannot be met."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'a', 'b'?)"`` for the known names closest to `name`, or ``""``."""
    close = get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" (did you mean {', '.join(map(repr, close))}?)" if close else ""
