"""One job: compute it unless it is stored, check it, store it. Any process may do it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirrorode.experiment import store
from mirrorode.experiment.keys import place
from mirrorode.experiment.scenario import Job, Show


@dataclass(frozen=True)
class Task:
    """One job to be done.

    Attributes:
        name: its scenario.
        settings: the configuration of that, which is stored along.
        job: what is to be stored.
    """

    name: str
    settings: dict[str, Any]
    job: Job


def work(task: Task, out: Path, show: Show) -> Path:
    """Store the result of a task below ``out``, unless it is there; its folder.

    An interrupted one goes on from its checkpoint. Of several processes with the same task one
    computes it and the others wait.
    """
    job, folder = task.job, place(out, task.name, task.job)
    with store.claim(folder, lambda: show(0.0, "another process computes it")):
        if store.is_done(folder, job):
            show(1.0, "stored before")
            return folder
        aside = store.begin(folder)
        damaged = f"a damaged run is kept as {aside}; " if aside else ""
        checkpoint = store.checkpoint(folder)
        result = job.compute(checkpoint, lambda share, state: show(share, damaged + state))
        store.save(folder, task.name, task.settings, job, result)
        checkpoint.unlink(missing_ok=True)
    return folder
