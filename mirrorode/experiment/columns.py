"""Tables 2 and 6: which potential has the largest of each L_k-margin, for every seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mirrorode.experiment.panels import KS, draw_margins, margins, plotted_margins, short, spread
from mirrorode.experiment.paper import LOSS, OWN, POTENTIALS, PUBLISHED
from mirrorode.experiment.scenario import ResultTable
from mirrorode.experiment.students import Runs, Students, of
from mirrorode.flow.stopping import LogInverseLoss

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINNERS = {k: name for name, k in OWN.items()}


@dataclass(frozen=True)
class Columns(Students):
    """A table of margins of the three potentials."""

    seeds: int = 6
    """Student seeds, from 0."""

    def figure(self, runs: Runs) -> Figure:
        """The three margins along the flow, every seed."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.9, 2.5), layout="constrained")
        axes = figure.subplots(1, 3)
        for axis, k in zip(axes, KS, strict=True):
            draw_margins(axis, runs, self._layers, POTENTIALS, k)
        handles, texts = axes[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside upper center", ncols=3)
        return figure

    def tables(self, runs: Runs) -> list[ResultTable]:
        """The paper's table where it stops and at the limit, and the ratios beside its own."""
        return column_tables(runs, self._layers, self.limit, PUBLISHED[self._layers])

    def plotted(self, runs: Runs) -> ResultTable:
        """The margins at every saved point of every run."""
        return plotted_margins(runs)

    @property
    def _layers(self) -> int:
        return 2 if self.two else 3


def column_tables(
    runs: Runs, layers: int, limit: float, published: Mapping[str, tuple[float, float, float]]
) -> list[ResultTable]:
    """Margins where the paper stops, at the limit, and over those of the column's owner."""
    stops = (LogInverseLoss(LOSS), LogInverseLoss(limit))
    places = ("loss 1e-50", f"log(1/loss) = {short(limit)}")
    found = [{name: margins(of(runs, layers, name), it) for name in POTENTIALS} for it in stops]
    named = [
        _margin_table(f"L_k-margins of {_seeds(measured)} at {where}", measured)
        for measured, where in zip(found, places, strict=True)
    ]
    return [*named, _ratio_table(found, published)]


def _seeds(measured: Mapping[str, Tensor]) -> str:
    count = max(map(len, measured.values()))
    return f"{count} student seeds" if count > 1 else "student seed 0"


def _margin_table(title: str, measured: Mapping[str, Tensor]) -> ResultTable:
    """Mean ± standard deviation; in each owner's column, how often it has the largest margin."""
    rows = []
    for name, values in measured.items():
        cells = [spread(column) for column in values.T]
        own = OWN[name] - 1
        others = torch.stack([it[:, own] for other, it in measured.items() if other != name])
        won = int((values[:, own] > others.amax(0)).sum())
        cells[own] += f" ★ {won}/{len(values)}"
        rows.append((name, *cells))
    title += " (★: own column, and for how many seeds it is the largest there)"
    return ResultTable(title, ("potential", *(f"L_{k}" for k in KS)), tuple(rows))


def _ratio_table(
    found: list[dict[str, Tensor]], published: Mapping[str, tuple[float, float, float]]
) -> ResultTable:
    """Each mean margin over that of the potential which owns the column."""
    rows = []
    for name in POTENTIALS:
        cells = []
        for k in KS:
            ratios = [published[name][k - 1] / published[WINNERS[k]][k - 1]]
            for measured in found:
                ours, best = (measured[it].mean(0)[k - 1] for it in (name, WINNERS[k]))
                ratios.append(float(ours / best))
            cells.append("/".join(_ratio(ratio) for ratio in ratios))
        rows.append((name, *cells))
    title = "Margins over that of the column's owner: paper/here at loss 1e-50/here at the limit"
    return ResultTable(title, ("potential", *(f"L_{k}" for k in KS)), tuple(rows))


def _ratio(value: float) -> str:
    return "nan" if math.isnan(value) else f"{value:.3g}"
