"""The structure that `design.md` draws, read off the import statements."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "quantization": {"quantization"},
    "costmodels": {"costmodels", "quantization"},
    "hil": {"hil", "costmodels", "quantization"},
    "search": {"search", "costmodels", "quantization"},
    "quantmeter": {"quantmeter", "search", "hil", "costmodels", "quantization"},
}
HEAVY = {"torch", "onnxruntime", "tvm", "matplotlib", "ray", "scipy", "sklearn", "onnxscript"}


@dataclass(frozen=True)
class Import:
    """One import statement.

    Args:
        importer: dotted name of the module that it stands in.
        target: dotted name of what it imports, as far as it is written.
        when_loaded: whether it runs when the importer is imported.
    """

    importer: str
    target: str
    when_loaded: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py")
}


def imports_of(name: str) -> Iterator[Import]:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]

    def visit(node: ast.AST, when_loaded: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, when_loaded)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            start = ".".join([*(base if node.level else []), *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{start}.{alias.name}"
                yield Import(name, inner if inner in MODULES else start, when_loaded)
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, when_loaded and not lazy and not typing_only)

    yield from visit(tree, True)


ALL = [found for name in MODULES for found in imports_of(name)]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_dependencies_point_one_way(package: str) -> None:
    wrong = [
        f"{found.importer} imports {found.target}"
        for found in ALL
        if found.importer.split(".")[0] == package
        and found.target.split(".")[0] in set(MAY_IMPORT) - MAY_IMPORT[package]
    ]
    assert not wrong


def test_nothing_that_ships_imports_tests_or_benchmarks() -> None:
    wrong = [f for f in ALL if f.target.split(".")[0] in {"tests", "benchmarks"}]
    assert not wrong


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_imports_go_in_a_circle(package: str) -> None:
    """Imports inside functions count too: hiding a circle does not open it."""
    graph: dict[str, set[str]] = {}
    for found in ALL:
        if found.importer.split(".")[0] == package and found.target in MODULES:
            graph.setdefault(found.importer, set()).add(found.target)
    for name, targets in graph.items():
        targets.discard(name)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_nothing_heavy_by_itself(package: str) -> None:
    wrong = [f for f in ALL if f.importer == package and f.when_loaded]
    assert not [f for f in wrong if f.target.split(".")[0] in HEAVY]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_importing_a_package_loads_no_heavy_library(package: str) -> None:
    code = f"import sys, {package}\nprint(*[m for m in {sorted(HEAVY)!r} if m in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_reading_a_command_line_loads_no_heavy_library() -> None:
    code = (
        "import sys\nfrom quantmeter.cli import build_parser\nbuild_parser()\n"
        f"print(*[m for m in {sorted(HEAVY)!r} if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_package_is_installed() -> None:
    """An editable install finds packages that a wheel would leave out."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = config["options"]["packages"].split()
    found = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert sorted(listed) == sorted({*found, "calibration_data"})


def test_the_reader_of_imports_sees_what_it_should() -> None:
    """A check that finds nothing proves nothing: these are known to be there."""
    pairs = {(found.importer, found.target) for found in ALL}
    assert ("costmodels.table", "quantization.bits") in pairs
    assert ("quantization.formats", "quantization.network") in pairs
    assert len(ALL) > 100
