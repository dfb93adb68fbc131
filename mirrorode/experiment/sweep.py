"""Sweeps: a scenario at every point of a grid of its fields, what is stored left out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mirrorode.experiment import store
from mirrorode.experiment.cluster import connect, on_cluster
from mirrorode.experiment.display import Display
from mirrorode.experiment.keys import place
from mirrorode.experiment.run import shown, usable
from mirrorode.experiment.scenario import ResultTable, Scenario
from mirrorode.experiment.work import Task
from mirrorode.experiment.workers import locally
from mirrorode.flow.trajectory import write_atomically
from mirrorode.problem.errors import require
from mirrorode.theory.verdicts import Outcome as Verdict

MOST = 10_000  # points of a grid
SHOWN = 40  # rows of a summary that are printed

Point = dict[str, Any]
"""Values of some fields of a scenario."""


def axis(expression: str) -> tuple[str, list[str]]:
    """The field of a grid expression and its values: ``lam=1e-4,1e-2,1`` or ``seed=0:6[:2]``.

    Raises:
        InputError: if it is something else, or has more than 10,000 values.
    """
    name, equals, text = expression.partition("=")
    name, parts = name.strip().replace("-", "_"), [it.strip() for it in text.split(",")]
    fine = bool(equals) and name.isidentifier() and all(parts)
    require(fine, "grid", "be of the form field=1,2,3 or field=0:6", repr(expression))
    values = list(itertools.islice((it for part in parts for it in _range(part)), MOST + 1))
    require(len(values) <= MOST, "grid", f"have at most {MOST} values of a field", "longer")
    require(len(set(values)) == len(values), "grid", "name a value once", repr(expression))
    return name, values


def _range(text: str) -> Sequence[str] | Iterator[str]:
    """The values of ``start:stop`` or ``start:stop:step``, the last one left out; or ``text``."""
    if ":" not in text:
        return [text]
    try:
        bounds = [int(it) for it in text.split(":")]
        found = range(*bounds)
    except (ValueError, TypeError):
        found = range(0)
    require(bool(found[:1]), "grid", "have ranges start:stop[:step] of whole numbers", repr(text))
    return map(str, found)


def points(
    kind: type[Scenario], expressions: Iterable[str], typed: Callable[[str, list[str]], list[Any]]
) -> list[Point]:
    """Every point of the grid of some expressions; ``typed`` makes values of a field of texts.

    Raises:
        InputError: if there is no grid, a field is named twice or not one of the scenario's, or
            there are more than 10,000 points.
    """
    axes = [axis(it) for it in expressions]
    require(bool(axes), "grid", "be given, as in --grid seed=0:6", "missing")
    names, known = [name for name, _ in axes], [it.name for it in fields(kind)]  # type: ignore[arg-type]
    for name in names:
        require(name in known, "grid", f"name fields among {', '.join(known)}", repr(name))
        require(names.count(name) == 1, "grid", "name a field once", repr(name))
    count = math.prod(len(values) for _, values in axes)
    require(count <= MOST, "grid", f"have at most {MOST} points", count)
    every = [typed(name, values) for name, values in axes]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*every)]


@dataclass
class Sweep:
    """One sweep.

    Attributes:
        name: of the scenario.
        tasks: all jobs, by run folder.
        rows: point and run folder, a line of the summary each.
        failed: why a run is not stored, by its folder.
    """

    name: str
    tasks: dict[Path, Task]
    rows: list[tuple[Point, Path]]
    failed: dict[Path, str] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, base: Scenario, grid: Sequence[Point], device: str, out: Path) -> Sweep:
        """The sweep of a scenario over a grid.

        Raises:
            InputError: if the device is not there, or the scenario refuses a point.
        """
        usable(device)
        found = cls(name, {}, [])
        for point in grid:
            chosen = replace(base, **point)  # type: ignore[type-var]
            for job in chosen.jobs(device):
                folder = place(out, name, job)
                found.tasks[folder] = Task(name, store.configuration(chosen), job)
                found.rows.append((point, folder))
        require(bool(found.rows), "NAME", "be a scenario that computes something", name)
        return found

    def labels(self) -> dict[Path, str]:
        """What the run in a folder is: the first point that has it, and its name."""
        found = {}
        for point, folder in reversed(self.rows):
            values = (f"{name}={_text(value)}" for name, value in point.items())
            found[folder] = " ".join((*values, self.tasks[folder].job.name))
        return found

    def summary(self) -> ResultTable:
        """A row for each point and run: how it ended, what was measured, statistics, verdicts."""
        records = {
            folder: store.record(folder) if store.is_done(folder, task.job) else {}
            for folder, task in self.tasks.items()
        }
        measured = next((list(it["measured"]) for it in records.values() if it), [])
        columns = (
            *self.rows[0][0], "run", "state", "status", *measured, *STATISTICS, *KINDS, "folder",
        )  # fmt: skip
        rows = []
        for point, folder in self.rows:
            found = records[folder]
            kinds = [row["outcome"] for row in found.get("verdicts", ())]
            cells = point | {
                "run": self.tasks[folder].job.name,
                "state": self._state(folder, found),
            }
            cells |= {"status": found.get("status", ""), "folder": folder}
            cells |= found.get("measured", {}) | found.get("statistics", {})
            cells |= {name: kinds.count(kind.value) for name, kind in KINDS.items() if found}
            rows.append(tuple(_text(cells.get(name, "")) for name in columns))
        return ResultTable(f"Sweep of {self.name}", columns, tuple(rows))

    def _state(self, folder: Path, found: dict[str, Any]) -> str:
        if found:
            return "complete"
        return f"failed: {self.failed[folder]}" if folder in self.failed else "missing"


BRIEF = ("ended", "log_time", "L1", "L2", "test_accuracy", "steps", "fails")
STATISTICS = ("steps", "evaluations", "events", "wall_seconds")
KINDS = {"holds": Verdict.HOLDS, "not_yet": Verdict.NOT_YET, "fails": Verdict.FAILS}


def _text(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def sweep(chosen: Sweep, out: Path, workers: int, cluster: str, console: Console) -> bool:
    """Do what is not stored and write ``summary.csv``; whether all is there and holds.

    Raises:
        InputError: if a folder or cluster is not there.
    """
    require(workers >= 1, "workers", "be at least 1", workers)
    client = connect(cluster) if cluster else None
    home = out / chosen.name
    store.writable(home)
    todo = {it: task for it, task in chosen.tasks.items() if not store.is_done(it, task.job)}
    folders, tasks = list(todo), list(todo.values())
    known = chosen.labels()
    labels = [known[folder] for folder in folders]
    try:
        with Display(chosen.name, labels, len(chosen.tasks) - len(todo), console) as display:
            if client is None:
                ended = locally(tasks, out, workers, display.tell)
            else:
                ended = on_cluster(tasks, out, client, display.tell)
            with closing(ended):
                for number, why in ended:
                    if why:
                        chosen.failed[folders[number]] = why
                    display.end(number, why)
    finally:
        if client is not None:
            client.close()
        table = chosen.summary()
        path = home / "summary.csv"
        write_atomically(path, table.to_csv().encode())
        console.print(f"wrote {path}", soft_wrap=True)
    if len(table.rows) <= SHOWN:
        console.print(shown(brief(table, len({id(point) for point, _ in chosen.rows}))))
    states, fails = (table.columns.index(it) for it in ("state", "fails"))
    return all(row[states] == "complete" and row[fails] == "0" for row in table.rows)


def brief(table: ResultTable, points: int) -> ResultTable:
    """What of the summary of a grid of so many points fits a terminal."""
    rows = [dict(zip(table.columns, map(_rounded, row), strict=True)) for row in table.rows]
    for row in rows:
        row["ended"] = row["status"] or row["state"]
    end = table.columns.index("run") + (len(rows) > points)
    kept = (*table.columns[:end], *(it for it in BRIEF if it in rows[0]))
    return ResultTable(table.title, kept, tuple(tuple(row[it] for it in kept) for row in rows))


def _rounded(text: str) -> str:
    try:
        return text if text.isdigit() else f"{float(text):.4g}"
    except ValueError:
        return text.partition(":")[0]  # why a run failed is in the file
