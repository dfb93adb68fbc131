"""What λ does: Tables 3, 4, 7, 8 and Figures 5, 6, 12, 13, after T epochs and at the limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mirrorode.experiment import paper
from mirrorode.experiment.figures import colour, label
from mirrorode.experiment.panels import (
    active,
    draw_counted,
    margins,
    name_axes,
    plotted_neurons,
    spread,
)
from mirrorode.experiment.scenario import ResultTable
from mirrorode.experiment.students import Runs, Students, of, theta_at
from mirrorode.flow.stopping import LogInverseLoss, LogTime, StoppingRule
from mirrorode.theory.kkt import kkt
from mirrorode.theory.margins import norm_margin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
            (f"at log(1/loss) = {self.limit:g}", LogInverseLoss(self.limit)),
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
        for name, style in zip(self._names, STYLES, strict=True):
            for seed, run in enumerate(of(runs, self._layers, name)):
                margin = norm_margin(run.flow, run.theta, k)
                shown = (margin > 0) & (run.log_time > 1)
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
        if k == 1:
            axis.set_yscale("log")

    def tables(self, runs: Runs) -> list[ResultTable]:
        """The paper's table at its time, where it stops elsewhere and at the limit; its order."""
        found = {
            title: [margins(of(runs, self._layers, name), rule) for name in self._names]
            for title, rule in self._times
        }
        named = [self._margin_table(title, values) for title, values in found.items()]
        return [*named, self._order_table(found, runs)]

    def _margin_table(self, title: str, values: list[Tensor]) -> ResultTable:
        pair = sorted({self._own, 2})
        rows = []
        for name, of_name in zip(self._names, values, strict=True):
            cells = [f"{spread(of_name[:, k - 1])}{' ★' if k == self._own else ''}" for k in pair]
            theirs = self.published[name]
            least = self.published[self._names[0]]
            here, first = of_name.mean(0), values[0].mean(0)
            ratios = [
                f"{own / other:.3g}/{float(here[k - 1] / first[k - 1]):.3g}"
                for k, own, other in zip(pair, theirs, least, strict=True)
            ]
            rows.append((label(paper.ALL[name]), *cells, *ratios))
        columns = (
            "potential",
            *(f"L_{k}" for k in pair),
            *(f"L_{k} over that of the largest λ: paper/here" for k in pair),
        )
        return ResultTable(f"L_k-margins {title} (★: own margin)", columns, tuple(rows))

    def _order_table(self, found: Mapping[str, list[Tensor]], runs: Runs) -> ResultTable:
        """Whether the own margin rises as λ falls, for how many seeds; what λ can still change."""
        rows = []
        for title, values in found.items():
            own = torch.stack([of_name[:, self._own - 1] for of_name in values])
            rises = (own.diff(dim=0) > 0).all(0)
            change = float((own[-1] / own[0]).mean() - 1)
            rows.append((title, f"{int(rises.sum())}/{len(rises)}", f"{change:+.2%}", ""))
        worst = max(
            kkt(run.flow, run.theta[-1]).residual
            for run in (of(runs, self._layers, name)[0] for name in self._names)
        )
        why = (
            f"every λ has its own KKT point by then (relative residual at most {worst:.1e}, seed 0)"
            ": which one a seed ends in is not ordered in λ"
        )
        if rows[-1][1].split("/")[0] != rows[-1][1].split("/")[1]:
            rows[-1] = (*rows[-1][:3], why)
        columns = ("where", "seeds", "smallest λ over largest, mean", "why not")
        title = f"Does the L_{self._own}-margin rise whenever λ falls?"
        return ResultTable(title, columns, tuple(rows))
