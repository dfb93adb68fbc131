"""How near the students are to their limits: KKT residual and margin gap, against log(1/𝓛).

The residual of Theorem 4.7 with the best multipliers, of two and three layers; the margin beside
the optimum for the features frozen at that point (Corollary I.1); and for gradient flow of two
layers beside the globally largest L_2-margin of any width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mirrorode.experiment.figures import colour, label
from mirrorode.experiment.panels import paper_stops
from mirrorode.experiment.paper import POTENTIALS
from mirrorode.experiment.scenario import ResultTable
from mirrorode.experiment.students import Runs, Students, of
from mirrorode.flow.trajectory import Trajectory
from mirrorode.theory.circle import global_margin
from mirrorode.theory.convex import frozen_feature_max_margin
from mirrorode.theory.kkt import kkt
from mirrorode.theory.margins import norm_margin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RUN_TIME = "5 min"

STYLES = {2: "-", 3: "--"}
DECADE = {2: 3, 3: 1}  # certificates a decade of log(1/𝓛), by the number of layers
SMALLEST = 1e-9  # a gap below is round-off of the convex programs

Curve = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Residuals(Students):
    """What can be changed."""

    two = tuple(POTENTIALS)
    three = tuple(POTENTIALS)

    def figure(self, runs: Runs) -> Figure:
        """Residuals, gaps to the frozen optimum, and the gap to the global one."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.9, 2.8), layout="constrained")
        axes = figure.subplots(1, 3)
        for axis, measure in zip(axes, MEASURES, strict=True):
            for layers, name, curve in _curves(runs, measure):
                shade, text = colour(POTENTIALS[name]), label(POTENTIALS[name])
                axis.plot(*curve, STYLES[layers], color=shade, label=f"{text}, {layers} layers")
            _frame(axis, measure)
        handles, texts = axes[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=3)
        return figure

    def tables(self, runs: Runs) -> list[ResultTable]:
        """What is left at the end."""
        rows = [
            (measure, label(POTENTIALS[name]), str(layers), f"{float(curve[0][-1]):.3g}",
             _left(float(curve[1][-1])))
            for measure in MEASURES
            for layers, name, curve in _curves(runs, measure)
        ]  # fmt: skip
        columns = ("measure", "potential", "layers", "log(1/loss)", "left")
        return [ResultTable("What is left to the limit", columns, tuple(rows))]

    def plotted(self, runs: Runs) -> ResultTable:
        """The curves."""
        rows = [
            (measure, name, str(layers), f"{loss:.8g}", f"{value:.8g}")
            for measure in MEASURES
            for layers, name, curve in _curves(runs, measure)
            for loss, value in zip(*(it.tolist() for it in curve), strict=True)
        ]
        columns = ("measure", "run", "layers", "log_inverse_loss", "value")
        return ResultTable("Approach", columns, tuple(rows))


MEASURES = {
    "KKT residual, Theorem 4.7": "relative KKT residual",
    "frozen features, Corollary I.1": "1 − margin / largest",
    "any network, gradient flow": "1 − $L_2$-margin / largest",
}
"""Title and label of the vertical axis of each panel."""


def _curves(runs: Runs, measure: str) -> list[tuple[int, str, Curve]]:
    """Layers, potential and curve of what has the measure."""
    residual, frozen, _ = MEASURES
    chosen = [
        (layers, name, of(runs, layers, name)[0])
        for layers in (2, 3)
        for name in POTENTIALS
        if measure in (residual, frozen) or (layers == 2 and name == "euclidean")
    ]
    curve = _residual if measure == residual else _frozen if measure == frozen else _global
    return [(layers, name, curve(run)) for layers, name, run in chosen]


def _points(run: Trajectory) -> Tensor:
    """Saved points, a few a decade of log(1/𝓛)."""
    late = torch.nonzero(run.log_inverse_loss > 0.99)[:, 0]
    decades = run.log_inverse_loss[late].log10() * DECADE[int(run.flow.network.degree)]
    first = torch.diff(decades.round(), prepend=decades[:1] - 1.0) != 0
    first[-1] = True
    return late[first]


@cache
def _residual(run: Trajectory) -> Curve:
    points = _points(run)
    values = [kkt(run.flow, run.theta[point]).residual for point in points]
    return run.log_inverse_loss[points], torch.tensor(values)


@cache
def _frozen(run: Trajectory) -> Curve:
    """1 − margin over the largest for the features frozen at θ, in the norm of the horizon."""
    points, values = _points(run), []
    degree, k = run.flow.network.degree, run.flow.potential.degree
    assert k is not None
    for theta in run.theta[points]:
        least = run.flow.margins(theta).min() ** (1 / degree)
        own = degree * float(least / torch.linalg.vector_norm(theta, ord=k))
        values.append(1 - own / frozen_feature_max_margin(run.flow, theta).margin)
    return run.log_inverse_loss[points], _shown(torch.tensor(values))


@cache
def _global(run: Trajectory) -> Curve:
    late = run.log_inverse_loss > 0.99
    best = global_margin(run.flow).margin
    values = 1 - norm_margin(run.flow, run.theta[late], 2) / best
    return run.log_inverse_loss[late], _shown(values)


def _left(value: float) -> str:
    return f"below {SMALLEST:g}" if math.isnan(value) else f"{value:.2e}"


def _shown(values: Tensor) -> Tensor:
    return torch.where(values > SMALLEST, values, torch.nan)


def _frame(axis: Axes, measure: str) -> None:
    axis.set(xscale="log", yscale="log", xlabel=r"$\log(1/\mathcal{L})$")
    axis.set(ylabel=MEASURES[measure], title=measure)
    paper_stops(axis)


SCENARIO = Residuals
