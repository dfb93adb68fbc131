"""Run folders: ``run.json`` and ``trajectory.npz``, each there whole or not at all."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from mirrorode.experiment.scenario import Job, Scenario
from mirrorode.flow.trajectory import Trajectory, write_atomically
from mirrorode.problem.errors import InputError
from mirrorode.theory.verdicts import Verdicts

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
    record = {
        "scenario": name,
        "run": job.name,
        "configuration": configuration(scenario),
        "flow": {
            "network": repr(job.flow.network),
            "dataset": repr(job.flow.dataset),
            "potential": repr(job.flow.potential),
        },
        "until": repr(job.until),
        "rtol": job.rtol,
        "versions": {package: version(package) for package in PACKAGES}
        | {"python": platform.python_version()},
        "status": run.status.name,
        "message": run.message,
        "statistics": asdict(run.stats) | {"evaluations": run.stats.evaluations},
        "log_time": float(run.log_time[-1]),
        "log_inverse_loss": float(run.log_inverse_loss[-1]),
        "verdicts": json.loads(verdicts.to_json()),
    }
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / "run.json", text.encode())


def is_done(folder: Path, scenario: Scenario) -> bool:
    """Whether ``folder`` holds a complete run of this very configuration."""
    stored = _record(folder / "run.json").get("configuration")
    if not isinstance(stored, dict) or not is_zipfile(folder / "trajectory.npz"):
        return False
    # Which seeds are asked for does not change what one of them gives.
    wanted = configuration(scenario)
    return {**stored, "seeds": None} == {**wanted, "seeds": None}


def _record(path: Path) -> dict[str, Any]:
    """The content of a ``run.json``; empty where there is none, or a damaged one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
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
        configuration = _record(path).get("configuration")
        if isinstance(configuration, dict):
            return configuration
    raise InputError(f"`NAME` must have stored runs, but {folder} holds none: run it first")


def load_runs(folder: Path, scenario: Scenario, jobs: list[Job]) -> dict[str, Trajectory]:
    """The stored trajectories of ``jobs`` by name.

    Raises:
        InputError: if one is not there, is damaged, or was made with another configuration.
    """
    missing = [job.name for job in jobs if not is_done(folder / job.name, scenario)]
    if missing:
        names = ", ".join(missing)
        raise InputError(f"`NAME` must have all its runs stored, but {names} must be run (again)")
    return {job.name: Trajectory.load(folder / job.name / "trajectory.npz") for job in jobs}
