"""The command line, called in this process."""

import time
from pathlib import Path

import pytest

from mirrorode import cli


def call(*arguments: str) -> int:
    """The exit code of ``mirrorode`` with these arguments."""
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    return end.value.code


def until_a_run_is_stored(process, home: Path) -> None:
    """Wait until the command that ``process`` is has stored a student's run below ``home``."""
    while not list(home.glob("runs/students-*/*/run.json")):
        time.sleep(0.05)
        assert process.poll() is None


def stored(home: Path, name: str) -> Path:
    """The run folder called ``name``, below ``home / "runs"``."""
    (found,) = home.glob(f"runs/*/{name}-????????")
    return found
