"""How large the weights of one layer are: Figures 8 to 10, and the middle of Figure 2."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mirrorode.experiment.figures import colour, label
from mirrorode.experiment.panels import ACTIVE
from mirrorode.experiment.paper import LOSS, POTENTIALS
from mirrorode.experiment.scenario import ResultTable
from mirrorode.experiment.students import Runs, Students, of, theta_at
from mirrorode.flow.stopping import LogInverseLoss
from mirrorode.flow.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 40


@dataclass(frozen=True)
class Magnitudes(Students):
    """The weights of one layer of three-layer students by the three potentials."""

    layer: ClassVar[int] = 1
    """Which, from 1 at the input."""

    three = tuple(POTENTIALS)

    def figure(self, runs: Runs) -> Figure:
        """One histogram a potential."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.9, 2.3), layout="constrained")
        axes = figure.subplots(1, len(POTENTIALS))
        for axis, name in zip(axes, POTENTIALS, strict=True):
            run = of(runs, 3, name)[0]
            draw_magnitudes(axis, run, self.layer)
            axis.set_title(label(run.flow.potential))
        axes[0].set_ylabel(f"number of weights, layer {self.layer}")
        axes[0].legend(loc="upper right")
        return figure

    def tables(self, runs: Runs) -> list[ResultTable]:
        """How many weights there are, by two measures."""
        return [magnitude_table(runs, POTENTIALS, self.layer)]

    def plotted(self, runs: Runs) -> ResultTable:
        """The histograms."""
        rows = []
        for name in POTENTIALS:
            for where, theta in _points(of(runs, 3, name)[0]):
                counts, edges = torch.histogram(
                    _shares(of(runs, 3, name)[0], theta, self.layer), BINS, range=(0.0, 1.0)
                )
                rows += [
                    (name, where, f"{low:.4g}", f"{high:.4g}", f"{count:.0f}")
                    for low, high, count in zip(
                        edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True
                    )
                ]
        columns = ("run", "at", "from", "to", "weights")
        return ResultTable("Weights over the largest of the layer", columns, tuple(rows))


def draw_magnitudes(axis: Axes, run: Trajectory, layer: int) -> None:
    """Histogram of |w| over the largest: outlined at a loss of 1e-50, filled at the end."""
    shade = colour(run.flow.potential)
    for where, theta in _points(run):
        values, end = _shares(run, theta, layer), where == "end"
        axis.hist(
            values.numpy(), bins=BINS, range=(0.0, 1.0), log=True, linewidth=0.8,
            color=shade if end else "0.25",
            histtype="stepfilled" if end else "step", alpha=0.75 if end else 1.0,
            label="limit" if end else where, zorder=1 if end else 2,
        )  # fmt: skip
    axis.set(xlabel=r"$|w|$ / largest of the layer", xlim=(0, 1))
    axis.set_ylim(bottom=0.7)


def magnitude_table(runs: Runs, names: Iterable[str], layer: int) -> ResultTable:
    """How many weights are above 1e-3 of the largest, and (Σ|w|)²/Σw²."""
    rows = []
    for name in names:
        run = of(runs, 3, name)[0]
        for where, theta in _points(run):
            values = _shares(run, theta, layer)
            alike = float(values.sum() ** 2 / values.square().sum())
            above = int((values > ACTIVE).sum())
            rows.append(
                (label(run.flow.potential), where, f"{above} of {len(values)}", f"{alike:.1f}")
            )
    columns = ("potential", "at", f"above {ACTIVE:g} of the largest", "participation number")
    return ResultTable(f"Weights of layer {layer} of three, seed 0", columns, tuple(rows))


def _points(run: Trajectory) -> list[tuple[str, Tensor]]:
    stop = theta_at(run, LogInverseLoss(LOSS))
    found = [] if stop is None else [("loss 1e-50", stop)]
    return [*found, ("end", run.theta[-1])]


def _shares(run: Trajectory, theta: Tensor, layer: int) -> Tensor:
    values = run.flow.network.unflatten(theta)[f"W{layer}"].abs().reshape(-1)
    return values / values.max()
