"""What following the inclusion buys: work and accuracy where neurons cross kinks and slide on them.

The paper's two-layer problem from the initial point to log(1/𝓛) = 2, where nearly all its kinks
are met, by three methods, each at several settings, one after the other in one process:

- ``auto``, the integrator of the project, which crosses kinks inside steps and slides on them;
- ``dopri5`` of torchdiffeq in log time, adaptive and through kinks;
- the midpoint rule with fixed steps of the loss time dσ = 𝓛 dt, dz/dσ = G with the gates taken from
  the signs of the pre-activations: the second-order relative of mirror descent with rescaled steps.

The error is that of the direction θ/‖θ‖ against a trajectory whose events were located to round-off
(tests/references). The residual of the dissipation identity, |∫‖G‖²_D dσ − Δ log(1/𝓛)|, needs no
reference: every method integrates ∫‖G‖²_D dσ beside the flow. Both peers have a budget of
evaluations (margins and gradient at one θ); one that has not arrived by then has no error.

    python benchmarks/inclusion.py
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

import mirrorode as mo
from mirrorode.experiment.figures import label
from mirrorode.experiment.scenario import ResultTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
STYLE = ROOT / "mirrorode/experiment/paper.mplstyle"
END = 2.0
POTENTIALS = {
    "hyp": mo.HyperbolicEntropy(0.1),
    "gd": mo.Euclidean(),
    "p3": mo.SmoothedHomogeneous(3, 1.0),
}
LOOSENESS = {"auto": (1e-3, 1e-4, 1e-5, 1e-6, 1e-7), "dopri5": (1e-4, 1e-5, 1e-6)}
LONGEST = 64.0  # step of loss time that is halved; too long for every potential here
UNSTABLE = 1.0  # loss of log(1/𝓛), which only grows along the flow, that ends a run of fixed steps
LANDED = 1e-12
# Colours that no potential has, from the same palette, and black.
STYLES = {
    "auto": ("auto, rtol 1e-3 to 1e-7", "black", "o"),
    "dopri5": ("dopri5 in log t, rtol 1e-4 to 1e-6", "#CC79A7", "s"),
    "midpoint": ("midpoint, fixed steps of loss time, halved", "#56B4E9", "^"),
}
COLUMNS = ("potential", "method", "setting", "evals", "log(1/loss)", "error", "residual")


@dataclass(frozen=True)
class Benchmark:
    """What is compared."""

    budget: int = 70_000
    """Evaluations of a peer before it is stopped; of dopri5, whose steps are limited, about."""
    out: Path = ROOT / "benchmarks/inclusion.md"
    """Where the table is written."""
    figure: Path = ROOT / "figures/inclusion"
    """Where the figure is written, with .pdf, .png and .csv appended."""


@dataclass(frozen=True)
class Measured:
    """One run of one method at one setting.

    Attributes:
        potential, method, setting: what was run; the setting in words.
        evaluations: of margins and gradient.
        loss: log(1/𝓛) at the end.
        outcome: "" if it arrived, else why it did not.
        error: ‖θ/‖θ‖ − reference‖ at the end; NaN if it did not arrive.
        residual: |∫‖G‖²_D dσ − Δ log(1/𝓛)| over what was integrated.
    """

    potential: mo.Potential
    method: str
    setting: str
    evaluations: int
    loss: float
    outcome: str
    error: float
    residual: float

    def cells(self) -> tuple[str, ...]:
        """As a row of the table."""
        reached = f"{self.loss:.3g} ({self.outcome})" if self.outcome else f"{self.loss:.3g}"
        error = "" if math.isnan(self.error) else f"{self.error:.1e}"
        head = (label(self.potential), self.method, self.setting, str(self.evaluations))
        return (*head, reached, error, f"{self.residual:.1e}")


class FixedSteps:
    """The midpoint rule in loss time with gates by sign, beside ∫‖G‖²_D dσ by the same stages.

    A Runge–Kutta method of order four is no better here: the kinks hold it to the first order, and
    stability to steps as short.

    "unstable" means that log(1/𝓛), which only grows along the flow, fell by `UNSTABLE` in all.
    """

    def __init__(self, flow: mo.MirrorFlow, step: float, budget: int) -> None:
        self.flow, self.step, self.budget, self.evaluations = flow, step, budget, 0

    def run(self, theta0: Tensor) -> tuple[Tensor, float, float, str]:
        """θ, log(1/𝓛) and ∫‖G‖²_D dσ where it ended, and why there ("" if it arrived)."""
        dual, dissipated = self.flow.potential.gradient(theta0), 0.0
        here = self._evaluate(dual)
        start, outcome = here[0], ""
        while here[0] < END - LANDED:
            if self.evaluations >= self.budget:
                outcome = "budget spent"
                break
            step, (new, there, gained) = self.step, self._advance(dual, here, self.step)
            if not there[0] > start - UNSTABLE:
                outcome = "unstable"
                break
            if there[0] > END:
                new, there, gained = self._land(dual, here, step, there[0])
            dual, here, dissipated = new, there, dissipated + gained
        return self.flow.potential.inverse_gradient(dual), here[0], dissipated, outcome

    def _evaluate(self, dual: Tensor) -> tuple[float, Tensor, float]:
        """log(1/𝓛), G (n,) and ‖G‖²_D: one evaluation."""
        self.evaluations += 1
        flow = self.flow
        theta = flow.potential.inverse_gradient(dual)
        forward = flow.network.forward(theta, flow.dataset.x)
        margins = flow.dataset.y * forward.output
        gradient, _ = flow.network.backward(forward)
        field = (torch.softmax(-margins, 0) * flow.dataset.y) @ gradient
        speed = flow.potential.inverse_hessian(theta) @ field.square()
        return -float(torch.logsumexp(-margins, 0)), field, float(speed)

    def _advance(
        self, dual: Tensor, here: tuple[float, Tensor, float], step: float
    ) -> tuple[Tensor, tuple[float, Tensor, float], float]:
        """The dual after a step, the evaluation there, and what the step dissipated."""
        _, field, speed = self._evaluate(dual + 0.5 * step * here[1])
        new = dual + step * field
        return new, self._evaluate(new), step * speed

    def _land(
        self, dual: Tensor, here: tuple[float, Tensor, float], step: float, loss: float
    ) -> tuple[Tensor, tuple[float, Tensor, float], float]:
        """The last step, shortened by the secant rule in a bracket until it ends on the loss."""
        low, high = (0.0, here[0] - END), (step, loss - END)
        while True:
            share = min(max(low[1] / (low[1] - high[1]), 0.02), 0.98)
            step = low[0] + share * (high[0] - low[0])
            new, there, gained = self._advance(dual, here, step)
            excess = there[0] - END
            if abs(excess) <= LANDED or high[0] - low[0] <= 1e-15 * high[0]:
                return new, there, gained
            low, high = (low, (step, excess)) if excess > 0 else ((step, excess), high)


def measure(setting: Benchmark) -> Iterator[Measured]:
    """Run everything, the settings of a peer from loose to tight until it does not arrive."""
    data, network = mo.teacher_student(seed=42), mo.MLP((2, 100, 1))
    start = network.initial(0)
    for name, potential in POTENTIALS.items():
        flow = mo.MirrorFlow(network, data, potential)
        stored = np.load(ROOT / f"tests/references/{name}_42_0.npz")["theta2"]
        reference = torch.from_numpy(stored)
        for method, tolerances in LOOSENESS.items():
            for rtol in tolerances:
                found = _adaptive(setting, flow, start, reference, method, rtol)
                yield found
                if found.outcome:
                    break
        for halvings in itertools.count():
            step = LONGEST / 2**halvings
            found = _fixed(setting, flow, start, reference, step)
            if found.outcome != "unstable":
                yield found
            # Half the step takes twice the evaluations: then it need not be tried.
            if found.outcome == "budget spent" or 2 * found.evaluations > setting.budget:
                break


def _adaptive(
    setting: Benchmark, flow: mo.MirrorFlow, start: Tensor, reference: Tensor, method: str,
    rtol: float,
) -> Measured:  # fmt: skip
    budget = 100_000 if method == "auto" else setting.budget // 7  # stages, and some rejections
    found = mo.solve(
        flow, start, until=mo.LogInverseLoss(END), method=method, rtol=rtol, atol=0.01 * rtol,
        max_steps=budget,
    )  # fmt: skip
    assert isinstance(found, mo.Trajectory)
    outcome = "" if found.success else found.status.name
    outcome = "budget spent" if found.status is mo.Status.MAX_STEPS else outcome
    loss, gained = found.log_inverse_loss, float(found.dissipated[-1])
    residual = abs(gained - float(loss[-1] - loss[0]))
    error = math.nan if outcome else _distance(found.theta[-1], reference)
    return Measured(
        flow.potential, method, f"rtol {rtol:.0e}".replace("e-0", "e-"), found.stats.evaluations,
        float(loss[-1]), outcome, error, residual,
    )  # fmt: skip


def _fixed(
    setting: Benchmark, flow: mo.MirrorFlow, start: Tensor, reference: Tensor, step: float
) -> Measured:
    method = FixedSteps(flow, step, setting.budget)
    theta, loss, dissipated, outcome = method.run(start)
    residual = abs(dissipated - (loss - float(flow.log_inverse_loss(start))))
    error = math.nan if outcome else _distance(theta, reference)
    return Measured(
        flow.potential, "midpoint", f"step {step:g}", method.evaluations, loss, outcome, error,
        residual,
    )  # fmt: skip


def _distance(theta: Tensor, reference: Tensor) -> float:
    """Between the directions of two parameter vectors."""
    return float((theta / theta.norm() - reference / reference.norm()).norm())


def draw(setting: Benchmark, found: list[Measured]) -> Figure:
    """Error and residual against evaluations, a column a potential, of the runs that arrived."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(6.9, 4.2), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey="row")
    for column, potential in zip(axes.T, POTENTIALS.values(), strict=True):
        for method, (name, shade, marker) in STYLES.items():
            runs = [it for it in found if (it.potential, it.method) == (potential, method)]
            runs = [it for it in runs if not it.outcome]  # joined from loose to tight
            for axis, quantity in zip(column, ("error", "residual"), strict=True):
                axis.plot(
                    [it.evaluations for it in runs], [getattr(it, quantity) for it in runs],
                    color=shade, marker=marker, ms=4, lw=1, label=name,
                )  # fmt: skip
        for axis in column:
            axis.axvline(setting.budget, color="0.6", lw=0.7, ls="--", zorder=0)
            axis.set(xscale="log", yscale="log")
            axis.yaxis.set_minor_locator(NullLocator())
            axis.grid(color="0.92", lw=0.5)
            axis.set_axisbelow(True)
        column[0].set(title=label(potential))
        column[1].set(xlabel="evaluations")
    axes[0, 0].annotate(
        "budget of the peers", (setting.budget, 1), (-2, -2), ("data", "axes fraction"),
        "offset points", fontsize=6, color="0.4", rotation=90, ha="right", va="top",
    )  # fmt: skip
    axes[0, 0].set(ylabel=r"error of $\theta/\|\theta\|$" + "\n" + r"at $\log(1/\mathcal{L}) = 2$")
    identity = r"$|\int\|G\|_D^2\,\mathrm{d}\sigma - \Delta\,\log(1/\mathcal{L})|$"
    axes[1, 0].set(ylabel="dissipation residual\n" + identity)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3)
    return figure


def plotted(found: list[Measured]) -> ResultTable:
    """The numbers behind the figure, and those of runs that did not arrive."""
    columns = (*COLUMNS[:4], "log_inverse_loss", "outcome", *COLUMNS[5:])
    rows = tuple(
        (
            label(it.potential), it.method, it.setting, str(it.evaluations), f"{it.loss:.10g}",
            it.outcome or "arrived", f"{it.error:.6g}", f"{it.residual:.6g}",
        )
        for it in found
    )  # fmt: skip
    return ResultTable("Work and accuracy", columns, rows)


def main() -> None:
    """Print the table, write it as Markdown, and draw the figure."""
    import matplotlib as mpl

    setting = tyro.cli(Benchmark)
    torch.set_num_threads(1)
    console, found = Console(), []
    title = f"Two-layer problem to log(1/loss) = {END:g}, peers within {setting.budget} evaluations"
    with console.status("integrating") as progress:
        for run in measure(setting):
            progress.update(" ".join(run.cells()))
            found.append(run)
    result = ResultTable(title, COLUMNS, tuple(run.cells() for run in found))
    table = Table(*result.columns, title=result.title)
    for row in result.rows:
        table.add_row(*row)
    console.print(table)
    setting.out.write_text(result.to_markdown(), encoding="utf-8")
    setting.figure.with_suffix(".csv").write_text(plotted(found).to_csv(), encoding="utf-8")
    with mpl.rc_context(fname=str(STYLE)):
        figure = draw(setting, found)
        figure.savefig(setting.figure.with_suffix(".pdf"), metadata={"CreationDate": None})
        figure.savefig(setting.figure.with_suffix(".png"))


if __name__ == "__main__":
    main()
