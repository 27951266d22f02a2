"""The table that ``quantmeter cost`` prints: a row a layer, a group of columns a metric."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.table import Table

from costmodels.units import format_quantity
from quantization.channel_groups import brief, parse_bits
from quantmeter.columns import Column, column_table, fitted, width_of
from quantmeter.itemizing import Bill, Item

_ALWAYS = frozenset({"glue", "conversions"})
"""What has a row even where it costs nothing, so that one sees that it was counted."""


def dearest(bills: Sequence[Bill], count: int) -> list[int]:
    """Return the positions of the `count` layers of the largest share in any metric, ascending."""
    shares = [
        max(bill.share(item) for bill, item in zip(bills, items, strict=True))
        for items in zip(*(bill.layers for bill in bills), strict=True)
    ]
    ranked = sorted(range(len(shares)), key=lambda i: (-shares[i], i))
    return sorted(ranked[:count])


def cost_tables(bills: Sequence[Bill], shown: Sequence[int], width: int) -> list[Table | str]:
    """Return the table of one policy's bills, and the lines under it.

    Where all cells of a metric have the same provenance, its title says it, else each row. Only
    names of layers are ever shortened, in front. Where that is not enough, provenances and kernels
    move to lines under the table, then shares of the last metrics are left out, and then each
    metric has a table of its own. One that is still too wide is as wide as it must be.

    Args:
        bills: of the same layers, one a metric.
        shown: positions of the layers that get a row; the others share one.
        width: columns of the terminal.
    """
    columns, beside = _columns(bills, shown)
    going = [k for k, column in enumerate(columns) if column.told][::-1]
    going += [k for k, column in enumerate(columns) if column.title == "share"][:0:-1]
    kept, count = fitted(columns, 1, width, going=going, least=max(map(len, beside), default=0))
    if width_of(kept) > width and len(bills) > 1:
        return [part for bill in bills for part in cost_tables([bill], shown, width)]
    told = [columns[k] for k in sorted(going[:count]) if columns[k].told]
    table = column_table(kept, above_line=len(shown))
    return [table, *(_line(column, shown, beside) for column in told)]


def _columns(bills: Sequence[Bill], shown: Sequence[int]) -> tuple[list[Column], list[str]]:
    """Return all columns, and the names of the rows below those of layers."""
    left = [i for i in range(len(bills[0].layers)) if i not in set(shown)]
    names = [item.name for item in bills[0].others]
    kept = [
        k
        for k, name in enumerate(names)
        if name in _ALWAYS or any(bill.others[k].cost for bill in bills)
    ]
    beside = [f"({names[k]})" for k in kept]
    if left:
        beside.insert(0, f"({len(left)} others)")
    layers = [bills[0].layers[i] for i in shown]
    blank = ("",) * len(beside)
    columns = [
        Column("#", (*(str(i + 1) for i in shown), *blank)),
        Column("layer", (*(item.name for item in layers), *beside), "total", left=True),
        Column("bits", (*(brief(parse_bits(item.bits)) for item in layers), *blank)),
    ]
    for bill in bills:
        items = [bill.layers[i] for i in shown]
        if left:
            items.append(_sum_of([bill.layers[i] for i in left]))
        columns += _columns_of(bill, [*items, *(bill.others[k] for k in kept)])
    if len(bills) == 1 and any(item.kernel for item in layers):
        kernels = (*(item.kernel for item in layers), *blank)
        columns.append(Column("kernel", kernels, left=True, told="kernel"))
    return columns, beside


def _line(column: Column, shown: Sequence[int], beside: Sequence[str]) -> str:
    """Return a column as a line: each text after the rows that hold it, layers by their numbers."""
    parts = []
    for text in dict.fromkeys(filter(None, column.cells)):
        held = [i for i, cell in zip(shown, column.cells, strict=False) if cell == text]
        rows = []
        for _, run in groupby(enumerate(held), lambda pair: pair[1] - pair[0]):
            numbers = [i + 1 for _, i in run]
            more = f"-{numbers[-1]}" if len(numbers) > 1 else ""
            rows.append(f"#{numbers[0]}{more}")
        under = column.cells[len(shown) :]
        rows += [name for name, cell in zip(beside, under, strict=True) if cell == text]
        parts.append(f"{', '.join(rows)}: {text}")
    return f"{column.told} of {'; '.join(parts)}"


def _columns_of(bill: Bill, items: Sequence[Item]) -> Iterator[Column]:
    said = {item.provenance for item in items if item.provenance and item.cost}
    same = next(iter(said)) if len(said) == 1 else ""
    costs = tuple(format_quantity(item.cost, bill.unit) for item in items)
    title = f"{bill.metric.value}\n{same}".replace(", ", ",\n")
    yield Column(title, costs, format_quantity(bill.total, bill.unit))
    yield Column("share", tuple(f"{bill.share(item):.1%}" for item in items), f"{1:.1%}")
    said_in = tuple(item.provenance for item in items)
    if not same and any(said_in):
        yield Column("from", said_in, left=True, told=bill.metric.value)


def _sum_of(items: Sequence[Item]) -> Item:
    said = sorted({item.provenance for item in items})
    return Item("", sum(item.cost for item in items), provenance=", ".join(said))
