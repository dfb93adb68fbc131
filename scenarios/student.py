"""One student of your choice: any λ, p, depth, width and seed, and samples of your own; for sweeps.

By default a two-layer student of the paper's teacher by the hyperbolic entropy with λ = 0.1, as in
Table 2. What is drawn: its first layer, its margins and its clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

from mirrorode.experiment import paper
from mirrorode.experiment.figures import colour, label
from mirrorode.experiment.integration import Integration
from mirrorode.experiment.layers import draw_magnitudes
from mirrorode.experiment.panels import (
    KS,
    draw_representation,
    margins,
    name_axes,
    paper_stops,
    plotted_margins,
    short,
    teacher_key,
)
from mirrorode.experiment.scenario import ResultTable, Scenario
from mirrorode.experiment.students import Runs, theta_at, trained
from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.flow.stopping import LogInverseLoss, StoppingRule
from mirrorode.flow.trajectory import Trajectory
from mirrorode.problem.datasets import Dataset, teacher_student
from mirrorode.problem.errors import LARGEST, require_integer, require_number, require_rtol
from mirrorode.problem.networks import MLP
from mirrorode.problem.potentials import (
    Euclidean,
    HyperbolicEntropy,
    SeparablePotential,
    SmoothedHomogeneous,
)
from mirrorode.theory.margins import norm_margin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

RUN_TIME = "1 min"
STYLES = ("-", "--", ":")  # of the L_1-, L_2- and L_3-margin


@dataclass(frozen=True)
class Student(Scenario):
    """What can be changed."""

    potential: Literal["hyperbolic", "smoothed", "euclidean"] = "hyperbolic"
    """Hyperbolic entropy, smoothed ‖·‖_p^p, or ½‖·‖²."""
    lam: float = 0.1
    """λ of the potential; the Euclidean one has none."""
    p: float = 3.0
    """p of the smoothed potential."""
    layers: int = 2
    """Layers of weights."""
    neurons: int = 100
    """Hidden width."""
    seed: int = 0
    """Seed of the first weights."""
    data: str = ""
    """Samples of your own, a .npz or .csv file; the paper's teacher labels some if empty."""
    samples: int = 200
    """Points on the unit circle."""
    data_seed: int = 42
    """Seed of the samples and the teacher."""
    limit: float = 1e9
    """log(1/loss) to go on to; the paper's is 115.13."""
    rtol: float = 1e-5
    """Relative tolerance of the integration."""

    def quick(self) -> Self:
        """A small student, on fewer points and not as far."""
        return replace(self, neurons=10, samples=30, limit=1e5, rtol=1e-4)

    def jobs(self, device: str) -> list[Integration]:
        """The one trajectory."""
        require_integer(self.layers, "layers", 2, 100)
        require_integer(self.neurons, "neurons", 1, LARGEST)
        require_rtol(self.rtol)
        require_number(self.limit, "limit", "be at least 1", 1, strict=False)
        require_number(self.p, "p", "be at least 2", 2.0, strict=False)
        potential = self._potential()
        if self.data:
            data = Dataset.load(self.data)
        else:
            data = teacher_student(samples=self.samples, seed=self.data_seed)
        network = MLP((data.x.shape[1], *[self.neurons] * (self.layers - 1), 1))
        flow = MirrorFlow(network, data.to(device), potential)
        # The paper's students have names, under which they are stored already, perhaps.
        known = (name for name, it in paper.ALL.items() if it == potential)
        return [trained(flow, next(known, self._name()), self.seed, self.limit, self.rtol)]

    def _potential(self) -> SeparablePotential:
        if self.potential == "hyperbolic":
            return HyperbolicEntropy(lam=self.lam)
        if self.potential == "smoothed":
            return SmoothedHomogeneous(p=self.p, lam=self.lam)
        return Euclidean()

    def _name(self) -> str:
        kind = f"p{self.p:g}" if self.potential == "smoothed" else self.potential
        return f"{kind}-{self.lam:g}"

    def figure(self, runs: Runs) -> Figure:
        """First layer, margins, clock."""
        from matplotlib.figure import Figure

        (run,) = runs.values()
        figure = Figure(figsize=(6.9, 2.6), layout="constrained")
        first, middle, last = figure.subplots(1, 3)
        if run.flow.dataset.x.shape[1] == 2:
            _draw_neurons(first, run, self.layers)
        else:
            draw_magnitudes(first, run, 1)
            first.set_ylabel("number of weights, layer 1")
        late = run.log_inverse_loss > 0.99
        if late.any():
            _draw_margins(middle, run, late)
            _draw_clock(last, run, late)
        for axis in (middle, last):
            axis.set(xscale="log", xlabel=r"$\log(1/\mathcal{L})$")
            if not late.any():
                axis.set_title("the loss stays near 1 or above", fontsize=6.5)
            if float(run.log_inverse_loss[-1]) > paper.LOSS:
                paper_stops(axis)
        figure.suptitle(f"{label(run.flow.potential)}, {run.flow.network}", fontsize=8)
        return figure

    def tables(self, runs: Runs) -> list[ResultTable]:
        """The margins where the paper stops and at the end."""
        (run,) = runs.values()
        rules: Sequence[tuple[str, StoppingRule | None]] = (
            ("loss 1e-50", LogInverseLoss(paper.LOSS)),
            (f"end, log(1/loss) = {short(float(run.log_inverse_loss[-1]))}", None),
        )
        rows = []
        for where, rule in rules:
            values = margins([run], rule)[0]
            if not values.isnan().any():
                rows.append((where, *(f"{value:.4g}" for value in values.tolist())))
        title = f"Margins of the student, {label(run.flow.potential)}, seed {self.seed}"
        return [ResultTable(title, ("where", *(f"L_{k}" for k in KS)), tuple(rows))]

    def plotted(self, runs: Runs) -> ResultTable:
        """The margins at every saved point."""
        return plotted_margins(runs)


def _draw_neurons(axis: Axes, run: Trajectory, layers: int) -> None:
    """The first layer: outlined where the paper stops, filled at the end."""
    marks = [(theta_at(run, LogInverseLoss(paper.LOSS)), False), (run.theta[-1], True)]
    draw_representation(axis, run, marks)
    name_axes(axis, layers)
    axis.set_title("outlined: loss 1e-50; filled: end", fontsize=6.5)
    if run.flow.dataset.teacher is not None:
        axis.legend(handles=teacher_key(), loc="upper left", fontsize=5.5)


def _draw_margins(axis: Axes, run: Trajectory, late: Tensor) -> None:
    """Each margin over that at the end, so that all three are seen."""
    for k, style in zip(KS, STYLES, strict=True):
        margin = norm_margin(run.flow, run.theta[late], k)
        axis.plot(
            run.log_inverse_loss[late], margin / margin[-1], style,
            color=colour(run.flow.potential), lw=1.3, label=f"$L_{k}$",
        )  # fmt: skip
    axis.set_ylabel("margin / margin at the end")
    axis.legend()


def _draw_clock(axis: Axes, run: Trajectory, late: Tensor) -> None:
    shade = colour(run.flow.potential)
    axis.plot(run.log_inverse_loss[late], run.log_time[late], color=shade, lw=1.3)
    axis.set_ylabel(r"$\log t$")
    if float(run.log_time[-1]) > 10:
        axis.set_yscale("symlog", linthresh=10)


SCENARIO = Student
