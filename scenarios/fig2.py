"""Figure 2: representations of two layers; hidden weights and L_k-margins of three layers.

Students by the hyperbolic entropy with λ = 0.1, gradient flow, and p = 3 with λ = 1, where the
paper stops, at a loss of 1e-50, and at log(1/𝓛) = 1e9. Table 2 is the scenario table2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mirrorode.experiment.columns import column_tables
from mirrorode.experiment.figures import label
from mirrorode.experiment.layers import draw_magnitudes, magnitude_table
from mirrorode.experiment.panels import (
    KS,
    draw_margins,
    draw_representation,
    name_axes,
    plotted_margins,
    short,
    teacher_key,
)
from mirrorode.experiment.paper import LOSS, POTENTIALS, PUBLISHED
from mirrorode.experiment.scenario import ResultTable
from mirrorode.experiment.students import Runs, Students, of, theta_at
from mirrorode.flow.stopping import LogInverseLoss

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

RUN_TIME = "5 min"


@dataclass(frozen=True)
class Fig2(Students):
    """What can be changed."""

    two = tuple(POTENTIALS)
    three = tuple(POTENTIALS)

    def figure(self, runs: Runs) -> Figure:
        """A row of representations, one of hidden weights, one of margins."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.9, 6.6), layout="constrained")
        axes = figure.subplots(3, 3, height_ratios=(1.25, 0.8, 1))
        for number, name in enumerate(POTENTIALS):
            column, run = axes[:, number], of(runs, 2, name)[0]
            marks = [
                (theta_at(run, LogInverseLoss(LOSS)), False),
                (run.theta[-1], True),
            ]
            draw_representation(column[0], run, marks)
            name_axes(column[0], 2, y=number == 0)
            column[0].set_title(label(run.flow.potential))
            draw_magnitudes(column[1], of(runs, 3, name)[0], 2)
        axes[1, 0].set_ylabel("number of hidden weights")
        for axis, k in zip(axes[2], KS, strict=True):
            draw_margins(axis, runs, 3, POTENTIALS, k)
        handles, texts = axes[2, 0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=3)
        for axis, text in zip(
            axes[:, 0], ("two layers", "three layers", "three layers"), strict=True
        ):
            axis.annotate(
                text, (-0.48, 0.5), xycoords="axes fraction", rotation=90, ha="center",
                va="center",
            )  # fmt: skip
        figure.legend(handles=_key(self.limit), loc="outside upper center", ncols=4)
        return figure

    def tables(self, runs: Runs) -> list[ResultTable]:
        """The margins of both networks, and the hidden weights of three layers."""
        two, three = (
            column_tables(runs, layers, self.limit, PUBLISHED[layers]) for layers in (2, 3)
        )
        return [*two, *three, magnitude_table(runs, POTENTIALS, 2)]

    def plotted(self, runs: Runs) -> ResultTable:
        """The margins at every saved point of every run."""
        return plotted_margins(runs)


def _key(limit: float) -> list[Line2D]:
    """What the marks of the two upper rows mean."""
    from matplotlib.lines import Line2D

    def mark(fill: str, text: str) -> Line2D:
        return Line2D([], [], marker="o", ls="", color="0.3", ms=4, mfc=fill, label=text)

    return [
        mark("none", "student at loss 1e-50 (outlined)"),
        mark("0.3", f"at log(1/loss) = {short(limit)} (filled)"),
        *teacher_key(),
    ]


SCENARIO = Fig2
