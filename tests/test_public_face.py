"""Names that others call exist, and the README's Python runs."""

import re
from pathlib import Path

import pytest

import mirrorode as mo

README = Path(__file__).parents[1] / "README.md"


def test_names():
    for name in mo.__all__:
        assert getattr(mo, name) is not None
    with pytest.raises(AttributeError):
        _ = mo.nothing
    assert set(mo.__all__) <= set(dir(mo))


def test_readme_example_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names = {"__name__": "readme"}  # a block may go on from those before
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
        for name in [name for name in names if name.startswith("test_")]:
            names[name]()
    assert "REACHED" in capsys.readouterr().out
