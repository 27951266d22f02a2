"""The table that ``quantmeter cost`` prints: a row a layer, a group of columns a metric."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from costmodels.units import format_quantity
from quantmeter.itemizing import Bill, Item

_SHORTEST = 12
"""Characters that are left of a layer's name at least."""
_ALWAYS = frozenset({"glue", "conversions"})
"""What has a row even where it costs nothing, so that one sees that it was counted."""


@dataclass(frozen=True)
class _Column:
    """Texts of a column.

    Args:
        title: one or two lines.
        cells: a text for each row.
        total: the last text.
        left: whether texts begin at the left.
    """

    title: str
    cells: tuple[str, ...]
    total: str = ""
    left: bool = False

    @property
    def width(self) -> int:
        return max(map(len, (*self.title.split("\n"), *self.cells, self.total)))


def dearest(bills: Sequence[Bill], count: int) -> list[int]:
    """Return the positions of the `count` layers of the largest share in any metric, ascending."""
    shares = [
        max(bill.share(item) for bill, item in zip(bills, items, strict=True))
        for items in zip(*(bill.layers for bill in bills), strict=True)
    ]
    ranked = sorted(range(len(shares)), key=lambda i: (-shares[i], i))
    return sorted(ranked[:count])


def cost_table(bills: Sequence[Bill], shown: Sequence[int], width: int) -> Table:
    """Return the table of one policy's bills.

    Where all cells of a metric have the same provenance, its title says it, else each row.

    Args:
        bills: of the same layers, one a metric.
        shown: positions of the layers that get a row; the others share one.
        width: columns of the terminal; names of layers are shortened in front to fit.
    """
    left = [i for i in range(len(bills[0].layers)) if i not in set(shown)]
    names = [item.name for item in bills[0].others]
    kept = [
        k
        for k, name in enumerate(names)
        if name in _ALWAYS or any(bill.others[k].cost for bill in bills)
    ]
    beside = [f"({names[k]})" for k in kept]
    if left:
        beside.insert(0, f"({len(left)} other layers)")
    layers = [bills[0].layers[i] for i in shown]
    blank = ("",) * len(beside)
    columns = [
        _Column("#", (*(str(i + 1) for i in shown), *blank)),
        _Column("layer", (*(item.name for item in layers), *beside), "total", left=True),
        _Column("bits", (*(item.bits for item in layers), *blank)),
    ]
    for bill in bills:
        items = [bill.layers[i] for i in shown]
        if left:
            items.append(_sum_of([bill.layers[i] for i in left]))
        columns += _columns_of(bill, [*items, *(bill.others[k] for k in kept)])
    if len(bills) == 1 and any(item.kernel for item in layers):
        columns.append(_Column("kernel", (*(item.kernel for item in layers), *blank), left=True))
    chrome = 2 * len(columns)  # two spaces between columns, and one at both ends
    room = width - chrome - sum(column.width for column in columns if column.title != "layer")
    made = Table(box=box.SIMPLE, collapse_padding=True, pad_edge=False, show_footer=True)
    for column in columns:
        title, total = Text(column.title, "bold"), Text(column.total)
        made.add_column(title, total, justify="left" if column.left else "right", no_wrap=True)
    shortened = [shorten(name, max(room, _SHORTEST)) for name in columns[1].cells]
    cells = [column.cells if k != 1 else tuple(shortened) for k, column in enumerate(columns)]
    for position, row in enumerate(zip(*cells, strict=True)):
        ends = position == len(shown) - 1
        made.add_row(*map(Text, row), end_section=ends)
    return made


def shorten(name: str, width: int) -> str:
    """Return the end of a name that is too long: exporters write paths, which begin alike.

    >>> shorten("/features/features.1/conv/Conv", 20)
    '...ures.1/conv/Conv'
    """
    return name if len(name) <= width else "..." + name[len(name) - width + 3 :]


def _columns_of(bill: Bill, items: Sequence[Item]) -> Iterator[_Column]:
    said = {item.provenance for item in items if item.provenance and item.cost}
    same = next(iter(said)) if len(said) == 1 else ""
    costs = tuple(format_quantity(item.cost, bill.unit) for item in items)
    yield _Column(f"{bill.metric.value}\n{same}", costs, format_quantity(bill.total, bill.unit))
    yield _Column("share", tuple(f"{bill.share(item):.1%}" for item in items), f"{1:.1%}")
    if not same:
        yield _Column("from", tuple(item.provenance for item in items), left=True)


def _sum_of(items: Sequence[Item]) -> Item:
    said = sorted({item.provenance for item in items})
    return Item("", sum(item.cost for item in items), provenance=", ".join(said))
