"""Scripts of the checkout, run in the process of the tests: what they import is loaded once."""

import io
import os
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def run_script(script: str, *arguments: str) -> str:
    """Run a script as from the command line, with the root of the checkout as folder.

    Args:
        script: path from the root.
        arguments: of its command line.

    Returns:
        What it printed.
    """
    out, status = io.StringIO(), None
    threads, environment = torch.get_num_threads(), dict(os.environ)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", [script, *arguments])
        patch.setattr(sys, "path", [*sys.path])
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            status = end.code
        finally:
            torch.set_num_threads(threads)
            os.environ.clear()
            os.environ.update(environment)
    assert not status, out.getvalue()
    return out.getvalue()
