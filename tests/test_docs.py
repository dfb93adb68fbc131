"""The documentation: its Python runs and prints what is shown, and every public name is in it."""

import re
from pathlib import Path

import pytest

import mirrorode as mo
from tests import examples

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(page for page in DOCS.glob("*.md") if "```python" in page.read_text("utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where examples write
    examples.run(page)
    assert examples.shown(page) > 0


def test_every_public_name_has_a_reference():
    text = "".join(page.read_text("utf-8") for page in (DOCS / "api").glob("*.md"))
    found = re.findall(r"^\.\. auto(?:class|function|exception):: mirrorode\.(\w+)$", text, re.M)
    assert sorted(found) == sorted(mo.__all__)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("drift 2.5e-09, 12 steps, 3.1 s", "drift  1e-08, 14 steps, 40 s", True),
        ("log t = 9989.0", "log t = 9989.3", True),
        ("log t = 9989.0", "log t = 8000.1", False),
        ("12 steps", "30 steps", False),
        ("REACHED", "BLOCKED", False),
        ("L_1 is 0.5", "L_2 is 0.5", False),
    ],
)
def test_alike(one, other, same):
    assert examples.alike(one, other) is same
