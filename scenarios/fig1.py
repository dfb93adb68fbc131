"""Figure 1: balance manifolds with flows that stay on them, and level sets against their horizon.

Left, the balance equation κ̃(w) − κ̃(a) = const (Lemma 3.1; κ̃ is the Q of one weight less that of
a zero one) of a linear neuron f(x) = a w x with the sample x = 1, y = +1: its solution sets through
common starts for each potential, as in the paper, and on them the flows computed from these starts.
Right, the level sets Q(∇R(θ)) = c of the hyperbolic entropy for several λ, and that of the horizon,
‖θ‖₁ = c. In units of c they depend on λ/c² alone: a larger λ and a lower level are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import mirrorode as mo
from mirrorode.experiment.figures import colour, label
from mirrorode.experiment.integration import Integration
from mirrorode.experiment.paper import POTENTIALS
from mirrorode.experiment.scenario import ResultTable, Scenario
from mirrorode.problem.errors import require_integer, require_number, require_rtol
from mirrorode.theory.balance import unit_laws

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

RUN_TIME = "1 min"

STARTS = ((1.5, -1.0), (-1.0, 1.2), (-1.5, 1.0), (1.0, -1.2))
"""(w, a), one on each branch; the last two are the first two through the origin."""
HALF = 2.5
"""Half the width of the left panel."""
LAMBDAS = (0.2, 0.1, 0.03, 0.01, 0.001)
"""λ/c² on the right; at 1/4 the level set has shrunk to the origin."""
HORIZON = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1], [1, 0]], dtype=torch.float64)
"""The level set ‖θ‖₁ = c, in units of c."""
EQUAL: dict[str, Any] = {"ls": ":", "color": "0.5", "lw": 0.8}
"""How |a| = |w| is drawn, the balance equation of every potential whose constant is zero."""
FLOW: dict[str, Any] = {"lw": 3.2, "alpha": 0.45, "solid_capstyle": "round"}
"""How a flow is drawn: wide, so that its manifold is seen inside."""
BELOW: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14)}
"""Where legends are."""
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

    def jobs(self, device: str) -> list[Integration]:
        """One trajectory a potential and start."""
        require_integer(self.starts, "starts", 1, 4)
        must = f"be at least {HALF**2:g}, where the panel ends"
        require_number(self.limit, "limit", must, HALF**2, strict=False)
        require_rtol(self.rtol)
        data = mo.Dataset(torch.ones(1, 1), torch.ones(1)).to(device)
        network = mo.MLP((1, 1, 1), activation="linear")
        until = mo.LogInverseLoss(self.limit)
        return [
            Integration(
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
        return [_deviation_table(runs, self.limit), _level_table()]

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


def _weight(potential: mo.Potential, term: Tensor) -> Tensor:
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
    """θ (points, 2) by dense output from the start to where the panel ends, as integrated.

    Not put back on its manifold, as `at` would: that it is there anyway is what the figure shows.
    """
    integrated = replace(run, balanced=False)
    start, end = math.cbrt(float(run.log_inverse_loss[0])), math.cbrt(HALF**2)
    # Equal steps of the cube root: log(1/𝓛) = a w stands nearly still in the narrowest turn, at 0.
    losses = torch.linspace(start, end, POINTS, dtype=torch.float64) ** 3
    rest = [integrated.at(log_inverse_loss=it) for it in losses[1:].tolist()]
    return torch.stack([run.theta[0], *rest])


def _manifold(run: mo.Trajectory) -> dict[str, Tensor]:
    """The solution set through the start: its two branches, each (points, 2) in (w, a)."""
    potential = run.flow.potential
    constant = unit_laws(run.flow, run.theta[0]).values
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
    for name, run in runs.items():
        shade, first = colour(run.flow.potential), name.endswith("start0")
        path = _path(run)
        named = label(run.flow.potential) if first else None
        axis.plot(*path.T, color=shade, label=named, **FLOW)
        for branch in _manifold(run).values():
            axis.plot(*branch.T, color=shade, lw=0.8)
        turn = int(path.prod(1).abs().argmin())
        (w, a), (to_w, to_a) = path[[turn - 1, turn + 1]].tolist()
        arrow = {"arrowstyle": "-|>", "color": shade, "lw": 0, "mutation_scale": 11}
        axis.annotate("", (to_w, to_a), (w, a), arrowprops=arrow)
        axis.plot(*run.theta[0], "o", color="k", ms=4, zorder=3)
    axis.plot([-HALF, HALF], [-HALF, HALF], **EQUAL)
    axis.plot([-HALF, HALF], [HALF, -HALF], **EQUAL)
    limits, ticks = (-HALF, HALF), range(-2, 3)
    axis.set(xlim=limits, ylim=limits, xticks=ticks, yticks=ticks, aspect="equal")
    axis.set(xlabel="$w$", ylabel="$a$")
    axis.set(title=r"Balance: $\tilde\kappa(w) - \tilde\kappa(a)$ = const")
    potentials, _ = axis.get_legend_handles_labels()
    axis.legend(handles=[*potentials, *_key()], ncols=2, **BELOW)


def _key() -> list[Line2D]:
    """What the lines and marks on the left mean, whatever their colour."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color="k", marker="o", ls="", ms=4, label="start of the flows"),
        Line2D([], [], color="0.3", label="flow, as integrated", **FLOW),
        Line2D([], [], color="0.3", lw=0.8, label="balance equation"),
        Line2D([], [], label="|a| = |w|, for all", **EQUAL),
    ]


def _draw_levels(axis: Axes) -> None:
    base = colour(mo.HyperbolicEntropy(lam=1.0))
    for share, tint in zip(LAMBDAS, (0.3, 0.45, 0.6, 0.8, 1.0), strict=True):
        shown = rf"$\lambda = {share:g}\,c^2$"
        axis.plot(*_level_set(share).T, color=base, alpha=tint, label=shown)
    axis.plot(*HORIZON.T, "--", color="k", lw=0.8, label=r"horizon $\|\theta\|_1 = c$")
    ticks = (-1, -0.5, 0, 0.5, 1)
    axis.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), xticks=ticks, yticks=ticks, aspect="equal")
    axis.set(xlabel=r"$\theta_1 / c$", ylabel=r"$\theta_2 / c$")
    axis.set(title=r"Hyperbolic entropy: $Q(\nabla R(\theta)) = c$")
    axis.legend(ncols=2, **BELOW)


def _deviation_table(runs: Runs, limit: float) -> ResultTable:
    rows = []
    for name, run in runs.items():
        w, a = run.theta[0].tolist()
        constant = float(unit_laws(run.flow, run.theta[0]).values)
        drifts = [unit_laws(run.flow, theta).drift() for theta in (run.theta, _path(run))]
        drifts.insert(0, torch.tensor(math.nan) if run.drift is None else run.drift.amax())
        cells = (f"({w:g}, {a:g})", f"{constant:.4f}", str(run.stats.steps))
        rows.append((name, *cells, *(f"{float(drift):.1e}" for drift in drifts)))
    title = (
        "Largest |κ̃(w) − κ̃(a) − C| over κ̃(w) + κ̃(a): "
        f"as integrated to log(1/loss) = {limit:g}, corrected, and on the curve drawn, uncorrected"
    )
    columns = ("run", "(w, a) from", "C", "steps", "integrated", "corrected", "as drawn")
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
