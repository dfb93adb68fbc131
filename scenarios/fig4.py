"""Figure 4: first-layer weights of a VGG by three mirrors, pruning, and p = 10 with a large λ.

Mirror descent with the metrics of Appendix J.3, the power of the width corrected: VGG-16 on
CIFAR-10 where `--data` says where that is, else a small VGG on scikit-learn's digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mirrorode.experiment.figures import colour
from mirrorode.experiment.scenario import ResultTable
from mirrorode.experiment.training import SPARSITIES, Trained
from mirrorode.experiment.vision import (
    DRAWN,
    GD,
    LAMBDAS,
    LARGE_LAM,
    SMALL_P10,
    Mirror,
    Runs,
    Vision,
    distance,
    distribution_table,
    draw_distribution,
    homogeneous,
    hyperbolic,
    of,
    ordered,
    participations,
    spread,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUN_TIME = "3 min"
AGAIN = replace(GD, lr=0.1001)
"""Gradient descent once more, to see what so small a change does to a training."""
LARGE = (hyperbolic(LARGE_LAM), homogeneous(LARGE_LAM))
PRINTED = (homogeneous(LAMBDAS[0], printed=True), homogeneous(SMALL_P10, printed=True))
AT80 = SPARSITIES.index(0.8)


@dataclass(frozen=True)
class Fig4(Vision):
    """What can be changed."""

    def mirrors(self) -> Sequence[Mirror]:
        """Three mirrors with a small λ, two with a large one, and p = 10 as the paper prints it."""
        return (*DRAWN, AGAIN, *LARGE, *PRINTED)

    def figure(self, runs: Runs) -> Figure:
        """Distributions; accuracy against sparsity; p = 10 with a small and a large λ."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.9, 2.7), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        for mirror in DRAWN:
            draw_distribution(left, of(runs, mirror), mirror, 0)
            pruned = torch.stack([run.pruned for run in of(runs, mirror)])
            mean, low, high = pruned.mean(0), pruned.amin(0), pruned.amax(0)
            shade = colour(mirror.potential)
            middle.plot(SPARSITIES, mean, "o-", ms=2.5, color=shade, label=mirror.label)
            middle.fill_between(SPARSITIES, low, high, color=shade, alpha=0.2, lw=0)
        for mirror, style in ((GD, "-"), (homogeneous(SMALL_P10), "-"), (LARGE[1], "--")):
            draw_distribution(right, of(runs, mirror), mirror, 0, style)
        left.set(ylabel="density", title="first layer")
        middle.set(xlabel="share of weights pruned", ylabel="test accuracy", ylim=(0, 1.02))
        middle.set_title("pruned, mean and range of seeds")
        right.set(title="first layer, λ of p = 10")
        for axis, place in ((left, "upper right"), (middle, "lower left"), (right, "upper right")):
            axis.legend(loc=place, fontsize=5.5, handlelength=1.2)
        figure.suptitle(self.title, fontsize=8)
        return figure

    def tables(self, runs: Runs) -> list[ResultTable]:
        """What each network reached; which orders hold; what is gradient descent."""
        rows = []
        for mirror in self.mirrors():
            found = of(runs, mirror)
            test = _accuracy(found)
            pruned = torch.stack([run.pruned[AT80] for run in found])
            first, last = (spread(participations(found, place)) for place in (0, -1))
            cells = (spread(100 * test, ".2f"), first, last, spread(100 * pruned, ".1f"))
            rows.append((mirror.label, *cells))
        columns = ("mirror", "test, %", "first layer", "last layer", "80 % pruned, %")
        title = (
            f"{self.title}, {self.counted}: accuracy, participation (Σ|w|)²/(nΣw²) of two "
            "layers (0.637 for normal weights), accuracy once 80 % are pruned"
        )
        return [ResultTable(title, columns, tuple(rows)), self._orders(runs), self._alike(runs)]

    def _orders(self, runs: Runs) -> ResultTable:
        """For how many seeds the orders of the paper hold."""
        first = ordered(participations(of(runs, mirror), 0) for mirror in DRAWN)
        pruned = {
            mirror.name: torch.stack([run.pruned[AT80] for run in of(runs, mirror)])
            for mirror in DRAWN
        }
        sparse, gd, dense = (pruned[mirror.name] for mirror in DRAWN)
        accurate = torch.stack([_accuracy(of(runs, mirror)) for mirror in DRAWN]) > 0.97
        claims = {
            "test accuracy above 97 % with all three": accurate.all(0),
            "first layer: hyperbolic sparser than gradient descent, that than p = 10": first,
            "80 % pruned: hyperbolic more accurate than gradient descent": sparse > gd,
            "80 % pruned: p = 10 less accurate than gradient descent": dense < gd,
        }
        rows = [(claim, f"{int(held.sum())} of {len(held)}") for claim, held in claims.items()]
        return ResultTable("Orders of Figure 4", ("claim", "seeds"), tuple(rows))

    def _alike(self, runs: Runs) -> ResultTable:
        """What is gradient descent: by its metric, by where it ends, by its last layer."""
        gd, starts = of(runs, GD), self.starts()
        rows = []
        for mirror in (AGAIN, *LARGE, *PRINTED, *(it for it in DRAWN if it != GD)):
            found = of(runs, mirror)
            apart = distance(found, gd, starts)
            more = participations(found, -1) - participations(gd, -1)
            metric = self.deviation(mirror)
            rows.append((mirror.label, f"{metric:.1e}", spread(apart, ".2f"), spread(more, "+.3f")))
        title = (
            "Beside gradient descent of the same seed: mean |D − 1| at the start; distance of the "
            "weights over the way they go; participation of the last layer, difference"
        )
        return ResultTable(title, ("mirror", "|D − 1|", "distance", "last layer"), tuple(rows))

    def plotted(self, runs: Runs) -> ResultTable:
        """Quantiles of the distributions."""
        return distribution_table(runs, self.mirrors(), 0, "First layers, |w| / root mean square")


def _accuracy(runs: Sequence[Trained]) -> Tensor:
    """On the images to test on, at the end, (seeds,)."""
    return torch.stack([run.measure("test_accuracy")[-1] for run in runs])


SCENARIO = Fig4
