"""Published cost tables: a file of somebody else's costs becomes the table of a network."""

from collections.abc import Sequence
from pathlib import Path

from costmodels.published.binding import read_table
from costmodels.published.content import Stated
from costmodels.table import CostTable
from quantization.network import Network
from quantization.reading import read_network


def import_table(
    form: str,
    file: str | Path,
    model: str | Path | Network,
    *,
    stated: Stated | None = None,
    without: Sequence[str] = (),
) -> CostTable:
    """Read a file of published costs as the table of a network, in the unit that it was given in.

    Args:
        form: ``haq`` (``.npy``: layers x weight bits x activation bits), ``hawq`` or ``csv``.
        file: the file.
        model: path of an ONNX file, or a network.
        stated: unit, statistic, provenance, batch and device, where the file does not say.
        without: layers that the file has no rows for; they cost 0.

    Raises:
        CostError: if the file is missing or damaged, or is of another network.
        PolicyError: if `without` names no layer of the network.
        ModelError: if the model cannot be read.
    """
    network = model if isinstance(model, Network) else read_network(model)
    return read_table(form, Path(file), network, stated, without=without)
