"""Figure 1: balance manifolds with flows that stay on them, and level sets against their horizon.

Left, the balance equation κ̃(w) − κ̃(a) = const (Lemma 3.1) of one linear neuron f(x) = a w x with
the sample x = 1, y = +1: its solution sets through common starts for each potential, and the
computed flows from these starts. The paper draws the sets only. Right, the level sets Q(∇R(θ)) = c
of the hyperbolic entropy for several λ, and that of the horizon, ‖θ‖₁ = c. Measured in units of c
they depend on λ/c² alone: a larger λ and a lower level are the same.
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
from mirrorode.experiment.scenario import Job, ResultTable, Scenario
from mirrorode.problem.errors import require, require_number
from mirrorode.theory.balance import neuron_balance

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RUN_TIME = "1 min"

POTENTIALS = {
    "hyperbolic": mo.HyperbolicEntropy(lam=0.1),
    "euclidean": mo.Euclidean(),
    "p3": mo.SmoothedHomogeneous(p=3, lam=1.0),
}
STARTS = ((1.5, -1.0), (-1.0, 1.2), (-1.5, 1.0), (1.0, -1.2))
"""(w, a), one on each branch; the last two are the first two through the origin."""
HALF = 2.5
"""Half the width of the left panel."""
LAMBDAS = (0.2, 0.1, 0.03, 0.003, 1e-4)
"""λ/c² on the right; at 1/4 the level set has shrunk to the origin."""
HORIZON = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1], [1, 0]], dtype=torch.float64)
"""The level set ‖θ‖₁ = c, in units of c."""
POINTS = 120
"""A curve is drawn through so many points; a level set through as many a quadrant."""

Runs = Mapping[str, mo.Trajectory]


@dataclass(frozen=True)
class Fig1(Scenario):
    """What can be changed."""

    starts: int = 4
    """How many of the four starts, one on each branch of the manifolds."""
    limit: float = 1e4
    """log(1/loss) to integrate to; the panel ends at 6.25."""
    rtol: float = 1e-8
    """Relative tolerance of the integration."""

    def quick(self) -> Fig1:
        """Two starts instead of four, and not as far beyond the panel."""
        return replace(self, starts=2, limit=100.0)

    def jobs(self, device: str) -> list[Job]:
        """One trajectory a potential and start."""
        require(self.starts in range(1, 5), "starts", "be 1, 2, 3 or 4", self.starts)
        must = f"be at least {HALF**2:g}, where the panel ends"
        require_number(self.limit, "limit", must, HALF**2, strict=False)
        require_number(self.rtol, "rtol", "be at least 1e-12", 1e-12, strict=False)
        data = mo.Dataset(torch.ones(1, 1), torch.ones(1)).to(device)
        network = mo.MLP((1, 1, 1), activation="linear")
        until = mo.LogInverseLoss(self.limit)
        return [
            Job(
                f"{name}-start{number}",
                mo.MirrorFlow(network, data, potential),
                torch.tensor(start, dtype=torch.float64, device=device),
                until,
                None,
                self.rtol,
            )
            for name, potential in POTENTIALS.items()
            for number, start in enumerate(STARTS[: self.starts])
        ]

    def figure(self, runs: Runs) -> Figure:
        """Balance manifolds and flows on the left, level sets on the right."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.9, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_balance(left, runs)
        _draw_levels(right)
        return figure

    def tables(self, runs: Runs) -> list[ResultTable]:
        """How far each flow is from its manifold, and each level set from the horizon's."""
        return [_deviation_table(runs), _level_table()]

    def plotted(self, runs: Runs) -> ResultTable:
        """The points of every curve: (w, a) on the left, θ/c on the right."""
        curves = [("horizon", "‖θ‖₁", HORIZON)]
        curves += [("level set", f"{share:g}", _level_set(share)) for share in LAMBDAS]
        for name, run in runs.items():
            curves.append(("trajectory", name, _path(run)))
            curves += [("manifold", f"{name} {side}", it) for side, it in _manifold(run).items()]
        rows = [
            (kind, name, *(f"{value:.17g}" for value in point))
            for kind, name, curve in curves
            for point in curve.tolist()
        ]
        return ResultTable("Curves of figure 1", ("kind", "curve", "first", "second"), tuple(rows))


def _weight(potential: mo.SeparablePotential, term: Tensor) -> Tensor:
    """The t ≥ 0 with κ̃(t) = ``term``, elementwise.

    Newton in log t, where κ̃ is nearly straight: its slope is between 1 and 3 everywhere.
    """
    t = torch.ones_like(term)
    for _ in range(30):
        value = potential.balance_term(t)
        slope = t**2 / (potential.inverse_hessian(t) * value)
        t = torch.where(term > 0, t * (term / value) ** (1 / slope), 1.0)
    return torch.where(term > 0, t, 0.0)


def _path(run: mo.Trajectory) -> Tensor:
    """θ (points, 2) by dense output from the start to where the panel ends."""
    losses = torch.linspace(float(run.log_inverse_loss[0]), HALF**2, POINTS)
    inner = [run.at(log_inverse_loss=loss) for loss in losses[1:].tolist()]
    return torch.stack([run.theta[0], *inner])


def _manifold(run: mo.Trajectory) -> dict[str, Tensor]:
    """The solution set through the start: its two branches, each (points, 2) in (w, a)."""
    potential = run.flow.potential
    constant = neuron_balance(run.flow, run.theta[0]).value
    lesser = torch.linspace(-HALF, HALF, POINTS + 1, dtype=torch.float64)
    greater = _weight(potential, constant.abs() + potential.balance_term(lesser))
    if float(constant) > 0:
        branches = {"w > 0": (greater, lesser), "w < 0": (-greater, lesser)}
    else:
        branches = {"a > 0": (lesser, greater), "a < 0": (lesser, -greater)}
    return {side: torch.stack(pair, 1) for side, pair in branches.items()}


def _level_set(share: float) -> Tensor:
    """The level set Q(∇R(θ)) = c of λ = ``share`` c² as a closed curve (points, 2) of θ/c."""
    potential = mo.HyperbolicEntropy(lam=share)
    angle = torch.linspace(0, 2 * math.pi, 4 * POINTS + 1, dtype=torch.float64)
    direction = torch.stack([angle.cos(), angle.sin()], 1)
    # Shares cos² and sin² of the sum are smooth where the curve is, at the axes too.
    total = 1 - 2 * potential.conjugate_at_zero
    return torch.copysign(_weight(potential, total * direction**2), direction)


def _draw_balance(axis: Axes, runs: Runs) -> None:
    ends = [-HALF, HALF]
    axis.plot(ends, ends, ":", color="0.6", lw=0.8)
    axis.plot(ends, ends[::-1], ":", color="0.6", lw=0.8, label="|a| = |w|, all potentials")
    for name, run in runs.items():
        shade, first = colour(run.flow.potential), name.endswith("start0")
        for branch in _manifold(run).values():
            axis.plot(*branch.T, color=shade, lw=0.7, alpha=0.5)
        path = _path(run)
        axis.plot(*path.T, color=shade, lw=2, label=label(run.flow.potential) if first else None)
        axis.plot(*run.theta[0], "o", color="k", ms=4, zorder=3)
    limits = (-HALF, HALF)
    axis.set(xlim=limits, ylim=limits, aspect="equal", xlabel="$w$", ylabel="$a$")
    axis.set(title=r"Balance: $\tilde\kappa(w) - \tilde\kappa(a)$ = const")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)


def _draw_levels(axis: Axes) -> None:
    base = colour(mo.HyperbolicEntropy(lam=1.0))
    axis.plot(*HORIZON.T, "--", color="k", lw=1, label=r"horizon, $\|\theta\|_1 = c$")
    for number, share in enumerate(LAMBDAS):
        tint = 1 - 0.17 * (len(LAMBDAS) - 1 - number)
        axis.plot(*_level_set(share).T, color=base, alpha=tint, label=f"λ = {share:g} $c^2$")
    axis.set(aspect="equal", xlabel=r"$\theta_1 / c$", ylabel=r"$\theta_2 / c$")
    axis.set(title=r"Hyperbolic entropy: $Q(\nabla R(\theta)) = c$")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3)


def _deviation_table(runs: Runs) -> ResultTable:
    rows = []
    for name, run in runs.items():
        w, a = run.theta[0].tolist()
        drifts = [
            float(neuron_balance(run.flow, theta).drift()) for theta in (run.theta, _path(run))
        ]
        constant = float(neuron_balance(run.flow, run.theta[0]).value)
        reached = f"{float(run.log_inverse_loss[-1]):.6g}"
        cells = (f"({w:g}, {a:g})", f"{constant:.5g}", reached, str(run.stats.steps))
        rows.append((name, *cells, *(f"{drift:.1e}" for drift in drifts)))
    title = "Largest |κ̃(w) − κ̃(a) − C| relative to κ̃(w) + κ̃(a)"
    columns = ("run", "start (w, a)", "C", "to log(1/loss)", "steps", "at steps", "as drawn")
    return ResultTable(title, columns, tuple(rows))


def _level_table() -> ResultTable:
    """‖θ‖₁/c on each level set: least on the axes, largest where |θ₁| = |θ₂|."""
    rows = []
    for share in LAMBDAS:
        size = _level_set(share).abs().sum(1)
        least, most, bound = float(size.min()), float(size.max()), 1 - 2 * math.sqrt(share)
        rows.append((f"{share:g}", *(f"{it:.5f}" for it in (bound, least, most))))
    title = "‖θ‖₁/c on the level set Q = c; Lemma 4.10 bounds it from below by 1 − 2√λ/c"
    return ResultTable(title, ("λ/c²", "bound", "on the axes", "on the diagonals"), tuple(rows))


SCENARIO = Fig1
