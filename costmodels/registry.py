"""Cost backends by name, found through entry points and imported when first used."""

from importlib.metadata import EntryPoint, entry_points

from costmodels.errors import BackendError
from costmodels.model import BackendContext, BackendFactory, CostModel
from quantization.errors import did_you_mean

GROUP = "costmodels.backends"


def backends() -> dict[str, EntryPoint]:
    """Return the registered backends by name; nothing is imported."""
    return {point.name: point for point in sorted(entry_points(group=GROUP))}


def backend(text: str, context: BackendContext | None = None) -> CostModel:
    """Make the backend that `text` names.

    Args:
        text: ``NAME`` or ``NAME:ARGUMENT``, such as ``analytical:haq`` or ``table:T.json``.
        context: what measuring backends need; defaults to one thread and a minute.

    Raises:
        BackendError: if there is no such backend, or it cannot be imported or made.
    """
    name, _, argument = text.partition(":")
    points = backends()
    if name not in points:
        known = ", ".join(points) or "none; is the package installed?"
        raise BackendError(
            f"no cost backend {name!r}{did_you_mean(name, points)}; registered: {known}"
        )
    try:
        factory: BackendFactory = points[name].load()
    except (ImportError, AttributeError) as error:
        raise BackendError(f"backend {name!r} cannot be loaded: {error}") from error
    return factory(argument, context or BackendContext())
