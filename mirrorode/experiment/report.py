"""One self-contained HTML page of all stored runs: verdicts, figures and tables, how long it took.

It is drawn from what is stored, as `mirrorode figures` is, and never integrates.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from rich.console import Console
from rich.progress import track

from mirrorode.experiment import run, scenario, store
from mirrorode.experiment.scenario import Entry, ResultTable, Scenario
from mirrorode.flow.trajectory import write_atomically
from mirrorode.problem.errors import InputError
from mirrorode.theory.verdicts import Outcome, Verdicts

Records = Mapping[Path, dict[str, Any]]
"""What ``run.json`` says, by run folder."""


@dataclass(frozen=True)
class Section:
    """One scenario on the page.

    Attributes:
        name: as `mirrorode run` calls it.
        title: what it is about, the first sentence of its file.
        text: the rest of that docstring.
        command: what gives these runs.
        image: the figure, as a PNG file; empty where runs are missing.
        tables: those of the scenario.
        records: of its runs.
        missing: runs that are not stored.
    """

    name: str
    title: str
    text: str
    command: str
    image: bytes
    tables: list[ResultTable]
    records: Records
    missing: list[str]

    @property
    def encoded(self) -> str:
        """The figure as it stands in the page."""
        return base64.b64encode(self.image).decode()

    @cached_property
    def cost(self) -> str:
        """Number of runs, steps, evaluations and time of integration."""
        return cost(self.records)


def write(out: Path, page: Path, console: Console) -> list[Section]:
    """Write the page of the runs below ``out`` to ``page``.

    Raises:
        InputError: if nothing is stored below ``out``, or ``page`` cannot be written.
    """
    found = [entry for entry in scenario.entries() if store.is_drawn(out / entry.name)]
    if not found:
        raise InputError(f"`out` must hold stored runs, but {out} holds none")
    if page.is_dir():
        raise InputError(f"`page` must be a file, but {page} is a folder")
    store.writable(page.parent)
    sections = [
        section(entry, out) for entry in track(found, "drawing", console=console, transient=True)
    ]
    write_atomically(page, render(sections).encode())
    return sections


def section(entry: Entry, out: Path) -> Section:
    """What the page says of one scenario, from its stored runs."""
    chosen = store.configured(kind := scenario.load(entry.name), out / entry.name)
    jobs = chosen.jobs("cpu")
    places = {job.name: store.find(out, entry.name, job) for job in jobs}
    missing = [name for name, path in places.items() if path is None]
    image, tables = b"", []
    if not missing:
        runs = store.load_runs(out, entry.name, jobs)
        image = run.pictures(chosen, runs, "png")["png"]
        tables = chosen.tables(runs)
    return Section(
        entry.name, entry.title, entry.text, command(entry.name, kind, chosen), image, tables,
        {path: store.record(path) for path in places.values() if path},
        missing,
    )  # fmt: skip


def command(name: str, kind: type[Scenario], chosen: Scenario) -> str:
    """The command line that gives the runs of a scenario with these fields."""
    words, default = ["mirrorode", "run", name], kind()
    if chosen != default and chosen == default.quick():
        return " ".join([*words, "--quick"])
    for field in fields(chosen):  # type: ignore[arg-type]
        value = getattr(chosen, field.name)
        if value != getattr(default, field.name):
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [f"--{field.name.replace('_', '-')}", shown]
    return " ".join(words)


def cost(records: Records) -> str:
    """Number of runs, steps, evaluations and time of integration."""
    if not records:
        return "no trajectory is integrated"
    sums = {
        key: sum(it["statistics"][key] for it in records.values())
        for key in ("steps", "evaluations", "events", "wall_seconds")
    }
    return (
        f"{len(records)} run{'s' * (len(records) > 1)}, {sums['steps']:,} steps, "
        f"{sums['evaluations']:,} evaluations, {sums['events']:,} events, "
        f"{sums['wall_seconds']:,.0f} s of integration"
    )


def render(sections: list[Section]) -> str:
    """The page."""
    records = {path: it for part in sections for path, it in part.records.items()}
    stored = {f"{path.parent.name}/{path.name}": store.verdicts(path) for path in records}
    verdicts = {name: found for name, found in stored.items() if found}  # trainings have none
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("report.html.j2").render(
        sections=sections, statements=statements(verdicts), totals=totals(verdicts),
        failed=failed(verdicts), runs=records, cost=cost(records), version=version("mirrorode"),
    )  # fmt: skip


def totals(verdicts: Mapping[str, Verdicts]) -> dict[Outcome, int]:
    """How many verdicts there are of each kind."""
    every = [row.outcome for rows in verdicts.values() for row in rows]
    return {outcome: every.count(outcome) for outcome in Outcome}


def failed(verdicts: Mapping[str, Verdicts]) -> list[tuple[str, str, str]]:
    """Run, statement and what was measured, of every verdict that says "fails"."""
    return [
        (name, row.statement, row.detail)
        for name, rows in verdicts.items()
        for row in rows
        if row.outcome is Outcome.FAILS
    ]


def statements(verdicts: Mapping[str, Verdicts]) -> list[tuple[Any, dict[Outcome, int]]]:
    """Of each statement, the verdict where it holds by least, and how many there are of each."""
    if not verdicts:
        return []
    counted = [
        {outcome: sum(row.outcome is outcome for row in rows) for outcome in Outcome}
        for rows in zip(*verdicts.values(), strict=True)
    ]
    return list(zip(run.worst(verdicts), counted, strict=True))
