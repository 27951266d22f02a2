"""Sections of a file of settings, whose errors name the file and the field."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from costmodels.errors import BackendError, CostError
from costmodels.quantity import CoefficientUnit, Quantity, Source, SourceKind
from costmodels.units import parse_coefficient_unit
from quantization.errors import did_you_mean

_KINDS = tuple(kind.value for kind in SourceKind)
_NOBODY = "no publication"
_CONVERTED = {
    ("J/B", CoefficientUnit.JOULES_PER_BIT): 1 / 8,
    ("J/bit", CoefficientUnit.JOULES_PER_BYTE): 8.0,
}
"""What a number is multiplied by where bits are wanted and bytes given, and the reverse."""


@dataclass(frozen=True)
class Section:
    """A table of a file, and which of its fields were read.

    Args:
        file: the file, as messages name it.
        path: names of the sections that this one lies in, each followed by a dot.
        content: what it holds.
        sources: publications by the keys that numbers name.
        read: the fields that were read so far.
    """

    file: str
    path: str
    content: Mapping[str, Any]
    sources: Mapping[str, Any]
    read: set[str] = field(default_factory=set)

    @classmethod
    def of_file(cls, file: str, content: Mapping[str, Any]) -> "Section":
        """Return the outermost section.

        Raises:
            BackendError: if its sources are no table of texts.
        """
        sources = content.get("sources", {})
        if not isinstance(sources, dict) or not all(isinstance(s, str) for s in sources.values()):
            raise BackendError(f"{file}: sources: write KEY = 'the publication' for each")
        return cls(file, "", content, sources, {"sources"})

    def __contains__(self, name: str) -> bool:
        return name in self.content

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Add file and section to what goes wrong inside.

        Raises:
            BackendError: for any other error of costs.
        """
        try:
            yield
        except BackendError:
            raise
        except CostError as error:
            where = f"{self.path.rstrip('.')}: " if self.path else ""
            raise BackendError(f"{self.file}: {where}{error}") from None

    def wrong(self, name: str, what: str) -> BackendError:
        """Return the error that field `name` is `what`."""
        return BackendError(f"{self.file}: {self.path}{name}: {what}")

    def take(self, name: str, kind: type, what: str) -> Any:
        """Return a field that must be there, of a type.

        Raises:
            BackendError: if it is missing or of another type.
        """
        self.read.add(name)
        if name not in self.content:
            raise self.wrong(name, "missing")
        value = self.content[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(name, f"{value!r} is no {what}")
        return value

    def text(self, name: str) -> str:
        """Return a text that is not empty."""
        value: str = self.take(name, str, "text")
        if not value.strip():
            raise self.wrong(name, "an empty text")
        return value

    def truth(self, name: str) -> bool:
        """Return true or false; false where it is missing."""
        return name in self and bool(self.take(name, bool, "true or false"))

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of texts; an empty one where it is missing."""
        return self._list(name, str, "text") if name in self else ()

    def numbers(self, name: str) -> tuple[int, ...]:
        """Return a list of whole numbers."""
        return self._list(name, int, "whole number")

    def choice(self, name: str, known: Sequence[str]) -> str:
        """Return one of some texts."""
        value = self.text(name)
        if value not in known:
            raise self.wrong(name, f"{value!r}{did_you_mean(value, known)}; {' or '.join(known)}")
        return value

    def section(self, name: str) -> "Section":
        """Return a section inside this one."""
        content = self.take(name, dict, "section")
        return Section(self.file, f"{self.path}{name}.", content, self.sources)

    def optional(self, name: str) -> "Section | None":
        """Return a section inside this one, None where it is missing."""
        return self.section(name) if name in self else None

    def sections(self, name: str) -> list["Section"]:
        """Return a list of sections."""
        content = self._list(name, dict, "section")
        return [
            Section(self.file, f"{self.path}{name}[{i}].", each, self.sources)
            for i, each in enumerate(content)
        ]

    def quantity(self, name: str, expected: CoefficientUnit) -> Quantity:
        """Return a number with unit, kind, source and locator, in the `expected` unit.

        Raises:
            BackendError: if one of them is missing or wrong, or the unit measures something else.
        """
        given = self.section(name)
        value = given.take("value", int | float, "number")  # type: ignore[arg-type]
        text, kind = given.text("unit"), SourceKind(given.choice("kind", _KINDS))
        ref = _NOBODY
        if kind is not SourceKind.ASSUMED or "source" in given:
            key = given.choice("source", tuple(self.sources))
            ref = str(self.sources[key])
        source = Source(ref, given.text("locator"), kind)
        given.finish()
        try:
            unit, factor = parse_coefficient_unit(text)
            factor *= _CONVERTED.get((unit, expected), 1.0)
            if unit != expected.value and (unit, expected) not in _CONVERTED:
                raise CostError(f"{text} is no unit of it, which is in {expected.value}")
            return Quantity(float(value) * factor, expected, source)
        except (CostError, OverflowError) as error:
            raise self.wrong(name, str(error)) from None

    def finish(self) -> None:
        """Raise unless every field was read.

        Raises:
            BackendError: if one was not; names those that there are.
        """
        for name in self.content:
            if name not in self.read:
                raise self.wrong(name, f"no such field{did_you_mean(name, sorted(self.read))}")

    def _list(self, name: str, kind: type, what: str) -> tuple[Any, ...]:
        values = self.take(name, list, "list")
        for value in values:
            if not isinstance(value, kind) or isinstance(value, bool):
                raise self.wrong(name, f"{value!r} is no {what}")
        return tuple(values)
