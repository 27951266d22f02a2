"""Backends are found by name and imported when first used."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from costmodels.errors import BackendError, TableError
from costmodels.registry import backend, backends


def test_the_shipped_backends_are_registered() -> None:
    assert {"analytical", "table", "ort"} <= set(backends())


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (
            "analytic:haq",
            r"no cost backend 'analytic' \(did you mean 'analytical'\?\); registered: ",
        ),
        ("nonsense", r"no cost backend 'nonsense'; registered: .*analytical"),
        ("", "no cost backend ''"),
    ],
)
def test_an_unknown_backend_names_close_matches_and_what_there_is(text: str, hint: str) -> None:
    with pytest.raises(BackendError, match=hint):
        backend(text)


def test_a_table_backend_without_a_file_says_how_to_write_it() -> None:
    with pytest.raises(BackendError, match=r"table:TABLE\.json"):
        backend("table")


def test_a_table_backend_of_a_missing_file_names_it() -> None:
    with pytest.raises(TableError, match=r"nowhere\.json: No such file"):
        backend("table:nowhere.json")


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("costmodels.registry", ("torch", "onnxruntime", "hil", "matplotlib")),
        ("costmodels.analytical", ("torch", "onnxruntime", "hil", "matplotlib")),
        ("quantization.reading", ("torch", "onnxruntime", "matplotlib")),
    ],
)
def test_importing_imports_nothing_heavy(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, {module}\nprint(*[m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_listing_backends_imports_none_of_them() -> None:
    code = (
        "import sys; from costmodels.registry import backends; backends()\n"
        "print(*[m for m in ('costmodels.analytical', 'costmodels.replay', 'hil') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", ["broken", "nothing"])
def test_a_backend_that_cannot_be_loaded_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "faulty_costs-1.0.dist-info"
    about.mkdir()
    (tmp_path / "faulty_costs.py").write_text("")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty-costs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[costmodels.backends]\nbroken = not_there_at_all:create\nnothing = faulty_costs:create\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    with pytest.raises(BackendError, match=f"backend {name!r} cannot be loaded"):
        backend(name)
