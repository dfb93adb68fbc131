"""The command line, called in this process."""

import pytest

from mirrorode import cli


def call(*arguments: str) -> int:
    """The exit code of ``mirrorode`` with these arguments."""
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    return end.value.code
