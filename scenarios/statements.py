"""Every statement of the paper on its two-layer problem, to log(1/𝓛) = 1e9, with the slack.

The problem of Figure 2 (100 ReLU neurons, 200 points on the unit circle), which the paper follows
to a loss of 1e-50, for the hyperbolic entropy, gradient flow, and p = 3. The figure shows how the
three limits are approached: the exponent of Theorem 4.6, the KKT residual of Theorem 4.7 with the
best multipliers, and the difference between the Q-margin and that of the horizon (Lemma 4.10).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import mirrorode as mo
from mirrorode.experiment.figures import colour, label
from mirrorode.experiment.integration import Integration
from mirrorode.experiment.paper import LOSS as PAPER_LOSS
from mirrorode.experiment.paper import POTENTIALS
from mirrorode.experiment.scenario import ResultTable, Scenario
from mirrorode.problem.errors import LARGEST, require_integer, require_number, require_rtol
from mirrorode.theory.alignment import misaligned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RUN_TIME = "1 min"

CERTIFICATES = 3
"""KKT residuals a decade of log(1/𝓛)."""
MEASURED = ("Theorem 4.6", "Thm 4.7", "Cor. 4.8, open", "Cor. I.1", "Lemma 4.10", "Theorem 4.9")
"""Statements whose measured values are shown in full."""

Runs = Mapping[str, mo.Trajectory]


@dataclass(frozen=True)
class Statements(Scenario):
    """What can be changed."""

    seed: int = 0
    """Seed of the student."""
    data_seed: int = 42
    """Seed of the samples and the teacher."""
    neurons: int = 100
    """Hidden width of the student."""
    samples: int = 200
    """Points on the unit circle."""
    limit: float = 1e9
    """log(1/loss) to integrate to; the paper's is 115.13."""
    rtol: float = 1e-5
    """Relative tolerance of the integration."""

    def quick(self) -> Statements:
        """A smaller student on fewer points, and not as far."""
        return replace(self, neurons=20, samples=50, limit=1e6)

    def jobs(self, device: str) -> list[Integration]:
        """One trajectory a potential."""
        require_integer(self.neurons, "neurons", 1, LARGEST)
        require_rtol(self.rtol)
        must = "be at least 115.13, where the paper stops"
        require_number(self.limit, "limit", must, PAPER_LOSS, strict=False)
        data = mo.teacher_student(self.samples, seed=self.data_seed).to(device)
        network = mo.MLP((2, self.neurons, 1))
        theta, until = network.initial(self.seed).to(device), mo.LogInverseLoss(self.limit)
        flows = {name: mo.MirrorFlow(network, data, it) for name, it in POTENTIALS.items()}
        return [
            Integration(name, flow, theta, until, None, self.rtol) for name, flow in flows.items()
        ]

    def figure(self, runs: Runs) -> Figure:
        """Three limits, each as what is left to it, against the logarithm of the inverse loss."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.9, 2.6), layout="constrained")
        axes = figure.subplots(1, 3)
        names = (
            r"$|$local exponent $- (2 - \alpha/L)|$",
            "relative KKT residual",
            r"$1 - \varphi/(\alpha Q)^{1/\alpha}$",
        )
        titles = ("Rate, Theorem 4.6", "KKT point, Theorem 4.7", "Alignment, Lemma 4.10")
        for axis, curve, name, title in zip(axes, CURVES, names, titles, strict=True):
            for run in runs.values():
                loss, value = curve(run)
                shade, text = colour(run.flow.potential), label(run.flow.potential)
                axis.plot(loss, value, color=shade, lw=1.2, label=text)
            _frame(axis, name, title)
        handles, texts = axes[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=3)
        return figure

    def tables(self, runs: Runs) -> list[ResultTable]:
        """Each statement with its verdict and slack by potential, and some measured values."""
        found = {name: mo.verify(run) for name, run in runs.items()}
        potentials = tuple(label(run.flow.potential) for run in runs.values())
        rows = [
            (verdicts[0].statement, *(_cell(one) for one in verdicts))
            for verdicts in zip(*found.values(), strict=True)
        ]
        problem = (
            f"MLP (2, {self.neurons}, 1), {self.samples} points, to log(1/loss) = {self.limit:g}"
        )
        details = [
            (one.statement.split(":")[0], potential, one.detail)
            for start in MEASURED
            for potential, verdicts in zip(potentials, found.values(), strict=True)
            for one in verdicts
            if one.statement.startswith(start) and one.outcome is not mo.Outcome.NOT_APPLICABLE
        ]
        return [
            ResultTable(f"Verdicts and slack: {problem}", ("statement", *potentials), tuple(rows)),
            ResultTable(
                f"Measured: {problem}", ("statement", "potential", "measured"), tuple(details)
            ),
        ]

    def plotted(self, runs: Runs) -> ResultTable:
        """The curves of the three panels."""
        kinds = ("exponent", "residual", "misaligned")
        rows = [
            (name, kind, f"{x:.10g}", f"{y:.10g}")
            for kind, curve in zip(kinds, CURVES, strict=True)
            for name, run in runs.items()
            for x, y in zip(*(it.tolist() for it in curve(run)), strict=True)
        ]
        return ResultTable("Approach", ("run", "kind", "log_inverse_loss", "value"), tuple(rows))


def exponent(run: mo.Trajectory) -> tuple[Tensor, Tensor]:
    """log(1/𝓛) and how far the local exponent of log t in 1/(𝓛 t) is from 2 − α/L.

    Differences over a factor of about ten in log t.
    """
    late = torch.nonzero(run.log_time > 3)[:, 0]
    loss, time = run.log_inverse_loss[late], run.log_time[late]
    scale = time.log()
    later = torch.searchsorted(scale, scale + math.log(10))
    kept = later < len(scale)
    later = later[kept]
    rise = (loss - time)[later] - (loss - time)[kept]
    assert run.flow.potential.degree is not None
    theory = 2 - run.flow.potential.degree / run.flow.network.degree
    local = rise / (scale[later] - scale[kept])
    return torch.sqrt(loss[kept] * loss[later]), (local - theory).abs()


def residual(run: mo.Trajectory) -> tuple[Tensor, Tensor]:
    """log(1/𝓛) and the relative KKT residual, at a few saved points a decade."""
    late = torch.nonzero(run.log_inverse_loss > 1)[:, 0]
    place = (CERTIFICATES * run.log_inverse_loss[late].log10()).round()
    first = torch.nonzero(torch.diff(place, prepend=place[:1] - 1))[:, 0]
    points = late[first]
    values = [mo.kkt(run.flow, run.theta[point]).residual for point in points]
    return run.log_inverse_loss[points], torch.tensor(values)


def difference(run: mo.Trajectory) -> tuple[Tensor, Tensor]:
    """log(1/𝓛) and 1 − φ/Q̂^{1/α}; round-off for gradient flow, where they are the same."""
    late = run.log_inverse_loss > 1
    gap = misaligned(run.flow, run.theta[late])
    return run.log_inverse_loss[late], torch.where(gap > 1e-15, gap, torch.nan)


CURVES = (exponent, residual, difference)


def _frame(axis: Axes, name: str, title: str) -> None:
    axis.set(xscale="log", yscale="log", xlabel=r"$\log(1/\mathcal{L})$", ylabel=name, title=title)
    axis.axvline(PAPER_LOSS, color="0.6", lw=0.7, ls="--", zorder=0)
    axis.annotate(
        "paper stops", (PAPER_LOSS, 0), (2, 2), ("data", "axes fraction"), "offset points",
        fontsize=6, color="0.4",
    )  # fmt: skip


def _cell(verdict: mo.Verdict) -> str:
    if verdict.outcome is mo.Outcome.NOT_APPLICABLE:
        return "not applicable"
    return f"{verdict.outcome.value}, {verdict.slack:.2g}"


SCENARIO = Statements
