"""Tables that fit a terminal: only names are ever shortened, in front."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.table import Table
from rich.text import Text

_SHORTEST = 12
"""Characters that are left of a name at least."""


@dataclass(frozen=True)
class Column:
    """Texts of a column.

    Args:
        title: one line or more.
        cells: a text for each row.
        total: the last text.
        left: whether texts begin at the left.
        told: what a line under the table calls the texts, where they have no room in it.
    """

    title: str
    cells: tuple[str, ...]
    total: str = ""
    left: bool = False
    told: str = ""

    @property
    def width(self) -> int:
        """Characters of the longest text."""
        return max(map(len, (*self.title.split("\n"), *self.cells, self.total)))


def shorten(name: str, width: int) -> str:
    """Return the end of a name that is too long: exporters write paths, which begin alike.

    >>> shorten("/features/features.1/conv/Conv", 20)
    '...ures.1/conv/Conv'
    """
    return name if len(name) <= width else "..." + name[len(name) - width + 3 :]


def width_of(columns: Sequence[Column]) -> int:
    """Return how wide the table is: two spaces between columns, and one at both ends."""
    return sum(column.width + 2 for column in columns)


def fitted(
    columns: Sequence[Column],
    names: int,
    width: int,
    *,
    going: Sequence[int] = (),
    least: int = 0,
    whole: bool = False,
) -> tuple[list[Column], int]:
    """Fit columns into a terminal.

    Args:
        columns: all of them.
        names: position of the names, which are shortened.
        width: of the terminal.
        going: positions of columns that may be left out, the first one first.
        least: characters that must be left of a name, if that is more than a few.
        whole: whether columns are left out so that names are whole, or only so that so much is
            left of them.

    Returns:
        The columns that are left, and how many of `going` are not. They may still be too wide.
    """
    own = columns[names]
    least = min(own.width, max(_SHORTEST, least))
    count = 0
    while True:
        kept = [column for k, column in enumerate(columns) if k not in going[:count]]
        room = own.width + width - width_of(kept)
        if room >= (own.width if whole else least) or count == len(going):
            break
        count += 1
    cells = tuple(shorten(name, max(room, least)) for name in own.cells)
    return [replace(own, cells=cells) if column is own else column for column in kept], count


def column_table(columns: Sequence[Column], title: str = "", *, above_line: int = 0) -> Table:
    """Return a table that is as wide as its columns.

    Args:
        columns: what it shows; totals have a row of their own if there are any.
        title: over it.
        above_line: rows above a line; 0 draws none.
    """
    footer = any(column.total for column in columns)
    made = Table(
        title=Text(title) if title else None,
        title_justify="left",
        box=box.SIMPLE,
        collapse_padding=True,
        pad_edge=False,
        show_footer=footer,
    )
    made.width = width_of(columns)
    for column in columns:
        made.add_column(
            Text(column.title, "bold"),
            Text(column.total),
            justify="left" if column.left else "right",
            no_wrap=True,
            width=column.width,
        )
    for position, row in enumerate(zip(*(column.cells for column in columns), strict=True)):
        made.add_row(*map(Text, row), end_section=position == above_line - 1)
    return made
