"""Run folders: ``run.json`` and ``trajectory.npz``, each there whole or not at all.

The name of a folder ends in a hash of all that decides the trajectory, the code included, so that
another setting or another version of the code never replaces or passes for what is stored.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from filelock import FileLock, Timeout

from mirrorode.experiment.keys import place, version
from mirrorode.experiment.scenario import Job, Scenario, load
from mirrorode.flow.checkpoint import set_aside
from mirrorode.flow.trajectory import Trajectory, write_atomically
from mirrorode.problem.errors import InputError, require
from mirrorode.theory.verdicts import Outcome, Verdict, Verdicts

RESULT = "trajectory.npz"
DRAWN = "drawn"  # beside the run folders of a scenario: what it was drawn with last
PACKAGES = ("mirrorode", "torch", "torchdiffeq", "numpy", "scipy")


def writable(*folders: Path) -> None:
    """Create ``folders``: all or none.

    Raises:
        InputError: if nothing can be written in one of them.
    """
    made: list[Path] = []
    for folder in folders:
        try:
            missing = [it for it in (folder, *folder.parents) if not it.exists()]
            for path in reversed(missing):
                path.mkdir(exist_ok=True)
                made.append(path)
            with TemporaryFile(dir=folder):
                pass
        except (OSError, ValueError) as error:
            for path in reversed(made):
                with suppress(OSError):  # another process may use it by now
                    path.rmdir()
            sentence = f"`out` must be a folder that can be written, but is {str(folder)!r}"
            raise InputError(f"{sentence} ({getattr(error, 'strerror', error)})") from None


def configuration(scenario: Scenario) -> dict[str, Any]:
    """The resolved fields of a scenario, as JSON has them."""
    assert is_dataclass(scenario)
    assert not isinstance(scenario, type)
    return json.loads(json.dumps(asdict(scenario)))


def save(folder: Path, name: str, settings: dict[str, Any], job: Job, result: Any) -> None:
    """Write one run; ``run.json`` last, so that its presence means a complete folder."""
    result.save(folder / RESULT)
    content = {
        **_head(name, job.name, settings),
        "code": version(job),
        "job": type(job).__name__,
        "made": job.identity(),
        "trajectory": _file_digest(folder / RESULT),
        **job.told(result),
    }
    write(folder, content)


def save_drawn(home: Path, name: str, scenario: Scenario) -> None:
    """Write what a scenario was drawn with last, to be drawn again."""
    folder = home / DRAWN
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, _head(name, DRAWN, configuration(scenario)))


def is_drawn(home: Path) -> bool:
    """Whether a scenario was drawn, from its folder."""
    return (home / DRAWN / "run.json").is_file()


def _head(name: str, run: str, settings: dict[str, Any]) -> dict[str, Any]:
    versions = {package: version_of(package) for package in PACKAGES}
    return {
        "scenario": name,
        "run": run,
        "configuration": settings,
        "versions": versions | {"python": platform.python_version()},
    }


def write(folder: Path, content: dict[str, Any]) -> None:
    """Write a ``run.json`` with a digest of its own, by which `record` sees that it is whole."""
    signed = content | {"digest": _digest(content)}
    text = json.dumps(signed, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / "run.json", text.encode())


def _digest(content: dict[str, Any]) -> str:
    """Of all that is told but the digest."""
    told = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    """Of a file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


@contextmanager
def claim(folder: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a run folder for this process; ``waiting`` is called if another process holds it."""
    locks = folder.parents[1] / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock, patience = FileLock(locks / f"{folder.parent.name}-{folder.name}"), 0.0
    while not lock.is_locked:
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            waiting()
            patience = 1.0
    try:
        yield
    finally:
        lock.release()


def begin(folder: Path) -> str:
    """Make the folder of a run that is not done; where a damaged one was set aside, its new name.

    One that was interrupted, between its last two files perhaps, has its checkpoint still.
    """
    holds = (folder / "run.json").exists() or (folder / RESULT).exists()
    aside = ""
    if (folder / "run.json").exists() or (holds and not checkpoint(folder).exists()):
        aside = set_aside(folder).name
    folder.mkdir(parents=True, exist_ok=True)
    for partial in folder.glob("*.partial"):  # of a process that was killed
        partial.unlink()
    return aside


def receive(folder: Path, job: Job, files: Mapping[str, bytes]) -> None:
    """Store the files of a run that was done elsewhere, the last of which makes it complete."""
    with claim(folder):
        if is_done(folder, job):
            return
        begin(folder)
        for name, content in files.items():
            write_atomically(folder / name, content)
        checkpoint(folder).unlink(missing_ok=True)


@dataclass(frozen=True)
class Stored:
    """What a run folder holds.

    Attributes:
        run: folder and name; scenario: that it was made by, and version of mirrorode: by which.
        state: complete, interrupted (there is a checkpoint), or damaged.
        status: how the run ended; log_inverse_loss: where; steps; seconds; each "" if not known.
        bytes: all files.
    """

    run: str
    scenario: str
    version: str
    state: str
    status: str
    log_inverse_loss: float | str
    steps: int | str
    seconds: float | str
    bytes: int


def listing(out: Path) -> list[Stored]:
    """All run folders below ``out``."""
    require(out.is_dir() or not out.exists(), "out", "be a folder", repr(str(out)))
    folders = {path.parent for path in out.glob("*/*/*") if path.is_file()}
    return [_listed(folder, out) for folder in sorted(folders)]


def _listed(folder: Path, out: Path) -> Stored:
    found = record(folder)
    whole = bool(found) if folder.name == DRAWN else _is_whole(folder, found)
    state = "complete" if whole else "damaged"
    if state == "damaged" and checkpoint(folder).exists():
        state = "interrupted"
    stats, versions, measured = (found.get(it, {}) for it in ("statistics", "versions", "measured"))
    return Stored(
        str(folder.relative_to(out)), found.get("scenario", ""), versions.get("mirrorode", ""),
        state, found.get("status", ""), measured.get("log_inverse_loss", ""),
        stats.get("steps", ""), stats.get("wall_seconds", ""),
        sum(map(_size, folder.iterdir())),
    )  # fmt: skip


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a running command has renamed it
        return 0


def checkpoint(folder: Path) -> Path:
    """The file from which an interrupted run goes on, in its folder."""
    return folder / "checkpoint"


def is_done(folder: Path, job: Job) -> bool:
    """Whether ``folder`` holds a complete run of this very job, every byte as it was written."""
    found = record(folder)
    return found.get("made") == job.identity() and _is_whole(folder, found)


def _is_whole(folder: Path, found: dict[str, Any]) -> bool:
    """Whether the trajectory is the one that ``run.json`` was written with."""
    return bool(found) and found.get("trajectory") == _file_digest(folder / RESULT)


def find(out: Path, name: str, job: Job) -> Path | None:
    """The folder of the newest complete run of a job, in any mode; by this code if there is one."""
    home = place(out, name, job).parent
    found = [path for path in home.glob(f"{job.name}-*") if is_done(path, job)]
    rank = {path: (_is_of(path, job), (path / "run.json").stat().st_mtime) for path in found}
    return max(found, key=lambda path: rank[path], default=None)


def _is_of(folder: Path, job: Job) -> bool:
    """Whether a run is by this version of the code."""
    return bool(record(folder).get("code") == version(job))


def of_other_code(out: Path, name: str, jobs: Sequence[Job]) -> list[str]:
    """The names of those jobs whose runs are stored by another version of the code only."""
    found = ((job, find(out, name, job)) for job in jobs)
    return [job.name for job, at in found if at is not None and not _is_of(at, job)]


def verdicts(folder: Path) -> Verdicts:
    """The verdicts that were stored with a run."""
    rows = record(folder)["verdicts"]
    return Verdicts(
        Verdict(
            row["statement"],
            Outcome(row["outcome"]),
            math.nan if row["slack"] is None else row["slack"],
            row["detail"],
        )
        for row in rows
    )


def record(folder: Path) -> dict[str, Any]:
    """What the ``run.json`` of a run says; empty where there is none, or not as it was written."""
    try:
        found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    whole = isinstance(found, dict) and found.get("digest") == _digest(found)
    return found if whole else {}


def configured(kind: type[Scenario], folder: Path) -> Scenario:
    """A scenario as it was drawn last, from its folder.

    Raises:
        InputError: if it was not, or by another version.
    """
    found = record(folder / DRAWN).get("configuration")
    if not isinstance(found, dict):
        raise InputError(f"`NAME` must have stored runs, but {folder} holds none: run it first")
    try:
        return kind(**found)
    except TypeError:
        sentence = f"`NAME` must have runs of this version, but those in {folder} have other fields"
        raise InputError(sentence) from None


def load_runs(out: Path, name: str, jobs: Sequence[Job]) -> dict[str, Any]:
    """The stored results of ``jobs``, those of scenario ``name``, by their own names.

    Raises:
        InputError: if one is not there or is damaged.
    """
    places = require_stored(out, name, jobs)
    return {job.name: job.load(places[job.name] / RESULT) for job in jobs}


def require_stored(out: Path, name: str, jobs: Sequence[Job]) -> dict[str, Path]:
    """The folders of the runs of ``jobs``, by their names.

    Raises:
        InputError: if one is not there or is damaged.
    """
    places = {job.name: find(out, name, job) for job in jobs}
    missing = ", ".join(it for it, path in places.items() if path is None)
    if missing:
        raise InputError(f"`NAME` must have all its runs stored, but {missing} must be run (again)")
    return {it: path for it, path in places.items() if path}


def load_run(folder: Path) -> Any:
    """The result in one run folder, by its scenario if it cannot be read without.

    Raises:
        InputError: if it is damaged, or its scenario does not say what it is.
    """
    found, path = record(folder), folder / RESULT
    fine = _is_whole(folder, found) or not (folder / "run.json").exists()
    require(fine, "RUN_DIR", "be the folder of a complete run", f"{folder}, which is damaged")
    network = found.get("flow", {}).get("network", "")
    if found.get("job", "Integration") == "Integration" and not network.startswith("Network("):
        return Trajectory.load(path)
    try:
        chosen = load(found["scenario"])(**found["configuration"])
        jobs = {job.name: job for job in chosen.jobs("cpu")}
        return jobs[found["run"]].load(path)
    except (LookupError, TypeError):
        sentence = f"`NAME` must have a run.json of this version, but {folder} has another"
        raise InputError(sentence) from None
