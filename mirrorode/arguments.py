"""Command lines read by tyro, and what is wrong with one in a sentence."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from mirrorode.problem.errors import InputError


def parsed(form: Any, args: list[str], prog: str, **options: Any) -> Any:
    """What ``args`` say, by tyro; what it refuses in one sentence.

    Raises:
        InputError: if it refuses.
    """
    panel = io.StringIO()
    try:
        with contextlib.redirect_stderr(panel):
            return tyro.cli(form, args=args, prog=prog, registry=_NUMBERS, **options)
    except SystemExit as end:
        if not end.code:
            raise
    # Below its title, the first paragraph of the panel says what is wrong; others, how to get help.
    lines = [line.strip("│ ") for line in panel.getvalue().splitlines()[1:]]
    paragraphs = " ".join("\n" if re.fullmatch("[─-]+", it) else it for it in lines).split("\n")
    sentence = next(" ".join(it.split()) for it in paragraphs if it.strip()).rstrip(".")
    for pattern, ours in _WORDS.items():
        sentence = re.sub(pattern, ours, sentence)
    raise InputError(f"{sentence} (see {prog} --help)")


# Of what tyro says; where it comes to say something else that is a sentence, too.
_WORDS = {
    r"^Error parsing (?:--)?(\S+): ": r"`\1` ",
    r"^invalid choice (.*) for argument '(?:--)?(\S+)'. Expected one of \((.*)\).*": (
        r"`\2` must be one of \3, but is \1"
    ),
    r"^Missing value for argument '(?:--)?(\S+)'.*": r"`\1` must have a value, but has none",
    r"^Expected one of {(.*)}.*": r"the command must be one of \1",
    r"^Missing from .*?: (\S+) .*": r"`\1` must be given, but is missing",
    r"^Unrecognized options: (.*?)(?: Available subcommands.*)?$": (
        r"every option must be one that the command has, but \1 is not"
    ),
}


def _number(kind: type, words: str) -> Callable[[list[str]], Any]:
    def read(texts: list[str]) -> Any:
        try:
            return kind(texts[0])
        except ValueError:
            raise ValueError(f"must be {words}, but is {texts[0]!r}") from None

    return read


def _registry() -> ConstructorRegistry:
    """How tyro reads numbers, and what it says of what is none."""
    found = ConstructorRegistry()
    for kind, name, words in ((int, "INT", "a whole number"), (float, "FLOAT", "a number")):
        spec = PrimitiveConstructorSpec(
            nargs=1, metavar=name, instance_from_str=_number(kind, words),
            is_instance=partial(_is, kind), str_from_instance=_written,
        )  # fmt: skip
        found.primitive_rule(partial(_of_kind, kind, spec))
    return found


def _of_kind(kind: type, spec: Any, info: PrimitiveTypeInfo) -> Any:
    return spec if info.type is kind else None


def _is(kind: type, value: Any) -> bool:
    return isinstance(value, kind)


def _written(value: Any) -> list[str]:
    return [str(value)]


_NUMBERS = _registry()
