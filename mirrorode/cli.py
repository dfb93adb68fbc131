"""The command line. Heavy imports wait until a command needs them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import threading
from dataclasses import asdict, dataclass, field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import tyro

from mirrorode import __version__
from mirrorode.arguments import parsed
from mirrorode.problem.errors import InputError

if TYPE_CHECKING:
    from mirrorode.experiment.scenario import Scenario

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

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Which; `mirrorode run NAME --help` shows what of it can be changed."""


@dataclass(frozen=True)
class Sweep:
    """Integrate a scenario at every point of a grid of its fields, on all cores or on a cluster."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Which; `mirrorode sweep NAME --help` shows what of it can be swept."""


@dataclass(frozen=True)
class Check:
    """Theorem verdicts of stored runs, as a table; exit code 1 if one fails."""

    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME|RUN_DIR")]
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


@dataclass(frozen=True)
class SweepOptions:
    """What to sweep, and where."""

    grid: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Values of a field: lam=1e-4,1e-2,1 or seed=0:6 (0 to 5); once for each field of the grid."""
    cluster: str = ""
    """Address of a running Dask scheduler; processes of this machine if empty."""
    workers: int = os.cpu_count() or 1
    """Processes of this machine, one thread each."""
    quick: bool = False
    """Start from the smaller variant of the scenario."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to integrate."""
    out: Path = field(default=RUNS)
    """Where to store the runs."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the ``mirrorode`` command."""
    argv = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # Greek letters, on any terminal
            stream.reconfigure(errors="replace")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = _dispatch(argv)
    except InputError as error:
        print(f"mirrorode: {error}", file=sys.stderr)
        code = 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"mirrorode: {where}{error.strerror or error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print(
            "mirrorode: interrupted; finished runs are kept, the same command goes on",
            file=sys.stderr,
        )
        code = 130
    sys.exit(code)


def _interrupt(*_: object) -> None:
    """End as by ctrl-C: what has been computed is kept and told."""
    raise KeyboardInterrupt


def _dispatch(argv: list[str]) -> int:
    if argv[:1] == ["--version"]:
        print(f"mirrorode {__version__}")
        return 0
    if len(argv) > 1 and argv[0] in ("run", "sweep") and argv[1] not in ("-h", "--help"):
        if argv[1].startswith("-"):
            raise InputError(f"`NAME` must come right after `{argv[0]}`, but is {argv[1]!r}")
        return (_run if argv[0] == "run" else _sweep)(argv[1], argv[2:])
    commands = (
        Annotated[ListScenarios, tyro.conf.subcommand("list")]
        | Annotated[Run, tyro.conf.subcommand("run")]
        | Annotated[Sweep, tyro.conf.subcommand("sweep")]
        | Annotated[Check, tyro.conf.subcommand("check")]
        | Annotated[Figures, tyro.conf.subcommand("figures")]
        | Annotated[Report, tyro.conf.subcommand("report")]
    )
    command = parsed(
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
    raise AssertionError(command)


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
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from mirrorode.experiment import store

    found = store.listing(command.out)
    if command.json:
        print(json.dumps([asdict(one) for one in found], ensure_ascii=False, indent=1))
        return 0
    table = Table("run", "state", "status", "log(1/loss)", "steps", "s", "MB", box=box.SIMPLE_HEAD)
    table.columns[0].overflow = "fold"
    for one in found:
        loss, seconds = (
            it if isinstance(it, str) else f"{it:.4g}" for it in (one.log_inverse_loss, one.seconds)
        )
        size = f"{one.bytes / 1e6:.1f}"
        table.add_row(one.run, one.state, one.status, loss, str(one.steps), seconds, size)
    Console().print(table)
    return 0


def _run(name: str, argv: list[str]) -> int:
    from rich.console import Console

    options, chosen = _chosen("run", RunOptions(), name, argv)
    from mirrorode.experiment import run

    return 0 if run.run(name, chosen, options.device, options.out, Console()) else 1


def _sweep(name: str, argv: list[str]) -> int:
    from rich.console import Console

    options, base = _chosen("sweep", SweepOptions(), name, argv)
    from mirrorode.experiment import sweep

    def typed(field: str, texts: list[str]) -> list[Any]:
        kind = get_type_hints(type(base))[field]

        def read(form: Any, words: list[str]) -> Any:
            axis: Any = make_dataclass("Axis", [(field, form)])
            return getattr(parsed(axis, args=words, prog=f"mirrorode sweep {name}"), field)

        try:
            return list(read(tuple.__class_getitem__((kind, ...)), [f"--{field}", *texts]))
        except InputError:  # slower, and it says which
            return [read(kind, [f"--{field}={text}"]) for text in texts]

    grid = sweep.points(type(base), options.grid, typed)
    chosen = sweep.Sweep.of(name, base, grid, options.device, options.out)
    fine = sweep.sweep(chosen, options.out, options.workers, options.cluster, Console())
    return 0 if fine else 1


def _chosen(command: str, options: Any, name: str, argv: list[str]) -> tuple[Any, Scenario]:
    """The options of a command and the fields of a scenario, as told on the command line."""
    from mirrorode.experiment import scenario

    kind = scenario.load(name)
    default = kind()
    default = default.quick() if "--quick" in argv else default
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    parts = [(command, type(options), options), (name, kind, default)]
    together: Any = make_dataclass("Arguments", parts, frozen=True)
    chosen = parsed(together, args=argv, prog=f"mirrorode {command} {name}", config=config)
    return getattr(chosen, command), getattr(chosen, name)


def _check(command: Check) -> int:
    from rich.console import Console

    from mirrorode.experiment import run, scenario, store
    from mirrorode.flow.trajectory import Trajectory
    from mirrorode.theory.verdicts import Verdicts
    from mirrorode.theory.verify import verify

    folder, is_run = Path(command.target), False
    with contextlib.suppress(OSError):  # a name that no folder can have
        is_run = (folder / "trajectory.npz").is_file()
    if is_run:
        runs = {folder.name: store.load_run(folder)}
    else:
        kind, home = scenario.load(command.target), command.out / command.target
        chosen = store.configured(kind, home)
        runs = _stored(command.out, command.target, chosen)
    verdicts = {
        name: verify(found) if isinstance(found, Trajectory) else Verdicts()
        for name, found in runs.items()
    }
    if not command.json:
        return 0 if run.check(runs, verdicts, Console()) else 1
    rows = {name: found.rows() for name, found in verdicts.items()}
    print(json.dumps(rows, ensure_ascii=False, indent=1))
    return 0 if all(found.passed for found in verdicts.values()) else 1


def _figures(command: Figures) -> int:
    from rich.console import Console

    from mirrorode.experiment import run, scenario, store

    names = command.names or [
        entry.name for entry in scenario.entries() if store.is_drawn(command.out / entry.name)
    ]
    if not names:
        raise InputError(f"`out` must hold stored runs, but {command.out} holds none")
    chosen = {it: store.configured(scenario.load(it), command.out / it) for it in names}
    for name, found in chosen.items():
        store.require_stored(command.out, name, found.jobs("cpu"))
    store.writable(run.FIGURES)
    for name, found in chosen.items():
        runs = _stored(command.out, name, found)
        run.tell(run.draw(name, found, runs, Console()), Console())
    return 0


def _stored(out: Path, name: str, chosen: Scenario) -> dict[str, Any]:
    """The stored runs of a scenario; those by another version of the code are named."""
    from mirrorode.experiment import store

    jobs = chosen.jobs("cpu")
    runs = store.load_runs(out, name, jobs)
    if others := store.of_other_code(out, name, jobs):
        sentence = f"mirrorode: by another version of the code: {', '.join(others)} of {name}"
        print(sentence, file=sys.stderr)
    return runs


def _report(command: Report) -> int:
    from rich.console import Console

    from mirrorode.experiment import report

    report.write(command.out, command.page, Console())
    print(f"wrote {command.page}")
    return 0
