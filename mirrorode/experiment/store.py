"""Run folders: ``run.json`` and ``trajectory.npz``, each there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from mirrorode.experiment.scenario import Job, Scenario, load
from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.flow.trajectory import Trajectory, write_atomically
from mirrorode.problem.errors import InputError
from mirrorode.problem.modules import Network
from mirrorode.theory.verdicts import Outcome, Verdict, Verdicts

PACKAGES = ("mirrorode", "torch", "torchdiffeq", "numpy", "scipy")


def writable(folder: Path) -> Path:
    """Create ``folder``.

    Raises:
        InputError: if nothing can be written there.
    """
    probe = folder / ".probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        sentence = f"`out` must be a folder that can be written, but is {folder}"
        raise InputError(f"{sentence} ({error.strerror or error})") from None
    return folder


def configuration(scenario: Scenario) -> dict[str, Any]:
    """The resolved fields of a scenario, as JSON has them."""
    assert is_dataclass(scenario)
    assert not isinstance(scenario, type)
    return json.loads(json.dumps(asdict(scenario)))


def save(
    folder: Path, name: str, scenario: Scenario, job: Job, run: Trajectory, verdicts: Verdicts
) -> None:
    """Write one run; ``run.json`` last, so that its presence means a complete folder."""
    folder.mkdir(parents=True, exist_ok=True)
    run.save(folder / "trajectory.npz")
    content = {
        **_head(name, job.name, scenario),
        "made": identity(job),
        "flow": {
            "network": repr(job.flow.network),
            "dataset": repr(job.flow.dataset),
            "potential": repr(job.flow.potential),
        },
        "until": repr(job.until),
        "rtol": job.rtol,
        "status": run.status.name,
        "message": run.message,
        "statistics": asdict(run.stats) | {"evaluations": run.stats.evaluations},
        "log_time": float(run.log_time[-1]),
        "log_inverse_loss": float(run.log_inverse_loss[-1]),
        "verdicts": json.loads(verdicts.to_json()),
    }
    _write(folder, content)


def save_drawn(home: Path, name: str, scenario: Scenario) -> None:
    """Write what a scenario without trajectories of its own was drawn with, to be drawn again."""
    folder = home / "drawn"
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, _head(name, "drawn", scenario))


def _head(name: str, run: str, scenario: Scenario) -> dict[str, Any]:
    versions = {package: version(package) for package in PACKAGES}
    return {
        "scenario": name,
        "run": run,
        "configuration": configuration(scenario),
        "versions": versions | {"python": platform.python_version()},
    }


def _write(folder: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / "run.json", text.encode())


def place(out: Path, name: str, job: Job) -> Path:
    """The folder of a run of scenario ``name``."""
    return out / (job.study or name) / job.name


def identity(job: Job) -> dict[str, Any]:
    """All that a trajectory depends on, for which scenarios that share it compare it."""
    data = job.flow.dataset
    tensors = (data.x, data.y, job.theta0)
    content = hashlib.sha256(b"".join(it.detach().cpu().numpy().tobytes() for it in tensors))
    return {
        "network": repr(job.flow.network),
        "potential": repr(job.flow.potential),
        "samples and start": content.hexdigest(),
        "until": repr(job.until),
        "saveat": None if job.saveat is None else [repr(rule) for rule in job.saveat],
        "rtol": job.rtol,
    }


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
    folders = {path.parent for path in out.glob("*/*/*") if path.is_file()}
    return [_listed(folder, out) for folder in sorted(folders)]


def _listed(folder: Path, out: Path) -> Stored:
    found = record(folder)
    whole = "made" in found and is_zipfile(folder / "trajectory.npz")
    state = "complete" if whole or (found and folder.name == "drawn") else "damaged"
    if state == "damaged" and any(folder.glob("checkpoint-*")):
        state = "interrupted"
    stats, versions = found.get("statistics", {}), found.get("versions", {})
    return Stored(
        str(folder.relative_to(out)), found.get("scenario", ""), versions.get("mirrorode", ""),
        state, found.get("status", ""), found.get("log_inverse_loss", ""), stats.get("steps", ""),
        stats.get("wall_seconds", ""), sum(it.stat().st_size for it in folder.iterdir()),
    )  # fmt: skip


def checkpoint(folder: Path, job: Job) -> Path:
    """The file from which an interrupted run goes on, in its folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = hashlib.sha256(repr(identity(job)).encode()).hexdigest()[:8]
    return folder / f"checkpoint-{mark}"


def is_done(folder: Path, scenario: Scenario, job: Job) -> bool:
    """Whether ``folder`` holds a complete run of this very configuration."""
    found = record(folder)
    stored = found.get("configuration")
    if not isinstance(stored, dict) or not is_zipfile(folder / "trajectory.npz"):
        return False
    if job.study:
        return bool(found.get("made") == identity(job))
    # Which seeds are asked for does not change what one of them gives.
    wanted = configuration(scenario)
    return {**stored, "seeds": None} == {**wanted, "seeds": None}


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
    """What the ``run.json`` of a run says; empty where there is none, or a damaged one."""
    try:
        found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def stored_configuration(folder: Path) -> dict[str, Any]:
    """The scenario fields that the last run below ``folder`` was made with.

    Raises:
        InputError: if there are none.
    """
    paths = sorted(folder.glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    for path in reversed(paths):
        configuration = record(path.parent).get("configuration")
        if isinstance(configuration, dict):
            return configuration
    raise InputError(f"`NAME` must have stored runs, but {folder} holds none: run it first")


def configured(kind: type[Scenario], folder: Path) -> Scenario:
    """A scenario as the last run below ``folder`` was made.

    Raises:
        InputError: if there is none, or it is one of another version.
    """
    try:
        return kind(**stored_configuration(folder))
    except TypeError:
        sentence = f"`NAME` must have runs of this version, but those in {folder} have other fields"
        raise InputError(sentence) from None


def load_runs(out: Path, name: str, scenario: Scenario, jobs: list[Job]) -> dict[str, Trajectory]:
    """The stored trajectories of ``jobs``, those of scenario ``name``, by their own names.

    Raises:
        InputError: if one is not there, is damaged, or was made with another configuration.
    """
    places = {job.name: place(out, name, job) for job in jobs}
    missing = [job.name for job in jobs if not is_done(places[job.name], scenario, job)]
    if missing:
        names = ", ".join(missing)
        raise InputError(f"`NAME` must have all its runs stored, but {names} must be run (again)")
    return {
        job.name: Trajectory.load(places[job.name] / "trajectory.npz", _not_stored(job.flow))
        for job in jobs
    }


def load_run(folder: Path) -> Trajectory:
    """The trajectory in one run folder, with the flow of its scenario if it does not hold its own.

    Raises:
        InputError: if it is damaged, or its scenario does not say which flow it is of.
    """
    found, path = record(folder), folder / "trajectory.npz"
    flow = found.get("flow")
    described = flow.get("network", "") if isinstance(flow, dict) else ""
    if not str(described).startswith("Network("):
        return Trajectory.load(path)
    try:
        chosen = load(found["scenario"])(**found["configuration"])
    except (LookupError, TypeError):
        sentence = f"`NAME` must have a run.json of this version, but {folder} has another"
        raise InputError(sentence) from None
    flows = {job.name: job.flow for job in chosen.jobs("cpu")}
    return Trajectory.load(path, flows.get(found["run"]))


def _not_stored(flow: MirrorFlow) -> MirrorFlow | None:
    """The flow, if a trajectory file cannot hold it: a module is code."""
    return flow if isinstance(flow.network, Network) else None
