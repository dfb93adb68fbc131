"""The Python of a page of documentation, run in order, and what the page says that it prints."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.]*\d)")
SECONDS = re.compile(r"\d+(\.\d+)? s\b")

FRACTION = 0.1  # relative, of a number with a fraction or an exponent
COUNT = 0.5  # of a whole number: steps, evaluations
SMALL = 1e-4  # below which two numbers are alike: drifts, residuals, gaps


def run(page: Path) -> list[str]:
    """Run the ```python blocks of ``page``; each may go on from those before.

    A ```text block straight after one shows what it prints.

    Returns:
        What each block printed.

    Raises:
        AssertionError: if it prints something else: words must be the same, numbers alike.
    """
    names: dict[str, Any] = {"__name__": "page"}
    text, printed = page.read_text(encoding="utf-8"), []
    ended = -1  # where the last Python block ends
    for block in BLOCK.finditer(text):
        kind, content = block.groups()
        if kind == "python":
            line = text.count("\n", 0, block.start(2))
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile("\n" * line + content, str(page), "exec"), names)
                for name in [name for name in names if name.startswith("test_")]:
                    names.pop(name)()
            printed.append(output.getvalue())
            ended = block.end()
        elif kind == "text" and not text[ended : block.start()].strip() and ended >= 0:
            place = f"{page.name}, line {text.count(chr(10), 0, block.start()) + 1}"
            assert alike(content, printed[-1]), f"{place} shows\n{content}\nof\n{printed[-1]}"
    return printed


def shown(page: Path) -> int:
    """How many outputs ``page`` shows."""
    text = page.read_text(encoding="utf-8")
    return len(re.findall(r"^```python\n(?:(?!^```).)*^```\n\s*^```text$", text, re.S | re.M))


def alike(one: str, other: str) -> bool:
    """Whether words are the same and numbers close, whatever the spaces and the seconds taken."""
    words, numbers = [], []
    for text in (one, other):
        text = SECONDS.sub("s", text)
        numbers.append(NUMBER.findall(text))
        words.append(NUMBER.sub("0", text).split())
    return words[0] == words[1] and all(map(_close, *numbers))


def _close(one: str, other: str) -> bool:
    whole = not re.search(r"[.e]", one + other)
    a, b = float(one), float(other)
    distance, size = abs(a - b), max(abs(a), abs(b))
    return size < SMALL or distance <= (COUNT if whole else FRACTION) * size
