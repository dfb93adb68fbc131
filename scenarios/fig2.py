"""Figure 2 (left) and Table 2: two-layer teacher–student, to 𝓛 = 1e-50 as in the paper and on.

Appendix J.1: 100 ReLU neurons, 200 points on the unit circle, three teacher neurons; hyperbolic
entropy with λ = 0.1, gradient flow, and p = 3 with λ = 1. The paper trains by mirror descent with
rescaled steps down to a loss of 1e-50. Here the flow itself is integrated to there, log(1/𝓛) = 115,
and on to log(1/𝓛) = 1e6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

import mirrorode as mo
from mirrorode.experiment.figures import TEACHER, colour, label
from mirrorode.experiment.paper import LOSS as PAPER_LOSS
from mirrorode.experiment.paper import POTENTIALS
from mirrorode.experiment.scenario import Job, ResultTable, Scenario
from mirrorode.problem.errors import require_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

RUN_TIME = "5 min"

OWN = {"hyperbolic": 1, "euclidean": 2, "p3": 3}
"""The k of the L_k-margin that each potential maximises."""
PAPER = {
    "hyperbolic": (3.31e-5, 2.76e-4, 4.55e-4),
    "euclidean": (1.83e-6, 2.94e-4, 1.34e-3),
    "p3": (1.19e-6, 2.91e-4, 1.76e-3),
}
"""Table 2 of the paper; its output scale and teacher are not stated, so only ratios compare."""

Runs = Mapping[str, mo.Trajectory]


@dataclass(frozen=True)
class Fig2(Scenario):
    """What can be changed."""

    seeds: int = 6
    """Student seeds, from 0."""
    data_seed: int = 42
    """Seed of the samples and the teacher."""
    neurons: int = 100
    """Hidden width of the student."""
    samples: int = 200
    """Points on the unit circle."""
    limit: float = 1e6
    """log(1/loss) to go on to, beyond the paper's 115.13."""
    rtol: float = 1e-5
    """Relative tolerance of the integration."""

    def quick(self) -> Fig2:
        """Two student seeds instead of six."""
        return replace(self, seeds=2)

    def jobs(self, device: str) -> list[Job]:
        """One trajectory a potential and student seed."""
        require_number(self.seeds, "seeds", "be at least 1", 1, strict=False)
        require_number(self.neurons, "neurons", "be at least 1", 1, strict=False)
        require_number(self.rtol, "rtol", "be at least 1e-12", 1e-12, strict=False)
        must = "be at least 115.13, where the paper stops"
        require_number(self.limit, "limit", must, PAPER_LOSS, strict=False)
        data = mo.teacher_student(samples=self.samples, seed=self.data_seed).to(device)
        network = mo.MLP((2, self.neurons, 1))
        flows = {name: mo.MirrorFlow(network, data, it) for name, it in POTENTIALS.items()}
        until = mo.LogInverseLoss(self.limit)
        return [
            Job(
                f"{name}-seed{seed}",
                flow,
                network.initial(seed).to(device),
                until,
                None,
                self.rtol,
            )
            for name, flow in flows.items()
            for seed in range(self.seeds)
        ]

    def figure(self, runs: Runs) -> Figure:
        """Representations |a_j| w_j above, L_k-margins along the flow below."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.9, 4.7), layout="constrained")
        axes = figure.subplots(2, 3)
        for axis, name in zip(axes[0], POTENTIALS, strict=True):
            if f"{name}-seed0" in runs:
                _draw_representation(axis, runs[f"{name}-seed0"])
        for axis, k in zip(axes[1], (1, 2, 3), strict=True):
            _draw_margin(axis, runs, k)
        axes[1, 0].legend(loc="best")
        figure.legend(handles=_key(self.limit), loc="outside upper center", ncols=4)
        return figure

    def tables(self, runs: Runs) -> list[ResultTable]:
        """Table 2 where the paper stops, where this goes on to, and the ratios beside its own."""
        stops = (("1e-50", PAPER_LOSS), (f"exp(-{self.limit:g})", self.limit))
        found = [
            _margin_table(f"L_k-margins of {self.seeds} student seeds at loss {name}", runs, loss)
            for name, loss in stops
        ]
        return [*found, _ratio_table(runs, self.limit)]

    def plotted(self, runs: Runs) -> ResultTable:
        """The margins at every saved point of every run."""
        rows = []
        for name, run in runs.items():
            values = [mo.norm_margin(run.flow, run.theta, k).tolist() for k in (1, 2, 3)]
            points = zip(run.log_time.tolist(), run.log_inverse_loss.tolist(), *values, strict=True)
            rows += [(name, *(f"{value:.10g}" for value in point)) for point in points]
        columns = ("run", "log_time", "log_inverse_loss", "L1_margin", "L2_margin", "L3_margin")
        return ResultTable("Margins along the flow", columns, tuple(rows))


def _representation(run: mo.Trajectory, loss: float) -> torch.Tensor:
    """|a_j| w_j (neurons, 2) at log(1/𝓛) = loss, in units of the largest."""
    weights = run.flow.network.unflatten(run.at(log_inverse_loss=loss))
    product = weights["W2"].reshape(-1, 1).abs() * weights["W1"]
    return product / product.norm(dim=1).max()


def _key(limit: float) -> list[Line2D]:
    """What the marks of the upper row mean."""
    from matplotlib.lines import Line2D

    def mark(fill: str, text: str) -> Line2D:
        return Line2D([], [], marker="o", ls="", color="0.3", ms=4, mfc=fill, label=text)

    return [
        mark("none", "student at loss 1e-50"),
        mark("0.3", f"student at log(1/loss) = {limit:g}"),
        Line2D([], [], color=TEACHER, lw=1, label="teacher, a > 0"),
        Line2D([], [], color=TEACHER, lw=1, ls=":", label="teacher, a < 0"),
    ]


def _draw_representation(axis: Axes, run: mo.Trajectory) -> None:
    shade, teacher = colour(run.flow.potential), run.flow.dataset.teacher
    if teacher is not None:
        for output, x, y in teacher.tolist():
            style = "-" if output > 0 else ":"
            axis.plot([0, 1.15 * x], [0, 1.15 * y], style, color=TEACHER, lw=1, zorder=0)
    end = float(run.log_inverse_loss[-1])
    for loss, fill in ((min(PAPER_LOSS, end), "none"), (end, shade)):
        x, y = _representation(run, loss).T
        axis.scatter(x, y, s=16, facecolors=fill, edgecolors=shade, linewidths=0.7)
    axis.set(title=label(run.flow.potential), xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal")
    axis.set(xlabel=r"$|a_j|\,w_{j1}$ / largest", ylabel=r"$|a_j|\,w_{j2}$ / largest")


def _draw_margin(axis: Axes, runs: Runs, k: int) -> None:
    for name, run in runs.items():
        late = run.log_inverse_loss > 1
        margin = mo.norm_margin(run.flow, run.theta[late], k)
        first = name.endswith("seed0")
        axis.plot(
            run.log_inverse_loss[late], margin, color=colour(run.flow.potential),
            alpha=1.0 if first else 0.35, lw=1.3 if first else 0.8,
            label=label(run.flow.potential) if first else None,
        )  # fmt: skip
    axis.axvline(PAPER_LOSS, color="0.6", lw=0.7, ls="--", zorder=0)
    axis.set(xscale="log", yscale="log", xlabel=r"$\log(1/\mathcal{L})$", ylabel=f"$L_{k}$-margin")
    axis.annotate(
        "paper stops", (PAPER_LOSS, 0), (2, 2), ("data", "axes fraction"), "offset points",
        fontsize=6, color="0.4",
    )  # fmt: skip


def _margins(runs: Runs, name: str, loss: float) -> torch.Tensor:
    """L_1, L_2 and L_3 margins (seeds, 3) of the runs of a potential that got to ``loss``."""
    found = [run for key, run in runs.items() if key.startswith(f"{name}-")]
    rows = []
    for run in found:
        if float(run.log_inverse_loss[-1]) >= loss * (1 - 1e-9):
            theta = run.at(log_inverse_loss=loss)
            rows.append(torch.stack([mo.norm_margin(run.flow, theta, k) for k in (1, 2, 3)]))
    return torch.stack(rows) if rows else torch.full((1, 3), math.nan)


def _margin_table(title: str, runs: Runs, loss: float) -> ResultTable:
    rows = []
    for name in POTENTIALS:
        margins = _margins(runs, name, loss)
        mean, spread = margins.mean(0), margins.std(0, correction=0)
        cells = [f"{m:.3g} ± {s:.1g}" for m, s in zip(mean.tolist(), spread.tolist(), strict=True)]
        own = OWN[name] - 1
        cells[own] += " ★"
        rows.append((name, *cells))
    return ResultTable(title + " (★: own column)", ("potential", "L_1", "L_2", "L_3"), tuple(rows))


def _ratio_table(runs: Runs, limit: float) -> ResultTable:
    """Each margin over that of the potential which owns the column."""
    winners = {k: name for name, k in OWN.items()}
    rows = []
    for name in POTENTIALS:
        cells = []
        for k in (1, 2, 3):
            ratios = [PAPER[name][k - 1] / PAPER[winners[k]][k - 1]]
            for loss in (PAPER_LOSS, limit):
                ours, best = (_margins(runs, it, loss).mean(0)[k - 1] for it in (name, winners[k]))
                ratios.append(float(ours / best))
            cells.append("/".join(f"{ratio:.3f}" for ratio in ratios))
        rows.append((name, *cells))
    title = "Margins over that of the column's owner: paper/here at 1e-50/here at the limit"
    return ResultTable(title, ("potential", "L_1", "L_2", "L_3"), tuple(rows))


SCENARIO = Fig2
