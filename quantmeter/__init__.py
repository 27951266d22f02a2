"""The front door: three verbs and what goes with them, the command line and the report page.

    quantmeter.calibrate(...)      cost tables for a device
    quantmeter.calibrate_device(...)   this device, for networks that were never measured
    quantmeter.transfer_device(...)    another device's calibration, rescaled to this one
    quantmeter.search(...)         bits within budgets
    quantmeter.benchmark(...)      exported policies, timed
    quantmeter.cascade(...)        a policy for each input: the cheap one first, then a dear one
    quantmeter.drift(...)          whether a measured table still holds
    quantmeter.compare(...)        cost backends beside each other, against measured latency
    quantmeter.import_table(...)   cost tables that others published

Nothing heavy is imported before a verb is called.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantmeter.benchmarking import benchmark
    from quantmeter.calibrating import calibrate
    from quantmeter.cascading import cascade
    from quantmeter.comparing import compare
    from quantmeter.device_calibrating import calibrate_device, transfer_device
    from quantmeter.drifting import drift
    from quantmeter.importing import import_table
    from quantmeter.searching import search

__all__ = [
    "benchmark",
    "calibrate",
    "calibrate_device",
    "cascade",
    "compare",
    "drift",
    "import_table",
    "search",
    "transfer_device",
]

_HOME = {
    "benchmark": "quantmeter.benchmarking",
    "calibrate": "quantmeter.calibrating",
    "calibrate_device": "quantmeter.device_calibrating",
    "cascade": "quantmeter.cascading",
    "compare": "quantmeter.comparing",
    "drift": "quantmeter.drifting",
    "import_table": "quantmeter.importing",
    "search": "quantmeter.searching",
    "transfer_device": "quantmeter.device_calibrating",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
