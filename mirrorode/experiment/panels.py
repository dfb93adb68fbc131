"""What several figures and tables of students are made of: margins, representations, weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mirrorode.experiment import paper
from mirrorode.experiment.figures import TEACHER, colour, label
from mirrorode.experiment.scenario import ResultTable
from mirrorode.experiment.students import Runs, of, theta_at
from mirrorode.flow.stopping import LogInverseLoss, LogTime, StoppingRule
from mirrorode.flow.trajectory import Trajectory
from mirrorode.theory.margins import norm_margin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

KS = (1, 2, 3)
ACTIVE = 1e-3
"""A neuron, or a weight, is active if it is above this share of the largest."""


def margins(runs: Sequence[Trajectory], rule: StoppingRule | None) -> Tensor:
    """L_1, L_2 and L_3 margins (seeds, 3) where ``rule`` is met, else NaN; None is the end."""
    rows = torch.full((len(runs), len(KS)), math.nan, dtype=torch.float64)
    for row, run in zip(rows, runs, strict=True):
        theta = run.theta[-1] if rule is None else theta_at(run, rule)
        if theta is not None:
            row[:] = torch.stack([norm_margin(run.flow, theta, k) for k in KS])
    return rows


def product(run: Trajectory, theta: Tensor) -> Tensor:
    """What is drawn of the first layer, (neurons, 2): |a_j| w_j of two layers, w_j of three."""
    weights = run.flow.network.unflatten(theta)
    outer = weights["W2"].reshape(-1, 1).abs() if run.flow.network.degree == 2 else 1.0
    return outer * weights["W1"]


def active(run: Trajectory, theta: Tensor) -> int:
    """How many neurons of the first layer are active."""
    size = product(run, theta).norm(dim=1)
    return int((size > ACTIVE * size.max()).sum())


def draw_representation(
    axis: Axes, run: Trajectory, marks: Iterable[tuple[Tensor | None, bool]]
) -> None:
    """The first layer beside the teacher, in units of the largest neuron, at θ; filled or not."""
    shade, teacher = colour(run.flow.potential), run.flow.dataset.teacher
    if teacher is not None:
        for output, x, y in teacher.tolist():
            size = 1.15 / math.hypot(x, y)
            style = "-" if output > 0 else ":"
            axis.plot([0, size * x], [0, size * y], style, color=TEACHER, lw=1, zorder=0)
    for theta, filled in marks:
        if theta is None:
            continue
        point = product(run, theta)
        x, y = (point / point.norm(dim=1).max()).T.tolist()
        fill = shade if filled else "none"
        axis.scatter(x, y, s=14, facecolors=fill, edgecolors=shade, linewidths=0.7)
    axis.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal")
    axis.set(xticks=(-1, 0, 1), yticks=(-1, 0, 1))


def draw_counted(axis: Axes, run: Trajectory, theta: Tensor | None) -> None:
    """The first layer at θ, and how many of its neurons are active."""
    draw_representation(axis, run, [(theta, True)])
    if theta is not None:
        axis.text(
            0.03, 0.03, f"{active(run, theta)} active", transform=axis.transAxes, fontsize=6.5,
            color="0.3",
        )  # fmt: skip


def name_axes(axis: Axes, layers: int, *, x: bool = True, y: bool = True) -> None:
    """What the axes of a representation are."""
    outer = r"|a_j|\," if layers == 2 else ""
    if x:
        axis.set_xlabel(rf"${outer}w_{{j1}}$ / largest")
    if y:
        axis.set_ylabel(rf"${outer}w_{{j2}}$ / largest")


def draw_margins(axis: Axes, runs: Runs, layers: int, names: Iterable[str], k: int) -> None:
    """L_k-margins against log(1/𝓛), the first seed in full colour."""
    for name in names:
        for seed, run in enumerate(of(runs, layers, name)):
            late = run.log_inverse_loss > 0.99
            loss, margin = run.log_inverse_loss[late], norm_margin(run.flow, run.theta[late], k)
            axis.plot(
                loss, margin, color=colour(run.flow.potential), alpha=0.35 if seed else 1.0,
                lw=0.8 if seed else 1.3, zorder=2 - 0.5 * bool(seed),
                label=None if seed else label(run.flow.potential),
            )  # fmt: skip
    axis.set(xscale="log", yscale="log", xlabel=r"$\log(1/\mathcal{L})$", ylabel=f"$L_{k}$-margin")
    axis.margins(y=0.12)
    paper_stops(axis)


def paper_stops(axis: Axes) -> None:
    """A line where the paper's runs end."""
    axis.axvline(paper.LOSS, color="0.6", lw=0.7, ls="--", zorder=0)
    axis.annotate(
        "paper stops", (paper.LOSS, 0), (2, 2), ("data", "axes fraction"), "offset points",
        fontsize=6, color="0.4",
    )  # fmt: skip


def plotted_margins(runs: Runs) -> ResultTable:
    """The margins at every saved point of every run."""
    rows = []
    for name, run in runs.items():
        values = [norm_margin(run.flow, run.theta, k).tolist() for k in KS]
        points = zip(run.log_time.tolist(), run.log_inverse_loss.tolist(), *values, strict=True)
        rows += [(name, *(f"{value:.10g}" for value in point)) for point in points]
    columns = ("run", "log_time", "log_inverse_loss", "L1_margin", "L2_margin", "L3_margin")
    return ResultTable("Margins along the flow", columns, tuple(rows))


def plotted_neurons(runs: Runs, rules: Iterable[StoppingRule | None]) -> ResultTable:
    """The first layer of every run where the rules are met."""
    rows = []
    for rule in rules:
        for name, run in runs.items():
            theta = run.theta[-1] if rule is None else theta_at(run, rule)
            if theta is not None:
                rows += [
                    (name, describe(rule), str(neuron), f"{x:.10g}", f"{y:.10g}")
                    for neuron, (x, y) in enumerate(product(run, theta).tolist())
                ]
    return ResultTable("First layers", ("run", "at", "neuron", "x", "y"), tuple(rows))


def describe(rule: StoppingRule | None) -> str:
    """Where a rule is met, in words."""
    if rule is None:
        return "end"
    if isinstance(rule, LogInverseLoss):
        return "loss 1e-50" if rule.v == paper.LOSS else f"log(1/loss) = {short(rule.v)}"
    assert isinstance(rule, LogTime)
    return f"log t = {rule.s:.6g}"


def short(value: float) -> str:
    """A power of ten as it is written: 1e9 and 1e4, not 1e+09 and 10000."""
    text = f"{value:.0e}" if value >= 1e4 and float(f"{value:.0e}") == value else f"{value:g}"
    return text.replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def teacher_key() -> list[Line2D]:
    """What the lines of the teacher mean."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=TEACHER, lw=1, label="teacher, a > 0"),
        Line2D([], [], color=TEACHER, lw=1, ls=":", label="teacher, a < 0"),
    ]


def spread(values: Tensor) -> str:
    """Mean ± standard deviation over seeds."""
    mean, deviation = float(values.mean()), float(values.std(correction=0))
    return f"{mean:.2e} ± {deviation:.0e}" if len(values) > 1 else f"{mean:.3e}"
