"""Theorem 4.9: from sparse to dense features, the number of active neurons against α and λ.

Two-layer students by hyperbolic entropies (α = 1), |θ|^1.5, gradient flow (α = 2) and smoothed
potentials of degree 3 and 4, at log(1/𝓛) = 1e6: the limit minimises Σ_j |ã_j|^{α/2}.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mirrorode.experiment.figures import colour, label
from mirrorode.experiment.integration import Integration
from mirrorode.experiment.panels import active
from mirrorode.experiment.paper import ALL, HOMOGENEOUS, HYPERBOLIC, LOSS
from mirrorode.experiment.scenario import ResultTable
from mirrorode.experiment.students import Runs, Students, of, student, theta_at
from mirrorode.flow.stopping import LogInverseLoss
from mirrorode.flow.trajectory import Trajectory
from mirrorode.problem.geometries import Power
from mirrorode.problem.potentials import SeparablePotential, SmoothedHomogeneous
from mirrorode.theory.limit import Features, features
from mirrorode.theory.margins import asymptotic_degree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RUN_TIME = "6 min"

MORE: dict[str, SeparablePotential] = {
    "power-1.5": Power(1.5),
    "p4": SmoothedHomogeneous(4, 1.0),
}
BY_DEGREE = ("hyperbolic", "power-1.5", "euclidean", "p3", "p4")
EARLY = 10.0
"""A log(1/𝓛) at which λ still matters."""


@dataclass(frozen=True)
class SparseToDense(Students):
    """What can be changed."""

    two = ("euclidean", *HYPERBOLIC, *HOMOGENEOUS)

    def jobs(self, device: str) -> list[Integration]:
        """The students of the paper's potentials, and of others not as far."""
        near = replace(self, limit=min(self.limit, 1e6))
        return [
            *super().jobs(device),
            *(
                student(near, 2, name, seed, device, potential)
                for name, potential in MORE.items()
                for seed in range(self.seeds)
            ),
        ]

    def figure(self, runs: Runs) -> Figure:
        """Neurons against α, and against λ."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.9, 2.8), layout="constrained")
        axes = figure.subplots(1, 2)
        _draw_degrees(axes[0], runs)
        for names in (HYPERBOLIC, HOMOGENEOUS):
            _draw_lambdas(axes[1], runs, tuple(names))
        axes[0].set(xlabel=r"degree $\alpha$ of the potential", yscale="log")
        axes[1].set(xlabel=r"$\lambda$", xscale="log", yscale="log")
        for axis in axes:
            axis.set(ylabel=r"neurons, $(\sum s_j)^2/\sum s_j^2$")
            axis.legend(fontsize=6)
        return figure

    def tables(self, runs: Runs) -> list[ResultTable]:
        """Neurons, by two measures, where the paper stops and at the end; the objective."""
        rows = []
        for name in dict.fromkeys((*BY_DEGREE, *HYPERBOLIC, *HOMOGENEOUS)):
            for run in of(runs, 2, name)[:1]:
                stop = theta_at(run, LogInverseLoss(LOSS))
                found = _at_end(run)
                rows.append(
                    (label(run.flow.potential), f"{run.flow.potential.degree:g}",
                     "" if stop is None else str(active(run, stop)),
                     str(found.counted), f"{found.active:.2f}", f"{found.objective:.6f}")
                )  # fmt: skip
        columns = (
            "potential", "α", "above 1e-3 at loss 1e-50", "above 1e-3 at the end",
            "participation number", "2Σ|ã|^(α/2) over ‖θ‖_α^α",
        )  # fmt: skip
        return [ResultTable("Active neurons, student seed 0", columns, tuple(rows))]

    def plotted(self, runs: Runs) -> ResultTable:
        """Participation numbers of every run."""
        rows = [
            (name, f"{run.flow.potential.degree:g}", f"{_at_end(run).active:.6g}",
             f"{features(run.flow, run.at(log_inverse_loss=EARLY)).active:.6g}")
            for name, run in runs.items()
        ]  # fmt: skip
        columns = ("run", "alpha", "neurons_at_the_end", "neurons_at_log_inverse_loss_10")
        return ResultTable("Participation numbers", columns, tuple(rows))


def _at_end(run: Trajectory) -> Features:
    return features(run.flow, run.theta[-1])


def _draw_degrees(axis: Axes, runs: Runs) -> None:
    potentials = ALL | MORE
    for name in BY_DEGREE:
        for seed, run in enumerate(of(runs, 2, name)):
            alpha = asymptotic_degree(run.flow)
            axis.plot(
                alpha, _at_end(run).active, "o", ms=5,
                color=colour(run.flow.potential), alpha=0.4 if seed else 1.0,
                label=None if seed else label(potentials[name]),
            )  # fmt: skip


def _draw_lambdas(axis: Axes, runs: Runs, names: tuple[str, ...]) -> None:
    first = [of(runs, 2, name)[0] for name in names]
    lams = [getattr(run.flow.potential, "lam", 0.0) for run in first]
    early = [features(run.flow, run.at(log_inverse_loss=EARLY)).active for run in first]
    shade, text = colour(first[0].flow.potential), label(first[0].flow.potential).split(",")[0]
    axis.plot(lams, early, "o:", mfc="none", ms=5, color=shade, label=f"{text}, log(1/loss) = 10")
    axis.plot(lams, [_at_end(run).active for run in first], "o-", ms=5, color=shade,
              label=f"{text}, limit")  # fmt: skip


SCENARIO = SparseToDense
