"""Figure 7: p = 3 with λ = 10, as long as the paper trains it and on to log t = 1e8.

The paper's ten times longer training changes little; further on the representation is compared
with that of λ = 0.1, from the same start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from mirrorode.experiment.figures import label
from mirrorode.experiment.long import FAST, SLOW, alike, moments
from mirrorode.experiment.panels import (
    active,
    draw_counted,
    name_axes,
    plotted_neurons,
    teacher_key,
)
from mirrorode.experiment.scenario import ResultTable
from mirrorode.experiment.students import Runs, Students, of, theta_at
from mirrorode.flow.stopping import LogTime
from mirrorode.flow.trajectory import Trajectory
from mirrorode.theory.margins import norm_margin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUN_TIME = "2 min"

SKIPPED = ("log t = 1000",)  # in the figure, which has eight panels


@dataclass(frozen=True)
class Fig7(Students):
    """What can be changed."""

    two = (SLOW, FAST, "euclidean")

    def figure(self, runs: Runs) -> Figure:
        """λ = 10 at seven times, and λ = 0.1 at the limit."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.9, 4.0), layout="constrained")
        axes = figure.subplots(2, 4)
        slow, fast = (of(runs, 2, name)[0] for name in (SLOW, FAST))
        shown = [
            (f"λ = 10, {name}", slow, theta_at(slow, rule))
            for name, rule in moments(self.limit)
            if name not in SKIPPED
        ]
        shown.append(("λ = 0.1, limit", fast, fast.theta[-1]))
        for number, (axis, (title, run, theta)) in enumerate(zip(axes.flat, shown, strict=False)):
            draw_counted(axis, run, theta)
            axis.set_title(title)
            name_axes(axis, 2, x=number >= 4, y=number % 4 == 0)
        for axis in axes.flat[len(shown) :]:
            axis.remove()
        figure.legend(handles=teacher_key(), loc="outside upper center", ncols=2)
        return figure

    def tables(self, runs: Runs) -> list[ResultTable]:
        """How like λ = 0.1, and gradient flow, the representation is, at the same time."""
        slow = of(runs, 2, SLOW)[0]
        others = [of(runs, 2, name)[0] for name in (FAST, "euclidean")]
        rows = []
        for name, rule in moments(self.limit):
            theta = theta_at(slow, rule)
            if theta is not None:
                cosines = [f"{_alike(slow, theta, other, rule):.4f}" for other in others]
                margin = float(norm_margin(slow.flow, theta, 3))
                rows.append((name, f"{active(slow, theta)}", f"{margin:.4g}", *cosines))
        against = (f"cosine to {label(other.flow.potential)}" for other in others)
        columns = ("λ = 10 after", "active neurons", "L_3-margin", *against)
        return [ResultTable("Representations of seed 0 at the same time", columns, tuple(rows))]

    def plotted(self, runs: Runs) -> ResultTable:
        """The first layers."""
        rules = [rule for _, rule in moments(self.limit)]
        return plotted_neurons(runs, [*rules, None])


def _alike(run: Trajectory, theta: Tensor, other: Trajectory, rule: LogTime) -> float:
    there = theta_at(other, rule)
    return float("nan") if there is None else alike((run, theta), (other, there))


SCENARIO = Fig7
