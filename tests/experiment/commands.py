"""The command line, called in this process."""

from pathlib import Path

import pytest

from mirrorode import cli


def call(*arguments: str) -> int:
    """The exit code of ``mirrorode`` with these arguments."""
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    return end.value.code


def stored(home: Path, name: str) -> Path:
    """The run folder called ``name``, below ``home / "runs"``."""
    (found,) = home.glob(f"runs/*/{name}-????????")
    return found
