"""The life of the kinks of students: what happens at them, against log t.

Crossings, slides, exits and captures up to log t, and how many pairs of a sample and a neuron slide
at a time; the paper steps through them.
"""

from __future__ import annotations

import itertools
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
    from matplotlib.lines import Line2D

RUN_TIME = "1 min"

KINDS = {"cross": "-", "slide": "--", "exit": ":", "capture": "-."}
LAYERS = {"2 layers": ":", "3 layers": "-"}
FIRST = -2.0  # log t of the left end
PHASES = (("log t < 5", -np.inf, 5.0), ("5 to 100", 5.0, 100.0), ("beyond", 100.0, np.inf))


@dataclass(frozen=True)
class Kinks(Students):
    """What can be changed."""

    two = tuple(POTENTIALS)
    three = tuple(POTENTIALS)

    def figure(self, runs: Runs) -> Figure:
        """Events so far of two and three layers, and pairs that slide; one column a potential."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.9, 5.2), layout="constrained")
        axes = figure.subplots(3, 3, sharex=True, sharey="row")
        for number, name in enumerate(POTENTIALS):
            for row, layers in enumerate((2, 3)):
                run = of(runs, layers, name)[0]
                shade = colour(run.flow.potential)
                for kind, style in KINDS.items():
                    axes[row, number].step(*_so_far(run, kind), style, where="post", color=shade)
                below = LAYERS[f"{layers} layers"]
                axes[2, number].step(*_sliding(run), below, where="post", color=shade)
            axes[0, number].set_title(label(POTENTIALS[name]))
            axes[2, number].set_xlabel(r"$\log t$")
        for row, text in enumerate(
            ("events so far,\ntwo layers", "events so far,\nthree layers", "pairs that slide")
        ):
            axes[row, 0].set(ylabel=text, yscale="symlog")
            axes[row, 0].set_ylim(bottom=0)
        axes[0, 0].set_xscale("symlog", linthresh=5.0)
        axes[0, 0].set(xticks=[0, 1e1, 1e3, 1e5, 1e7, 1e9], xlim=(FIRST, self.limit))
        figure.legend(handles=_key(KINDS), loc="outside upper center", ncols=len(KINDS))
        axes[2, 0].legend(handles=_key(LAYERS), loc="upper right", fontsize=6)
        return figure

    def tables(self, runs: Runs) -> list[ResultTable]:
        """Events by kind and phase, and the most pairs that slide."""
        rows = []
        for layers, name in itertools.product((2, 3), POTENTIALS):
            run = of(runs, layers, name)[0]
            head = (label(run.flow.potential), str(layers))
            for kind in sorted({event.kind for event in run.events}):
                times = np.array([it.log_time for it in run.events if it.kind == kind])
                counts = [int(((times >= low) & (times < high)).sum()) for _, low, high in PHASES]
                rows.append((*head, kind, *map(str, counts)))
            times, sliding = _sliding(run)
            most = [
                int(sliding[max(0, np.searchsorted(times, low) - 1) : np.searchsorted(times, high)]
                    .max())
                for _, low, high in PHASES
            ]  # fmt: skip
            rows.append((*head, "most that slide at a time", *map(str, most)))
        columns = ("potential", "layers", "event", *(name for name, *_ in PHASES))
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


def _key(styles: dict[str, str]) -> list[Line2D]:
    """What the styles mean."""
    from matplotlib.lines import Line2D

    return [Line2D([], [], color="0.3", ls=style, label=text) for text, style in styles.items()]


def _so_far(run: Trajectory, kind: str) -> Steps:
    """log t and the number of events of a kind up to it."""
    times = [max(it.log_time, FIRST) for it in run.events if it.kind == kind]
    return _steps(run, times, list(range(1, len(times) + 1)))


def _sliding(run: Trajectory) -> Steps:
    """log t and the number of pairs that slide: until they exit, or their unit is captured."""
    pairs: set[tuple[int, int, int]] = set()
    times, counts = [], []
    for event in sorted(run.events, key=lambda it: it.log_time):
        pair = (event.layer, event.unit, event.sample)
        if event.kind == "slide":
            pairs.add(pair)
        elif event.kind == "capture":
            pairs = {it for it in pairs if it[:2] != pair[:2]}
        else:
            pairs.discard(pair)
        times.append(max(event.log_time, FIRST))
        counts.append(len(pairs))
    return _steps(run, times, counts)


def _steps(run: Trajectory, times: list[float], counts: list[int]) -> Steps:
    last = counts[-1] if counts else 0
    return (
        np.array([FIRST, *times, float(run.log_time[-1])]),
        np.array([0, *counts, last]),
    )


SCENARIO = Kinks
