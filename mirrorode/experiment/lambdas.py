"""What λ does: Tables 3, 4, 7, 8 and Figures 5, 6, 12, 13, after T epochs and at the limit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mirrorode.experiment import paper
from mirrorode.experiment.figures import colour, label
from mirrorode.experiment.long import NEAR, aligned_since, reaches, since
from mirrorode.experiment.panels import (
    active,
    draw_counted,
    margins,
    name_axes,
    plotted_margins,
    plotted_neurons,
    short,
    spread,
    teacher_key,
)
from mirrorode.experiment.scenario import ResultTable
from mirrorode.experiment.students import Runs, Students, of, theta_at
from mirrorode.flow.stopping import LogInverseLoss, LogTime, StoppingRule
from mirrorode.theory.alignment import misaligned
from mirrorode.theory.margins import norm_margin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ALIGNED = 0.1
"""Up to which 1 − φ/Q̂^{1/α} the Q-margin is nearly the margin of the horizon."""
WHY = ": there λ decides which KKT point is approached, and these are not ordered"
SHOWN = 0.5
"""Share of the largest margin from which on margins are drawn."""
ENDS = (0.1, 0.01)
NEVER = ("at the start", "not reached")
STYLES = (":", "--", "-")
"""Of the curves, from the largest λ to the smallest."""


@dataclass(frozen=True)
class Lambdas(Students):
    """A scenario about one kind of potential with three λ, largest first."""

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(self.two or self.three)

    @property
    def _layers(self) -> int:
        return 2 if self.two else 3

    @property
    def _own(self) -> int:
        return paper.OWN[paper.kind(self._names[0])]

    @property
    def _times(self) -> tuple[tuple[str, StoppingRule], ...]:
        log_time = paper.epochs(self._names[0], self._layers)
        return (
            (f"after {paper.EPOCHS:,} epochs, log t = {log_time:.3g}", LogTime(log_time)),
            ("at loss 1e-50", LogInverseLoss(paper.LOSS)),
            (f"at log(1/loss) = {short(self.limit)}", LogInverseLoss(self.limit)),
        )


@dataclass(frozen=True)
class Representations(Lambdas):
    """A figure of first layers."""

    def figure(self, runs: Runs) -> Figure:
        """Columns are λ; rows the paper's time and the limit."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.9, 4.7), layout="constrained")
        axes = figure.subplots(2, len(self._names))
        last = len(axes) - 1
        for row, (title, rule) in enumerate((self._times[0], self._times[2])):
            axes[row, 0].annotate(
                title, (-0.42, 0.5), xycoords="axes fraction", rotation=90, ha="center",
                va="center", fontsize=8,
            )  # fmt: skip
            for column, name in enumerate(self._names):
                axis, run = axes[row, column], of(runs, self._layers, name)[0]
                draw_counted(axis, run, theta_at(run, rule))
                name_axes(axis, self._layers, x=row == last, y=column == 0)
                axis.set_title("" if row else label(run.flow.potential))
        figure.legend(handles=teacher_key(), loc="outside upper center", ncols=2)
        return figure

    def tables(self, runs: Runs) -> list[ResultTable]:
        """Margins and active neurons of what is drawn."""
        rows = []
        for name in self._names:
            run = of(runs, self._layers, name)[0]
            for title, rule in self._times:
                theta = theta_at(run, rule)
                if theta is None:
                    continue
                values = margins([run], rule)[0].tolist()
                cells = (f"{active(run, theta)}", *(f"{value:.4g}" for value in values))
                rows.append((label(run.flow.potential), title, *cells))
        columns = ("potential", "where", "active neurons", "L_1", "L_2", "L_3")
        return [ResultTable("Student seed 0", columns, tuple(rows))]

    def plotted(self, runs: Runs) -> ResultTable:
        """The first layers."""
        first = {name: run for name, run in runs.items() if name.endswith("seed0")}
        return plotted_neurons(first, (self._times[0][1], self._times[2][1]))


@dataclass(frozen=True)
class LambdaTable(Lambdas):
    """A table of margins."""

    seeds: int = 6
    """Student seeds, from 0."""

    published: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """The margins in the paper, smaller k first."""

    def figure(self, runs: Runs) -> Figure:
        """The potential's own margin, and its L_2-margin, against log t."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.9, 2.7), layout="constrained")
        axes = figure.subplots(1, 2)
        for axis, k in zip(axes, (self._own, 2), strict=True):
            self._draw(axis, runs, k)
        handles, texts = axes[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside upper center", ncols=3)
        return figure

    def _draw(self, axis: Axes, runs: Runs, k: int) -> None:
        largest = 0.0
        for name, style in zip(self._names, STYLES, strict=True):
            for seed, run in enumerate(of(runs, self._layers, name)):
                margin = norm_margin(run.flow, run.theta, k)
                shown = (margin > 0) & (run.log_time > 1)
                largest = max(largest, float(margin.max()))
                axis.plot(
                    run.log_time[shown], margin[shown], style, color=colour(run.flow.potential),
                    alpha=0.35 if seed else 1.0, lw=0.7 if seed else 1.4,
                    label=None if seed else label(run.flow.potential),
                )  # fmt: skip
        epochs = paper.epochs(self._names[0], self._layers)
        axis.axvline(epochs, color="0.6", lw=0.7, ls="--", zorder=0)
        axis.annotate(
            f"{paper.EPOCHS:,} epochs", (epochs, 0), (2, 2), ("data", "axes fraction"),
            "offset points", fontsize=6, color="0.4",
        )  # fmt: skip
        axis.set(xscale="log", xlabel=r"$\log t$", ylabel=f"$L_{k}$-margin")
        if k == 1:  # it grows by decades, the others by a third
            axis.set_yscale("log")
            return
        axis.set(ylim=(SHOWN * largest, 1.02 * largest), xlim=(3, None))
        axis.ticklabel_format(axis="y", scilimits=(0, 0))

    def tables(self, runs: Runs) -> list[ResultTable]:
        """The paper's table at its time, where it stops elsewhere and at the limit; its order."""
        found = {
            title: [margins(of(runs, self._layers, name), rule) for name in self._names]
            for title, rule in self._times
        }
        named = [self._margin_table(title, values) for title, values in found.items()]
        return [*named, self._order_table(found, runs), self._arrival_table(runs)]

    def plotted(self, runs: Runs) -> ResultTable:
        """The margins at every saved point of every run."""
        return plotted_margins(runs)

    def _margin_table(self, title: str, values: list[Tensor]) -> ResultTable:
        pair = sorted({self._own, 2})
        rows = []
        for name, of_name in zip(self._names, values, strict=True):
            cells = [f"{spread(of_name[:, k - 1])}{' ★' if k == self._own else ''}" for k in pair]
            here, first = of_name.mean(0), values[0].mean(0)
            for place, k in enumerate(pair):
                theirs = self.published[name][place] / self.published[self._names[0]][place]
                cells.append(f"{theirs:.3f}/{float(here[k - 1] / first[k - 1]):.3f}")
            rows.append((f"{paper.lam(name):g}", *cells))
        columns = ("λ", *(f"L_{k}" for k in pair), *(f"L_{k} ratio" for k in pair))
        title = f"L_k-margins {title} (★: own; ratio: to that of the largest λ, paper/here)"
        return ResultTable(title, columns, tuple(rows))

    def _order_table(self, found: Mapping[str, list[Tensor]], runs: Runs) -> ResultTable:
        """Whether the own margin rises as λ falls, for how many seeds, and if not why."""
        pairs = list(itertools.pairwise(self._names))
        rows = []
        for (title, rule), values in zip(self._times, found.values(), strict=True):
            own = torch.stack([of_name[:, self._own - 1] for of_name in values])
            rises = (own.diff(dim=0) > 0).sum(1).tolist()
            gaps = [self._gap(runs, name, rule) for name in self._names]
            failed = [
                f"λ = {paper.lam(larger):g} is aligned to {gap:.1g} already"
                for (larger, _), gap, count in zip(pairs, gaps, rises, strict=False)
                if count < own.shape[1] and gap < ALIGNED
            ]
            cells = [f"{count}/{own.shape[1]}" for count in rises]
            shown = ", ".join(f"{gap:.1g}" for gap in gaps)
            rows.append((title, *cells, shown, "; ".join(failed) + (WHY if failed else "")))
        steps = (f"λ {paper.lam(one):g} → {paper.lam(two):g}" for one, two in pairs)
        columns = ("where", *steps, "1 − φ/Q̂^(1/α), by λ", "why not for all seeds")
        title = f"For how many seeds does the L_{self._own}-margin rise as λ falls?"
        return ResultTable(title, columns, tuple(rows))

    def _arrival_table(self, runs: Runs) -> ResultTable:
        """From which log t on each λ is where the smallest is at the end, of seed 0."""
        rows = []
        last = of(runs, self._layers, self._names[-1])[0]
        final = float(norm_margin(last.flow, last.theta[-1], self._own))
        for name in self._names:
            run = of(runs, self._layers, name)[0]
            end = float(norm_margin(run.flow, run.theta[-1], self._own)) / final
            times = [since(run, reaches(run, self._own, NEAR * final))]
            times += [aligned_since(run, epsilon) for epsilon in ENDS]
            shown = [f"{time:.4g}" if math.isfinite(time) else NEVER[time > 0] for time in times]
            rows.append((f"{paper.lam(name):g}", *shown, f"{end:.4f}"))
        columns = (
            "λ", f"margin at {NEAR:g} of the limit of the smallest λ",
            *(f"1 − φ/Q̂^(1/α) ≤ {epsilon:g}" for epsilon in ENDS), "margin at the end, in those",
        )  # fmt: skip
        title = f"The log t from which on it is so, L_{self._own}-margin of student seed 0"
        return ResultTable(title, columns, tuple(rows))

    def _gap(self, runs: Runs, name: str, rule: StoppingRule) -> float:
        """1 − φ/Q̂^{1/α}, the mean over seeds."""
        found = [
            float(misaligned(run.flow, theta))
            for run in of(runs, self._layers, name)
            if (theta := theta_at(run, rule)) is not None
        ]
        return sum(found) / len(found) if found else math.nan
