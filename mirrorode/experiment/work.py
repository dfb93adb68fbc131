"""One trajectory: integrate it unless it is stored, check it, store it. Any process may do it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirrorode.experiment import store
from mirrorode.experiment.keys import place
from mirrorode.experiment.scenario import Job
from mirrorode.flow.solve import solve
from mirrorode.flow.stopping import LogInverseLoss
from mirrorode.flow.trajectory import Stats, Trajectory
from mirrorode.theory.verify import verify

Show = Callable[[float, str], None]
"""Called with the share that is done and a line about where it is."""


@dataclass(frozen=True)
class Task:
    """One trajectory to be stored.

    Attributes:
        name: its scenario.
        settings: the configuration of that, which is stored along.
        job: the trajectory.
    """

    name: str
    settings: dict[str, Any]
    job: Job


def work(task: Task, out: Path, show: Show) -> Path:
    """Store the trajectory of a task below ``out``, unless it is there; its folder.

    An interrupted one goes on from its checkpoint. Of several processes with the same task one
    integrates and the others wait for it.
    """
    job, folder = task.job, place(out, task.name, task.job)
    with store.claim(folder, lambda: show(0.0, "another process integrates it")):
        if store.is_done(folder, job):
            show(1.0, "stored before")
            return folder
        aside = store.set_aside(folder)
        damaged = f"a damaged run is kept as {aside.name}; " if aside else ""
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = store.checkpoint(folder)
        run = _integrate(job, checkpoint, lambda share, state: show(share, damaged + state))
        store.save(folder, task.name, task.settings, job, run, verify(run))
        checkpoint.unlink(missing_ok=True)
    return folder


def _integrate(job: Job, checkpoint: Path, show: Show) -> Trajectory:
    start = float(job.flow.log_inverse_loss(job.theta0))

    def share(loss: float) -> float:
        # Early and late phase take about half of the time each; late, decades count.
        if not isinstance(job.until, LogInverseLoss):
            return 0.0
        early = min(1.0, (loss - start) / max(1.0, 2.0 - start))
        return 0.9 * early + (0.1 if loss >= job.until.v else 0.0)

    def tell(log_time: float, loss: float, stats: Stats) -> None:
        show(
            share(loss),
            f"log(1/loss) {loss:.5g}, log t {log_time:.5g}, {stats.steps} steps, "
            f"{stats.events} events",
        )

    found = solve(
        job.flow, job.theta0, until=job.until, saveat=job.saveat, rtol=job.rtol,
        atol=0.01 * job.rtol, checkpoint=checkpoint, progress=tell,
    )  # fmt: skip
    assert isinstance(found, Trajectory)
    return found
