"""Figure 11: decision boundaries and function values of three-layer students.

Function values are in units of the margin, min y f(x) over the samples, at log(1/𝓛) = 1e9 and where
the paper stops, at a loss of 1e-50.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mirrorode.experiment.figures import colour, label
from mirrorode.experiment.panels import short
from mirrorode.experiment.paper import LOSS, POTENTIALS
from mirrorode.experiment.scenario import ResultTable
from mirrorode.experiment.students import Runs, Students, of, theta_at
from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.flow.stopping import LogInverseLoss
from mirrorode.flow.trajectory import Trajectory
from mirrorode.problem.datasets import Dataset

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.contour import QuadContourSet
    from matplotlib.figure import Figure

RUN_TIME = "4 min"

SIDE = 161  # points of the grid on each side
ANGLES = 721
SHOWN = 10.0  # margins: the range of the colours


@dataclass(frozen=True)
class Fig11(Students):
    """What can be changed."""

    three = tuple(POTENTIALS)

    def figure(self, runs: Runs) -> Figure:
        """The plane above, the circle of the samples below."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.9, 4.6), layout="constrained")
        axes = figure.subplots(2, 3, height_ratios=(1.35, 1), sharey="row")
        drawn = [
            _draw_plane(axis, of(runs, 3, name)[0])
            for axis, name in zip(axes[0], POTENTIALS, strict=True)
        ]
        figure.colorbar(drawn[-1], ax=list(axes[0]), label="f / margin", shrink=0.8)
        for axis, name in zip(axes[1], POTENTIALS, strict=True):
            _draw_circle(axis, of(runs, 3, name)[0])
        axes[0, 0].set_ylabel("$x_2$")
        axes[1, 0].set_ylabel("f / margin")
        axes[1, 0].legend(loc="upper right")
        handles, texts = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside upper center", ncols=2)
        return figure

    def tables(self, runs: Runs) -> list[ResultTable]:
        """Where the decision boundary crosses the circle."""
        rows = []
        for name in POTENTIALS:
            run = of(runs, 3, name)[0]
            angles, values = _circle(run, run.theta[-1])
            crossed = torch.nonzero(values[1:] * values[:-1] < 0)[:, 0]
            text = ", ".join(f"{float(angles[at]):.1f}°" for at in crossed)
            rows.append((label(run.flow.potential), text, f"{float(values.abs().max()):.3g}"))
        columns = ("potential", "boundary at", "largest |f| / margin on the circle")
        return [ResultTable(f"At log(1/loss) = {short(self.limit)}", columns, tuple(rows))]

    def plotted(self, runs: Runs) -> ResultTable:
        """Function values on the circle at the end."""
        rows = []
        for name in POTENTIALS:
            run = of(runs, 3, name)[0]
            pairs = zip(*(it.tolist() for it in _circle(run, run.theta[-1])), strict=True)
            rows += [(name, f"{angle:.4g}", f"{value:.8g}") for angle, value in pairs]
        return ResultTable("On the circle", ("run", "degrees", "f over margin"), tuple(rows))


def _values(run: Trajectory, theta: Tensor, x: Tensor) -> Tensor:
    """f at x (points, 2), in units of the margin."""
    probe = MirrorFlow(run.flow.network, Dataset(x, torch.ones(len(x))), run.flow.potential)
    return probe.margins(theta) / run.flow.margins(theta).min()


def _circle(run: Trajectory, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Degrees, and f on the unit circle."""
    degrees = torch.linspace(-180, 180, ANGLES, dtype=torch.float64)
    x = torch.stack([torch.cos(degrees * math.pi / 180), torch.sin(degrees * math.pi / 180)], 1)
    return degrees, _values(run, theta, x)


def _draw_plane(axis: Axes, run: Trajectory) -> QuadContourSet:
    line = torch.linspace(-1.3, 1.3, SIDE, dtype=torch.float64)
    first, second = torch.meshgrid(line, line, indexing="xy")
    grid = torch.stack([first, second], -1).reshape(-1, 2)
    values = _values(run, run.theta[-1], grid).reshape(SIDE, SIDE).numpy()
    levels = torch.linspace(-SHOWN, SHOWN, 25).tolist()
    drawn = axis.contourf(line, line, values, levels, cmap="RdBu_r", extend="both")
    axis.contour(line, line, values, [0.0], colors="k", linewidths=1.0)
    data = run.flow.dataset
    for sign, fill in ((1, "k"), (-1, "w")):
        point = data.x[data.y == sign]
        x, y = point.T.tolist()
        axis.scatter(
            x, y, s=6, c=fill, edgecolors="k", linewidths=0.4, label=f"sample, y = {sign:+d}"
        )
    axis.set(title=label(run.flow.potential), xlabel="$x_1$", aspect="equal")
    axis.set(xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    return drawn


def _draw_circle(axis: Axes, run: Trajectory) -> None:
    shade = colour(run.flow.potential)
    stop = theta_at(run, LogInverseLoss(LOSS))
    if stop is not None:
        axis.plot(*_circle(run, stop), ":", color="0.3", lw=1, label="loss 1e-50")
    axis.plot(*_circle(run, run.theta[-1]), color=shade, label="limit")
    axis.axhline(0, color="k", lw=0.6)
    for level in (-1, 1):
        axis.axhline(level, color="0.6", lw=0.6, ls="--", zorder=0)
    axis.set(xlabel="angle of x (degrees)", xticks=(-180, -90, 0, 90, 180))


SCENARIO = Fig11
