"""Table 9: test accuracy of a VGG by three mirrors, the best of the sweep over λ and η.

λ is one of 1e-5, 0.01, 0.1 and 1, η of 0.1 and 0.2, as in Appendix J.3; the power of the width is
corrected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mirrorode.experiment.figures import colour
from mirrorode.experiment.scenario import ResultTable
from mirrorode.experiment.training import Trained
from mirrorode.experiment.vision import (
    GD,
    KINDS,
    LABELS,
    LAMBDAS,
    RATES,
    Mirror,
    Runs,
    Vision,
    homogeneous,
    hyperbolic,
    of,
    spread,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUN_TIME = "6 min"
COLLAPSED = 80.0  # %, below which a training has lost what it had learned
PUBLISHED = {"gd": "81.26 ± 0.15", "p10": "81.26 ± 0.12", "hyperbolic": "81.96 ± 0.41"}
MIRRORS = (
    *(replace(GD, lr=rate) for rate in RATES),
    *(homogeneous(lam, rate) for lam in LAMBDAS for rate in RATES),
    *(hyperbolic(lam, rate) for lam in LAMBDAS for rate in RATES),
)


@dataclass(frozen=True)
class Table9(Vision):
    """What can be changed."""

    def mirrors(self) -> Sequence[Mirror]:
        """The sweep."""
        return MIRRORS

    def figure(self, runs: Runs) -> Figure:
        """Loss and margin of every network with the smaller step size."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.9, 2.7), layout="constrained")
        axes = figure.subplots(1, 3)
        styles = dict(zip(LAMBDAS, ("-", "--", "-.", ":"), strict=True))
        for mirror in (it for it in MIRRORS if it.lr == RATES[0]):
            run, lam = of(runs, mirror)[0], getattr(mirror.potential, "lam", LAMBDAS[0])
            for axis, name in zip(axes, ("train_loss", "test_accuracy", "margin"), strict=True):
                axis.plot(
                    run.measure("epoch"), run.measure(name), styles[lam], lw=0.9,
                    color=colour(mirror.potential), label=mirror.label,
                )  # fmt: skip
        for axis, name in zip(
            axes, ("training loss", "test accuracy", "margin (J.3)"), strict=True
        ):
            axis.set(xlabel="epoch", ylabel=name)
        axes[0].set_yscale("log")
        if any(line.get_ydata().max() > 0 for line in axes[2].lines):
            axes[2].set_yscale("log")  # from where all images are classified
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=6)
        figure.suptitle(f"{self.title}, η = {RATES[0]:g}, seed 0", fontsize=8)
        return figure

    def tables(self, runs: Runs) -> list[ResultTable]:
        """The best of each mirror; then the whole sweep."""
        highest = {mirror: _accuracy(of(runs, mirror)).amax(1) for mirror in MIRRORS}
        end = {mirror: _accuracy(of(runs, mirror))[:, -1] for mirror in MIRRORS}
        best = []
        for kind, label in LABELS.items():
            own = [it for it in MIRRORS if KINDS[type(it.potential)] == kind]
            mirror = max(own, key=lambda it: float(highest[it].mean()))
            where = f"η = {mirror.lr:g}" + mirror.label.removeprefix(label)
            here = (spread(found[mirror], ".2f") for found in (highest, end))
            best.append((label, PUBLISHED[kind], *here, where))
        rows = [
            (
                mirror.label, f"{mirror.lr:g}", spread(highest[mirror], ".2f"),
                spread(end[mirror], ".2f"), str(int((end[mirror] < COLLAPSED).sum())),
            )
            for mirror in MIRRORS
        ]  # fmt: skip
        title = (
            f"Test accuracy in %, {self.title}, {self.counted}: highest along the epochs, on the "
            "very images it is told for, as in the paper; and at the end"
        )
        columns = ("mirror", "paper (VGG-16, CIFAR-10)", "highest", "at the end", "at")
        names = ("mirror", "η", "highest, %", "at the end, %", "seeds that collapsed")
        whole = ResultTable(
            "The whole sweep; seeds that collapsed end below 80 %", names, tuple(rows)
        )
        return [ResultTable(title, columns, tuple(best)), whole]

    def plotted(self, runs: Runs) -> ResultTable:
        """Everything that was measured along the epochs."""
        rows = [
            (name, *(f"{value:.8g}" for value in row))
            for name, run in runs.items()
            for row in run.history.tolist()
        ]
        columns = ("run", "epoch", "train_loss", "train_accuracy", "test_accuracy", "margin")
        return ResultTable("Along the epochs", columns, tuple(rows))


def _accuracy(runs: Sequence[Trained]) -> Tensor:
    """Along the epochs, in %, (seeds, T); where a loss was no number, the last one before it."""
    length = max(len(run.history) for run in runs)
    found = [100 * run.measure("test_accuracy") for run in runs]
    return torch.stack([torch.cat([it, it[-1:].expand(length - len(it))]) for it in found])


SCENARIO = Table9
