"""Figure 14: last-layer weights of the same networks as in Figure 4.

In the paper they are alike, which it puts down to the standard parameterization.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mirrorode.experiment.scenario import ResultTable
from mirrorode.experiment.vision import (
    DRAWN,
    Runs,
    Vision,
    distribution_table,
    draw_distribution,
    of,
    participations,
    spread,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUN_TIME = "1 min"


@dataclass(frozen=True)
class Fig14(Vision):
    """What can be changed."""

    def figure(self, runs: Runs) -> Figure:
        """The distributions of the last layer, beside those of the first."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.4, 2.7), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for axis, place, name in zip(axes, (0, -1), ("first", "last"), strict=True):
            for mirror in DRAWN:
                draw_distribution(axis, of(runs, mirror), mirror, place)
            axis.set_title(f"{name} layer")
        axes[0].set_ylabel("density")
        axes[0].legend(loc="upper right", fontsize=6)
        figure.suptitle(self.title, fontsize=8)
        return figure

    def tables(self, runs: Runs) -> list[ResultTable]:
        """How sparse both layers are."""
        rows = [
            (mirror.label, *(spread(participations(of(runs, mirror), place)) for place in (0, -1)))
            for mirror in DRAWN
        ]
        title = f"{self.title}: participation (Σ|w|)²/(nΣw²), 2/π = 0.637 for normal weights"
        return [ResultTable(title, ("mirror", "first layer", "last layer"), tuple(rows))]

    def plotted(self, runs: Runs) -> ResultTable:
        """Quantiles of the distributions of the last layer."""
        return distribution_table(runs, DRAWN, -1, "Last layers, |w| / root mean square")


SCENARIO = Fig14
