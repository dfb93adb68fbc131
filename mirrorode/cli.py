"""The command line. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mirrorode import __version__
from mirrorode.problem.errors import InputError

RUNS = Path("runs")


@dataclass(frozen=True)
class ListScenarios:
    """Every scenario: name, what of the paper it regenerates, typical run time."""

    runs: bool = False
    """List what is stored instead, and whether it is complete."""
    out: Path = RUNS
    """Where runs are stored."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True)
class Run:
    """Integrate a scenario, check the theorems, store the runs, draw the figure and the tables."""

    name: tyro.conf.Positional[str]
    """Which; `mirrorode run NAME --help` shows what of it can be changed."""


@dataclass(frozen=True)
class Check:
    """Theorem verdicts of stored runs, as a table; exit code 1 if one fails."""

    target: tyro.conf.Positional[str]
    """A scenario, or the folder of one run."""
    out: Path = RUNS
    """Where runs are stored."""
    json: bool = False
    """Print JSON, every verdict of every run, instead of tables."""


@dataclass(frozen=True)
class Figures:
    """Redraw figures and tables from stored runs; never integrates."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Which scenarios; all that have stored runs if none is named."""
    out: Path = RUNS
    """Where runs are stored."""


@dataclass(frozen=True)
class Report:
    """One HTML page of all stored runs that works offline: verdicts, figures, tables, costs."""

    out: Path = RUNS
    """Where runs are stored."""
    page: Path = Path("report.html")
    """The file to write."""


@dataclass(frozen=True)
class RunOptions:
    """How to run."""

    quick: bool = False
    """Fewer seeds: the same picture in a minute or two."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to integrate."""
    out: Path = field(default=RUNS)
    """Where to store the runs."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the ``mirrorode`` command."""
    argv = sys.argv[1:] if arguments is None else arguments
    try:
        code = _dispatch(argv)
    except InputError as error:
        print(f"mirrorode: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print(
            "mirrorode: interrupted; finished runs are kept, the same command goes on",
            file=sys.stderr,
        )
        code = 130
    sys.exit(code)


def _dispatch(argv: list[str]) -> int:
    if argv[:1] == ["--version"]:
        print(f"mirrorode {__version__}")
        return 0
    if len(argv) > 1 and argv[0] == "run" and not argv[1].startswith("-"):
        return _run(argv[1], argv[2:])
    commands = (
        Annotated[ListScenarios, tyro.conf.subcommand("list")]
        | Annotated[Run, tyro.conf.subcommand("run")]
        | Annotated[Check, tyro.conf.subcommand("check")]
        | Annotated[Figures, tyro.conf.subcommand("figures")]
        | Annotated[Report, tyro.conf.subcommand("report")]
    )
    command = tyro.cli(
        commands,
        args=argv,
        prog="mirrorode",
        description="Mirror flows, and the paper's statements along them.",
    )
    if isinstance(command, ListScenarios):
        return _list(command)
    if isinstance(command, Check):
        return _check(command)
    if isinstance(command, Figures):
        return _figures(command)
    if isinstance(command, Report):
        return _report(command)
    raise InputError("`NAME` must come right after `run`, but is missing")


def _list(command: ListScenarios) -> int:
    from rich.console import Console
    from rich.table import Table

    from mirrorode.experiment import scenario

    if command.runs:
        return _list_runs(command)
    found = scenario.entries()
    if command.json:
        rows = [{"name": e.name, "title": e.title, "run_time": e.run_time} for e in found]
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return 0
    table = Table("name", "regenerates", "run time")
    for entry in found:
        table.add_row(entry.name, entry.title, entry.run_time)
    Console().print(table)
    return 0


def _list_runs(command: ListScenarios) -> int:
    from rich.console import Console
    from rich.table import Table

    from mirrorode.experiment import store

    found = store.listing(command.out)
    if command.json:
        print(json.dumps([asdict(one) for one in found], ensure_ascii=False, indent=1))
        return 0
    table = Table("run", "made by", "state", "status", "log(1/loss)", "steps", "seconds", "MB")
    for one in found:
        loss, seconds = (
            it if isinstance(it, str) else f"{it:.5g}" for it in (one.log_inverse_loss, one.seconds)
        )
        table.add_row(
            one.run, one.scenario, one.state, one.status, loss, str(one.steps), seconds,
            f"{one.bytes / 1e6:.1f}",
        )  # fmt: skip
    Console().print(table)
    return 0


def _run(name: str, argv: list[str]) -> int:
    from rich.console import Console

    from mirrorode.experiment import scenario

    kind = scenario.load(name)
    default = kind()
    default = default.quick() if "--quick" in argv else default
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)

    parts = [("run", RunOptions, RunOptions()), (name, kind, default)]
    together: Any = make_dataclass("Arguments", parts, frozen=True)
    chosen = tyro.cli(together, args=argv, prog=f"mirrorode run {name}", config=config)
    options: RunOptions = chosen.run
    from mirrorode.experiment import run

    return 0 if run.run(name, getattr(chosen, name), options.device, options.out, Console()) else 1


def _check(command: Check) -> int:
    from rich.console import Console

    from mirrorode.experiment import run, scenario, store
    from mirrorode.theory.verify import verify

    folder = Path(command.target)
    if (folder / "trajectory.npz").is_file():
        runs = {folder.name: store.load_run(folder)}
    else:
        kind, home = scenario.load(command.target), command.out / command.target
        chosen = store.configured(kind, home)
        runs = store.load_runs(command.out, command.target, chosen, chosen.jobs("cpu"))
    verdicts = {name: verify(found) for name, found in runs.items()}
    if not command.json:
        return 0 if run.check(runs, verdicts, Console()) else 1
    rows = {name: found.rows() for name, found in verdicts.items()}
    print(json.dumps(rows, ensure_ascii=False, indent=1))
    return 0 if all(found.passed for found in verdicts.values()) else 1


def _figures(command: Figures) -> int:
    from rich.console import Console

    from mirrorode.experiment import run, scenario, store

    names = command.names or [
        entry.name
        for entry in scenario.entries()
        if any((command.out / entry.name).glob("*/run.json"))
    ]
    if not names:
        raise InputError(f"`out` must hold stored runs, but {command.out} holds none")
    store.writable(run.FIGURES)
    for name in names:
        kind, home = scenario.load(name), command.out / name
        chosen = store.configured(kind, home)
        runs = store.load_runs(command.out, name, chosen, chosen.jobs("cpu"))
        run.tell(run.draw(name, chosen, runs, Console()), Console())
    return 0


def _report(command: Report) -> int:
    from rich.console import Console

    from mirrorode.experiment import report

    report.write(command.out, command.page, Console())
    print(f"wrote {command.page}")
    return 0
