"""Figure 3: λ slows alignment with the horizon; when it happens, against Lemma 4.10.

Two-layer students by p = 3 with λ = 10, 1 and 0.1 and by hyperbolic entropies, followed to
log(1/𝓛) = 1e9; λ = 10 with half and twice the neurons too, as the bound grows with n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from mirrorode.experiment import paper
from mirrorode.experiment.figures import colour, label
from mirrorode.experiment.integration import Integration
from mirrorode.experiment.lambdas import SHOWN, STYLES
from mirrorode.experiment.long import (
    EPSILONS,
    FAST,
    SLOW,
    aligned_by_theory,
    aligned_since,
)
from mirrorode.experiment.panels import draw_counted, name_axes
from mirrorode.experiment.paper import HOMOGENEOUS, HYPERBOLIC
from mirrorode.experiment.scenario import ResultTable
from mirrorode.experiment.students import Runs, Students, of, student, theta_at
from mirrorode.flow.stopping import LogTime
from mirrorode.flow.trajectory import Trajectory
from mirrorode.theory.alignment import misaligned
from mirrorode.theory.margins import norm_margin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RUN_TIME = "4 min"

LATE = 5.0  # from this log t on log t is about the smallest margin, as theory takes it to be
TITLE = "When 1 − φ/Q̂^(1/α) falls below ε for good; by Appendix H, taking log t as the margin"
WIDTH = "width-"  # before the names of runs with other widths
MARKS = {0.1: "o", 0.03: "s", 0.01: "^"}


@dataclass(frozen=True)
class Fig3(Students):
    """What can be changed."""

    two = ("euclidean", *HOMOGENEOUS, *HYPERBOLIC)

    def jobs(self, device: str) -> list[Integration]:
        """The students, and λ = 10 at two other widths."""
        other = [replace(self, neurons=it) for it in (max(1, self.neurons // 2), 2 * self.neurons)]
        widths = [student(it, 2, SLOW, 0, device) for it in other]
        named = [
            replace(job, name=f"{WIDTH}{it.neurons}-{job.name}")
            for it, job in zip(other, widths, strict=True)
        ]
        return [*super().jobs(device), *named]

    def figure(self, runs: Runs) -> Figure:
        """Representations above; margin, alignment, and alignment against theory below."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.9, 4.7), layout="constrained")
        axes = figure.subplots(2, 3)
        epochs = paper.epochs(SLOW, 2)
        for axis, name in zip(axes[0], (SLOW, FAST, "euclidean"), strict=True):
            run = of(runs, 2, name)[0]
            draw_counted(axis, run, theta_at(run, LogTime(epochs)))
            axis.set_title(
                f"{label(run.flow.potential)}\nlog t = {epochs:.3g}: {paper.EPOCHS:,} epochs"
            )
            name_axes(axis, 2, y=name == SLOW)
        for name, style in zip(HOMOGENEOUS, STYLES, strict=True):
            _draw_margin(axes[1, 0], of(runs, 2, name)[0], style)
            _draw_alignment(axes[1, 1], of(runs, 2, name)[0], style)
        axes[1, 0].set(xscale="log", xlabel=r"$\log t$", ylabel="$L_3$-margin")
        axes[1, 0].legend(loc="lower right")
        paths = [of(runs, 2, name)[0] for name in HOMOGENEOUS]
        largest = max(float(norm_margin(run.flow, run.theta, 3).max()) for run in paths)
        axes[1, 0].set(xlim=(3, None), ylim=(SHOWN * largest, 1.02 * largest))
        axes[1, 0].ticklabel_format(axis="y", scilimits=(0, 0))
        axes[1, 0].axvline(epochs, color="0.6", lw=0.7, ls="--", zorder=0)
        axes[1, 1].set(xscale="log", yscale="log", xlabel=r"$\log t$")
        axes[1, 1].set_ylabel(r"$1 - \varphi/\hat Q^{1/\alpha}$")
        _draw_times(axes[1, 2], _times(runs))
        return figure

    def tables(self, runs: Runs) -> list[ResultTable]:
        """When 1 − φ/Q̂^{1/α} is below ε, and when it must be."""
        rows = [
            (label(run.flow.potential), str(run.flow.network.size), f"{epsilon:g}",
             "at the start" if measured == -math.inf else f"{measured:.4g}", f"{theory:.4g}")
            for run, epsilon, measured, theory in _times(runs)
        ]  # fmt: skip
        columns = ("potential", "n", "ε", "log t measured", "log t by Appendix H")
        return [ResultTable(TITLE, columns, tuple(rows))]

    def plotted(self, runs: Runs) -> ResultTable:
        """The margins and the alignment of p = 3."""
        rows = []
        for name in HOMOGENEOUS:
            run = of(runs, 2, name)[0]
            values = (run.log_time, norm_margin(run.flow, run.theta, 3), _gap(run))
            rows += [
                (name, *(f"{value:.10g}" for value in point))
                for point in zip(*(it.tolist() for it in values), strict=True)
            ]
        columns = ("run", "log_time", "L3_margin", "misaligned")
        return ResultTable("Alignment", columns, tuple(rows))


def _gap(run: Trajectory) -> torch.Tensor:
    return misaligned(run.flow, run.theta)


def _times(runs: Runs) -> list[tuple[Trajectory, float, float, float]]:
    """Run, ε, the log t measured and that of theory."""
    chosen = [of(runs, 2, name)[0] for name in (*HOMOGENEOUS, *HYPERBOLIC)]
    chosen += [run for name, run in runs.items() if name.startswith(WIDTH)]
    return [
        (run, epsilon, aligned_since(run, epsilon), theory)
        for run in chosen
        for epsilon in EPSILONS
        if (theory := aligned_by_theory(run, epsilon)) > LATE
    ]


def _draw_margin(axis: Axes, run: Trajectory, style: str) -> None:
    margin = norm_margin(run.flow, run.theta, 3)
    late = (run.log_time > 1) & (margin > 0)
    text = label(run.flow.potential)
    shade = colour(run.flow.potential)
    axis.plot(run.log_time[late], margin[late], style, color=shade, label=text)


def _draw_alignment(axis: Axes, run: Trajectory, style: str) -> None:
    late = run.log_time > 1
    axis.plot(run.log_time[late], _gap(run)[late], style, color=colour(run.flow.potential))


def _draw_times(axis: Axes, times: list[tuple[Trajectory, float, float, float]]) -> None:
    for run, epsilon, measured, theory in times:
        if measured > 0:
            axis.plot(theory, measured, MARKS[epsilon], color=colour(run.flow.potential), ms=4)
    for epsilon, mark in MARKS.items():
        axis.plot([], [], mark, color="0.3", ms=4, label=f"ε = {epsilon:g}")
    ends = (LATE, max(theory for *_, theory in times))
    axis.plot(ends, ends, color="0.6", lw=0.8, zorder=0)
    axis.set(xscale="log", yscale="log", ylabel=r"aligned from $\log t$ on, measured")
    axis.set_xlabel(r"$\log t$ by Appendix H")
    axis.legend(loc="upper left")


SCENARIO = Fig3
