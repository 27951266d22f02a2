"""The report page of a run: one HTML file without outside references."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"


def render(result: Mapping[str, Any]) -> str:
    """Return the page of what `quantmeter.demo.to_dict` returned."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("demo.html").render(result=result)
