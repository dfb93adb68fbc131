"""Table 5: the L_3-margin of p = 3 with λ = 10, as long as the paper trains and on to log t = 1e8.

Beside λ = 0.1 at the same time, for six seeds; and from when on it is within 1 % of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mirrorode.experiment import paper
from mirrorode.experiment.figures import colour, label
from mirrorode.experiment.lambdas import SHOWN, STYLES
from mirrorode.experiment.long import (
    EPOCHS,
    EPSILONS,
    FAST,
    NEAR,
    PUBLISHED,
    SLOW,
    aligned_since,
    lemma,
    moments,
    reaches,
    since,
)
from mirrorode.experiment.panels import margins, plotted_margins, spread
from mirrorode.experiment.scenario import ResultTable
from mirrorode.experiment.students import Runs, Students, of
from mirrorode.flow.trajectory import Trajectory
from mirrorode.theory.alignment import misaligned
from mirrorode.theory.margins import norm_margin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RUN_TIME = "5 min"


@dataclass(frozen=True)
class Table5(Students):
    """What can be changed."""

    seeds: int = 6
    """Student seeds, from 0."""

    two = (SLOW, FAST)

    def figure(self, runs: Runs) -> Figure:
        """L_3-margin, and how far Q̂ is from its horizon, against log t."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.9, 2.7), layout="constrained")
        axes = figure.subplots(1, 2)
        for name, style in ((SLOW, STYLES[0]), (FAST, STYLES[2])):
            for seed, run in enumerate(of(runs, 2, name)):
                _draw(axes, run, style, first=seed == 0)
        for axis in axes:
            axis.set(xscale="log", xlabel=r"$\log t$")
            _mark_epochs(axis)
        largest = max(float(norm_margin(run.flow, run.theta, 3).max()) for run in runs.values())
        axes[0].set(ylim=(SHOWN * largest, 1.02 * largest), xlim=(3, None))
        axes[0].set_ylabel("$L_3$-margin")
        axes[0].ticklabel_format(axis="y", scilimits=(0, 0))
        axes[1].set(yscale="log", ylabel=r"$1 - \varphi/\hat Q^{1/\alpha}$")
        handles, texts = axes[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside upper center", ncols=2)
        return figure

    def tables(self, runs: Runs) -> list[ResultTable]:
        """The paper's table and on; when λ = 10 arrives, for every seed."""
        return [self._margin_table(runs), _arrival_table(runs)]

    def _margin_table(self, runs: Runs) -> ResultTable:
        rows = []
        published = dict(zip((f"{count:,} epochs" for count in EPOCHS), PUBLISHED, strict=True))
        for name, rule in moments(self.limit):
            slow, fast = (margins(of(runs, 2, it), rule)[:, 2] for it in (SLOW, FAST))
            theirs = published.get(name)
            paper_cell = "" if theirs is None else f"{theirs:.3g}"
            share = "" if theirs is None else f"{theirs / PUBLISHED[-1]:.3f}"
            last = margins(of(runs, 2, SLOW), moments(self.limit)[len(EPOCHS) - 1][1])[:, 2]
            ours = "" if theirs is None else f"{float(slow.mean() / last.mean()):.3f}"
            ratio = f"{float((slow / fast).mean()):.4f}"
            rows.append((name, paper_cell, spread(slow), spread(fast), ratio, share, ours))
        columns = (
            "after", "paper, λ = 10", "λ = 10", "λ = 0.1", "λ = 10 over λ = 0.1",
            "over 100,000 epochs, paper", "here",
        )  # fmt: skip
        return ResultTable("L_3-margins of p = 3", columns, tuple(rows))

    def plotted(self, runs: Runs) -> ResultTable:
        """The margins at every saved point of every run."""
        return plotted_margins(runs)


def _draw(axes: list[Axes], run: Trajectory, style: str, *, first: bool) -> None:
    shade = colour(run.flow.potential)
    late = run.log_time > 1
    curves = (norm_margin(run.flow, run.theta[late], 3), misaligned(run.flow, run.theta[late]))
    for axis, values in zip(axes, curves, strict=True):
        axis.plot(
            run.log_time[late], torch.where(values > 0, values, math.nan), style, color=shade,
            alpha=1.0 if first else 0.35, lw=1.4 if first else 0.7,
            label=label(run.flow.potential) if first else None,
        )  # fmt: skip


def _mark_epochs(axis: Axes) -> None:
    for count in EPOCHS:
        axis.axvline(paper.epochs(SLOW, 2, count), color="0.6", lw=0.7, ls="--", zorder=0)
    axis.annotate(
        "paper's epochs", (paper.epochs(SLOW, 2, EPOCHS[-1]), 0), (2, 2),
        ("data", "axes fraction"), "offset points", fontsize=6, color="0.4",
    )  # fmt: skip


def _arrival_table(runs: Runs) -> ResultTable:
    """From which log t on λ = 10 has arrived, by three measures."""
    rows = []
    for seed, (slow, fast) in enumerate(zip(of(runs, 2, SLOW), of(runs, 2, FAST), strict=True)):
        goal = NEAR * float(norm_margin(fast.flow, fast.theta[-1], 3))
        arrived = since(slow, reaches(slow, 3, goal))
        by_horizon = [f"{aligned_since(slow, epsilon):.4g}" for epsilon in EPSILONS]
        rows.append((str(seed), f"{arrived:.4g}", *by_horizon, f"{lemma(slow.flow):.4g}"))
    columns = (
        "seed",
        "margin within 1 % of the limit of λ = 0.1",
        *(f"1 − φ/Q̂^(1/α) ≤ {epsilon:g}" for epsilon in EPSILONS),
        "(pλn/2)^(L/p), Lemma 4.10",
    )
    return ResultTable("The log t from which on λ = 10 has arrived", columns, tuple(rows))


SCENARIO = Table5
