"""A calibration to be killed.

Each measurement that was taken and committed is a line of the log: its key.
"""

from multiprocessing.connection import Connection
from pathlib import Path

from costmodels.model import BackendContext
from costmodels.sketch import example_network
from costmodels.units import Metric
from hil.live import OrtLive
from hil.records import Record, Subject
from hil.store import Store
from quantization.bits import FLOAT32, BitWidths

CHOICES = (BitWidths(8, 8), FLOAT32)


class Logged(Store):
    """A store that logs what is put into it."""

    log: Path

    def put(self, subject: Subject, record: Record, /) -> Record:
        """Commit, then log the key in one write, which a kill cannot split."""
        kept = super().put(subject, record)
        with self.log.open("ab", buffering=0) as file:
            file.write(f"{subject.key}\n".encode())
        return kept


def calibrate(store: Path, log: Path, seconds: float, told: Connection) -> None:
    """Calibrate the example network, resuming from the store; tell how much was measured."""
    live = OrtLive(BackendContext(seconds=seconds))
    kept = Logged(store, live.device)
    kept.log = log
    live.keep_in(kept)
    table = live.table(example_network(), CHOICES, Metric.LATENCY)
    told.send(len(table.measurements))
