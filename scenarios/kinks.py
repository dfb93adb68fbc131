"""The life of the kinks of two-layer students: what happens at them, against log t.

Crossings, slides, exits and captures up to log t, and how many pairs of a sample and a neuron slide
at a time; the paper steps through them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mirrorode.experiment.figures import colour, label
from mirrorode.experiment.paper import POTENTIALS
from mirrorode.experiment.scenario import ResultTable
from mirrorode.experiment.students import Runs, Students, of
from mirrorode.flow.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUN_TIME = "1 min"

KINDS = {"cross": "-", "slide": "--", "exit": ":", "capture": "-."}
FIRST = -2.0  # log t of the left end
PHASES = (("log t < 5", -np.inf, 5.0), ("5 to 100", 5.0, 100.0), ("beyond", 100.0, np.inf))


@dataclass(frozen=True)
class Kinks(Students):
    """What can be changed."""

    two = tuple(POTENTIALS)

    def figure(self, runs: Runs) -> Figure:
        """Events so far above, pairs that slide below, one column a potential."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import FixedLocator

        figure = Figure(figsize=(6.9, 4.0), layout="constrained")
        axes = figure.subplots(2, 3, sharex=True, sharey="row", height_ratios=(1.4, 1))
        for number, name in enumerate(POTENTIALS):
            run = of(runs, 2, name)[0]
            shade = colour(run.flow.potential)
            for kind, style in KINDS.items():
                times, count = _so_far(run, kind)
                axes[0, number].step(times, count, style, where="post", color=shade, label=kind)
            times, count = _sliding(run)
            axes[1, number].step(times, count, where="post", color=shade)
            axes[0, number].set(title=label(run.flow.potential), yscale="symlog")
            axes[1, number].set(xlabel=r"$\log t$")
            axes[1, number].set_xscale("symlog", linthresh=5.0)
            axes[1, number].xaxis.set_major_locator(FixedLocator([0, 1e1, 1e3, 1e5, 1e7, 1e9]))
            axes[0, number].set_ylim(bottom=0)
            axes[1, number].set_ylim(bottom=0)
        axes[0, 0].set_ylabel("events so far")
        axes[1, 0].set_ylabel("pairs that slide")
        axes[0, 0].legend(loc="center right", fontsize=6)
        return figure

    def tables(self, runs: Runs) -> list[ResultTable]:
        """Events by kind and phase."""
        rows = []
        for name in POTENTIALS:
            run = of(runs, 2, name)[0]
            for kind in sorted({event.kind for event in run.events}):
                times = np.array([it.log_time for it in run.events if it.kind == kind])
                counts = [int(((times >= low) & (times < high)).sum()) for _, low, high in PHASES]
                rows.append((label(run.flow.potential), kind, *map(str, counts)))
            sliding = int(_sliding(run)[1][-1])
            rows.append((label(run.flow.potential), "sliding at the end", "", "", str(sliding)))
        columns = ("potential", "event", *(name for name, *_ in PHASES))
        return [ResultTable("Events at kinks of student seed 0, by log t", columns, tuple(rows))]

    def plotted(self, runs: Runs) -> ResultTable:
        """Every event."""
        rows = [
            (name, event.kind, f"{event.log_time:.8g}", f"{event.log_inverse_loss:.8g}",
             str(event.unit), str(event.sample))
            for name, run in runs.items()
            for event in run.events
        ]  # fmt: skip
        columns = ("run", "kind", "log_time", "log_inverse_loss", "neuron", "sample")
        return ResultTable("Events", columns, tuple(rows))


Steps = tuple[np.ndarray, np.ndarray]


def _so_far(run: Trajectory, kind: str) -> Steps:
    """log t and the number of events of a kind up to it."""
    return _steps(run, [(it.log_time, 1) for it in run.events if it.kind == kind])


def _sliding(run: Trajectory) -> Steps:
    """log t and the number of pairs that slide."""
    change = {"slide": 1, "exit": -1}
    return _steps(run, [(it.log_time, change.get(it.kind, 0)) for it in run.events])


def _steps(run: Trajectory, changes: list[tuple[float, int]]) -> Steps:
    ordered = sorted(changes)
    times = np.array([FIRST, *(max(time, FIRST) for time, _ in ordered), float(run.log_time[-1])])
    counts = np.cumsum([0, *(count for _, count in ordered), 0])
    return times, counts


SCENARIO = Kinks
