"""Run a scenario: integrate what is not stored yet, check it, store it, draw it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from mirrorode.experiment import store
from mirrorode.experiment.keys import place
from mirrorode.experiment.scenario import ResultTable, Scenario
from mirrorode.experiment.work import Task, work
from mirrorode.flow.trajectory import write_atomically
from mirrorode.problem.errors import require
from mirrorode.theory.verdicts import Outcome, Verdicts

FIGURES = Path("figures")


def run(name: str, scenario: Scenario, device: str, out: Path, console: Console) -> bool:
    """Integrate, check, store and draw a scenario; whether no verdict failed.

    Runs that are stored with the same configuration are not integrated again, and one that was
    interrupted goes on from its checkpoint, so that the same command goes on where it was.
    """
    # The pieces of work are small: on a busy machine more threads wait for each other, threefold.
    torch.set_num_threads(1)
    # Bad input is refused before anything is written.
    usable(device)
    jobs = scenario.jobs(device)
    home = out / name
    store.writable(home, FIGURES)
    settings = store.configuration(scenario)
    with _progress(console) as progress:
        for job in jobs:
            row = progress.add_task(job.name, total=1.0, state="waiting")

            def show(share: float, state: str, row: TaskID = row) -> None:
                progress.update(row, completed=share, state=state)

            work(Task(name, settings, job), out, show)
            progress.update(row, completed=1.0)
    store.save_drawn(home, name, scenario)
    jobs = scenario.jobs("cpu")
    runs = store.load_runs(out, name, jobs)
    written = draw(name, scenario, runs, console)
    verdicts = {job.name: store.verdicts(place(out, name, job)) for job in jobs}
    passed = check(runs, verdicts, console)
    tell(written, console)
    return passed


def usable(device: str) -> None:
    """Require that ``device`` is there.

    Raises:
        InputError: if it is CUDA, and this machine or this build of torch has none.
    """
    fine = device != "cuda" or torch.cuda.is_available()
    require(fine, "device", "be cpu where there is no usable CUDA device", device)


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[state]}"),
    )
    return Progress(*columns, TimeElapsedColumn(), console=console)


def pictures(scenario: Scenario, runs: Mapping[str, Any], *kinds: str) -> dict[str, bytes]:
    """The figure of ``scenario``, drawn from stored runs, as the files of some kinds."""
    import matplotlib as mpl

    found = {}
    style = Path(__file__).with_name("paper.mplstyle")
    with mpl.rc_context(fname=str(style)):
        figure = scenario.figure(runs)
        for kind in kinds:
            file = io.BytesIO()
            # Without a date the same runs give the same file.
            dated = {"CreationDate": None} if kind == "pdf" else {}
            figure.savefig(file, format=kind, metadata=dated)
            found[kind] = file.getvalue()
    return found


def draw(name: str, scenario: Scenario, runs: Mapping[str, Any], console: Console) -> list[Path]:
    """Draw the figure and write the tables of ``scenario`` from stored runs; the paths written."""
    written = []
    for kind, content in pictures(scenario, runs, "png", "pdf").items():
        written.append(FIGURES / f"{name}.{kind}")
        write_atomically(written[-1], content)
    plotted = FIGURES / f"{name}.csv"
    write_atomically(plotted, scenario.plotted(runs).to_csv().encode())
    tables = scenario.tables(runs)
    for number, table in enumerate(tables, start=1):
        suffix = "" if number == 1 else f"_{number}"
        for ending, text in (("csv", table.to_csv()), ("md", table.to_markdown())):
            path = FIGURES / f"{name}_table{suffix}.{ending}"
            write_atomically(path, text.encode())
            written.append(path)
        console.print(shown(table))
    return [*written, plotted]


def tell(written: list[Path], console: Console) -> None:
    """Say which files were written."""
    console.print("wrote " + ", ".join(str(path) for path in written), soft_wrap=True)


def shown(table: ResultTable) -> Table:
    """A table for the terminal."""
    found = Table(title=table.title, box=box.SIMPLE_HEAD)
    for number, column in enumerate(table.columns):
        kind = table.kind(number)
        side: Literal["left", "right"] = "right" if kind == "number" else "left"
        found.add_column(column, justify=side, no_wrap=kind != "text", overflow="fold")
    for row in table.rows:
        found.add_row(*row)
    return found


def check(runs: Mapping[str, Any], verdicts: Mapping[str, Verdicts], console: Console) -> bool:
    """Print how the runs ended and the statements over all of them; whether none failed."""
    if not any(verdicts.values()):
        console.print("No trajectories are integrated here: there is no statement to check.")
        return True
    ended = Table(title="Runs", box=box.SIMPLE_HEAD)
    for column in ("run", "status", "log(1/loss)", "log t", "steps", "evals", "slides"):
        left = column in ("run", "status")
        ended.add_column(column, justify="left" if left else "right", no_wrap=True)
    for name, found in runs.items():
        stats = found.stats
        ended.add_row(
            name, found.status.name, f"{float(found.log_inverse_loss[-1]):.6g}",
            f"{float(found.log_time[-1]):.8g}", str(stats.steps), str(stats.evaluations),
            str(stats.slides),
        )  # fmt: skip
    console.print(ended)
    console.print(worst(verdicts).table())
    return all(found.passed for found in verdicts.values())


def worst(verdicts: Mapping[str, Verdicts]) -> Verdicts:
    """Of each statement, the verdict of the run where it holds by least, named in its detail."""
    order = (Outcome.FAILS, Outcome.NOT_YET, Outcome.HOLDS, Outcome.NOT_APPLICABLE)
    rows = Verdicts()
    for statement in zip(*verdicts.values(), strict=True):
        named = zip(verdicts, statement, strict=True)
        run, least = min(named, key=lambda pair: (order.index(pair[1].outcome), pair[1].slack))
        rows.append(replace(least, detail=f"{run}: {least.detail}"))
    return rows
