"""A scenario: what of the paper it regenerates, as trajectories to integrate and what to draw."""

from __future__ import annotations

import ast
import csv
import importlib.util
import io
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from mirrorode.problem.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBER = 24  # characters: what is longer is no number


Show = Callable[[float, str], None]
"""Called with the share that is done and a line about where it is."""


class Job(ABC):
    """What of a scenario is computed and stored on its own, under the name of its run folder.

    Attributes:
        name: of the run folder.
        study: the folder in which scenarios share it; that of the scenario itself if empty.
        mode: how it is computed, where that changes the result in its last digits; it is stored
            for each mode, and read from any.
    """

    name: str
    study: str
    mode: str = ""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """All that the result depends on but the code, as JSON has it."""

    @abstractmethod
    def modules(self) -> set[str]:
        """The modules on whose code the result depends, beside `problem` and `flow`."""

    @abstractmethod
    def compute(self, checkpoint: Path, show: Show) -> Any:
        """The result, which has a method ``save(path)``; from the checkpoint if there is one."""

    @abstractmethod
    def told(self, result: Any) -> dict[str, Any]:
        """What ``run.json`` says of the result: status, message, statistics, measured, verdicts."""

    @abstractmethod
    def load(self, path: Path) -> Any:
        """The result that was saved."""


@dataclass(frozen=True)
class ResultTable:
    """A table as text cells, for the terminal, ``.md`` and ``.csv``."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def kind(self, column: int) -> Literal["text", "name", "number"]:
        """What the cells of a column are: only text may take several lines, numbers end aligned."""
        if max((len(row[column]) for row in self.rows), default=0) > NUMBER:
            return "text"
        return "number" if column else "name"

    def to_markdown(self) -> str:
        """As a Markdown table under its title."""
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        escaped = [[cell.replace("|", r"\|") for cell in cells] for cells in lines]
        body = "\n".join("| " + " | ".join(cells) + " |" for cells in escaped)
        return f"{self.title}\n\n{body}\n"

    def to_csv(self) -> str:
        """As comma-separated values."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.columns, *self.rows])
        return buffer.getvalue()


class Scenario(ABC):
    """Base of every scenario: a frozen dataclass whose fields are what a user may override."""

    @abstractmethod
    def quick(self) -> Self:
        """A smaller variant that shows the same in a minute or two."""

    @abstractmethod
    def jobs(self, device: str) -> Sequence[Job]:
        """What is to be computed."""

    @abstractmethod
    def figure(self, runs: Mapping[str, Any]) -> Figure:
        """The figure, from stored runs only."""

    @abstractmethod
    def tables(self, runs: Mapping[str, Any]) -> list[ResultTable]:
        """The tables, from stored runs only; the first one is that of the paper."""

    @abstractmethod
    def plotted(self, runs: Mapping[str, Any]) -> ResultTable:
        """The numbers behind the figure."""


@dataclass(frozen=True)
class Entry:
    """A scenario as ``mirrorode list`` shows it, read without importing it."""

    name: str
    title: str
    text: str
    run_time: str
    path: Path


def folder() -> Path:
    """Where the scenario files are: in the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "scenarios"
    return inside if inside.is_dir() else package.parent / "scenarios"


def entries() -> list[Entry]:
    """Every scenario, by name."""
    found = []
    for path in sorted(folder().glob("*.py")):
        if path.stem.startswith("_"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        constants = {
            node.targets[0].id: ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "RUN_TIME"
        }
        title, _, text = (ast.get_docstring(tree) or "").partition("\n")
        time = constants.get("RUN_TIME", "unknown")
        found.append(Entry(path.stem, title, text.strip(), time, path))
    return found


def load(name: str) -> type[Scenario]:
    """The scenario class of ``name``.

    Raises:
        InputError: if there is none.
    """
    known = {entry.name: entry.path for entry in entries()}
    if name not in known:
        raise InputError(f"`NAME` must be one of {', '.join(known)}, but is {name!r}")
    spec = importlib.util.spec_from_file_location(f"mirrorode_scenario_{name}", known[name])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    found: Any = module.SCENARIO
    return found
