"""Where the costs of a table come from, in words, for whoever prints one of them."""

from costmodels.cells import Provenance
from costmodels.table import CostTable

_MODELLED = frozenset({Provenance.ANALYTICAL.value, Provenance.ASSUMED.value})


def said_of(table: CostTable) -> str:
    """Return how the costs of the layers came to be, and which backend says so.

    What nobody measured is said to be so: ``analytical (haq: the numbers that texts print), not
    measured``; so is what others published.
    """
    known = table.unary.provenance[table.unary.supported]
    backend = str(table.source.get("backend", ""))
    formula = {Provenance.ANALYTICAL.value} if backend.startswith("analytical:") else set()
    kinds = sorted({str(kind) for kind in known.ravel()} | formula)
    names = (backend.rpartition(":")[2], str(table.source.get("preset", "")))
    source = ": ".join(filter(None, names))
    by = " by others" if backend.startswith("import:") else ""
    how = " and ".join(kinds) + by + (f" ({source})" if source else "")
    return f"{how}, not measured" if _MODELLED & set(kinds) else how
