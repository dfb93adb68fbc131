"""Table 10 (Appendix J.4): which learning rates and λ keep the first step, and reach the margin.

With weights of size σ = width^(−1/2), a recipe (η, λ) is mirror-μP if E[η D(θ₀)], D = (∇²R)⁻¹,
stays of order one as the width grows; the gradient of a two-layer network is then of the size of
the weights. Lemma 4.10 bounds the time until the margin of the horizon is reached by the
exponential of (√λ n)^L for the hyperbolic entropy and of (pλn/2)^(L/p) for |θ|^p, with n the number
of parameters; the table has n = width in mind. Expectations are computed by quadrature, and the
first step of mirror descent, ‖η D ∂𝓛‖/‖θ₀‖, is measured. No flow is integrated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.integrate import quad
from scipy.stats import linregress
from torch import Tensor

import mirrorode as mo
from mirrorode.experiment.figures import colour
from mirrorode.experiment.scenario import Job, ResultTable, Scenario
from mirrorode.problem.errors import require_integer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RUN_TIME = "20 s"

WIDTHS = tuple(10.0 ** (k / 2) for k in range(4, 17))
"""Where expectations are computed: 1e2 to 1e8."""
FLAT = 0.02
"""A slope that is zero: the largest of the expectations that are known to converge is 2e-4."""
POWERS = {None: "0", -1: "σ⁻¹", 0: "1", 1: "σ", 2: "σ²", 3: "σ³", 4: "σ⁴"}
LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = "os^Dv"
DIM = 2
"""Inputs of the network whose first step is measured."""

Steps = Mapping["Recipe", "Measured"]


@dataclass(frozen=True)
class Recipe:
    """A learning rate and a λ as powers of σ, for one potential.

    Attributes:
        alpha: of the potential: 2 is gradient descent, 1 the hyperbolic entropy, p > 2 |θ|^p.
        eta: η is σ to this power.
        lam: λ is σ to this power; None for λ = 0.
        listed: in which of the two columns of Table 10: "mirror-μP", "margin".
    """

    alpha: int
    eta: int = 0
    lam: int | None = None
    listed: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """The name of the potential, without its λ."""
        return {1: "hyperbolic", 2: "GD"}.get(self.alpha, f"p = {self.alpha}")

    @property
    def title(self) -> str:
        """Its row of the tables."""
        return f"{self.family} {self}"

    def __str__(self) -> str:
        return f"({POWERS[self.eta]}, {'–' if self.alpha == 2 else POWERS[self.lam]})"

    def lam_at(self, width: float) -> float:
        """λ at this width."""
        return 0.0 if self.lam is None else width ** (-self.lam / 2)

    def rate(self, theta: Tensor, width: float) -> Tensor:
        """η D(θ), elementwise."""
        lam = self.lam_at(width)
        if self.alpha == 1 and lam == 0.0:
            metric = theta.abs()  # the limit of the entropy, which itself needs λ > 0
        else:
            metric = _potential(self.alpha, lam).inverse_hessian(theta)
        return width ** (-self.eta / 2) * metric

    def time_exponent(self, width: float, n: float, depth: int) -> float:
        """Lemma 4.10's logarithm of the time, of a network of ``depth`` layers."""
        lam = self.lam_at(width)
        if self.alpha == 1:
            return (math.sqrt(lam) * n) ** depth
        return (self.alpha * lam * n / 2) ** (depth / self.alpha)


MUP, MARGIN = "mirror-μP", "margin"
RECIPES = (
    Recipe(2, 0, None, (MUP, MARGIN)),
    Recipe(1, 0, 0, (MUP,)),
    Recipe(1, -1, None, (MUP, MARGIN)),
    Recipe(1, -1, 2, (MUP,)),
    Recipe(1, -1, 4, (MARGIN,)),
    Recipe(3, 0, 0, (MUP,)),
    Recipe(3, 1, 1, (MUP,)),
    Recipe(3, 2, 2, (MARGIN,)),
    Recipe(5, 0, 0, (MUP,)),
    Recipe(5, 3, 3, (MUP,)),
    Recipe(5, 2, 2, (MARGIN,)),
)
"""The rows of Table 10, those of |θ|^p for p = 3 and 5."""


@dataclass(frozen=True)
class Measured:
    """First steps ‖η D ∂𝓛‖/‖θ₀‖ of a recipe: (widths, seeds)."""

    widths: tuple[int, ...]
    steps: np.ndarray

    def slope(self) -> tuple[float, float]:
        """Of log step against log width over all seeds, with its standard error."""
        widths = np.repeat(self.widths, self.steps.shape[1])
        return slope(widths, self.steps.reshape(-1))


@dataclass(frozen=True)
class Table10(Scenario):
    """What can be changed."""

    seeds: int = 5
    """Initial weights a width, from seed 0."""
    largest: int = 100_000
    """The largest width at which the first step is measured; the smallest is 100."""
    samples: int = 200
    """Samples of the teacher–student problem."""
    data_seed: int = 42
    """Seed of the samples and the teacher."""

    def quick(self) -> Table10:
        """Three seeds, and widths up to 10,000."""
        return replace(self, seeds=3, largest=10_000)

    def jobs(self, device: str) -> list[Job]:
        """None: there is nothing to integrate."""
        require_integer(self.seeds, "seeds", 1, 1000)
        require_integer(self.largest, "largest", 1000, 10_000_000)
        mo.teacher_student(self.samples, seed=self.data_seed)  # says what is wrong with its sizes
        return []

    def figure(self, runs: Mapping[str, mo.Trajectory]) -> Figure:
        """Expectations above, measured first steps below, one column a potential."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.9, 4.9), layout="constrained")
        axes = figure.subplots(2, 3, sharey="row")
        for column, alpha in enumerate((1, 3, 5)):
            _draw_column(axes[:, column], alpha, self._measured())
        axes[0, 0].set_ylabel(r"E$[\eta D(\theta_0)]$")
        axes[1, 0].set_ylabel(r"$\|\eta D\,\partial\mathcal{L}\| / \|\theta_0\|$, first step")
        return figure

    def tables(self, runs: Mapping[str, mo.Trajectory]) -> list[ResultTable]:
        """The column mirror-μP of Table 10, then the column margin reachable."""
        return [_mup_table(self._measured()), _margin_table()]

    def plotted(self, runs: Mapping[str, mo.Trajectory]) -> ResultTable:
        """E[η D], its root mean square, and every measured step."""
        rows = [
            (it.family, str(it), kind, f"{width:.10g}", f"{expected(it, width, power):.12g}")
            for it in RECIPES
            for kind, power in (("mean", 1), ("root mean square", 2))
            for width in WIDTHS
        ]
        for it, found in self._measured().items():
            for width, steps in zip(found.widths, found.steps.tolist(), strict=True):
                rows += [(it.family, str(it), "step", str(width), f"{one:.10g}") for one in steps]
        columns = ("potential", "(η, λ)", "kind", "width", "value")
        return ResultTable("Expectations and first steps", columns, tuple(rows))

    def _measured(self) -> Steps:
        return measure(RECIPES, self.seeds, self.largest, self.samples, self.data_seed)


def expected(recipe: Recipe, width: float, power: int = 1) -> float:
    """E[(η D(θ₀))^power]^(1/power) for θ₀ ~ N(0, σ²), σ = width^(−1/2), to ten digits.

    In s = log |θ₀/σ|: D varies over decades where |θ₀| is near √λ, or λ^(1/(p−2)), far below σ.
    """
    sigma = width**-0.5

    def integrand(s: float) -> float:
        size = math.exp(s)
        theta = torch.tensor(sigma * size, dtype=torch.float64)
        weight = 2 * math.exp(-0.5 * size**2 - 0.5 * math.log(2 * math.pi)) * size
        return weight * float(recipe.rate(theta, width)) ** power

    # Below e⁻⁴⁰ and above e⁴ = 55 standard deviations there is less than 1e-17.
    value, _ = quad(integrand, -40.0, 4.0, limit=400, epsabs=0.0, epsrel=1e-11)
    return value ** (1 / power)


def slope(widths: Sequence[float] | np.ndarray, values: Any) -> tuple[float, float]:
    """Of log value against log width by least squares, with its standard error."""
    fit = linregress(np.log(widths), np.log(values))
    return float(fit.slope), float(fit.stderr)


@lru_cache(maxsize=2)
def measure(
    recipes: tuple[Recipe, ...], seeds: int, largest: int, samples: int, data_seed: int
) -> Steps:
    """The first step of mirror descent on f = Σ_j a_j relu(w_j·x), a and w ~ N(0, 1/width).

    The loss is the mean over samples. One gradient a width and seed serves all recipes.
    """
    data = mo.teacher_student(samples, seed=data_seed, dim=DIM)
    count = max(3, round(2 * math.log10(largest / 100)) + 1)
    widths = tuple(round(it) for it in np.geomspace(100, largest, count))
    found = {recipe: np.empty((count, seeds)) for recipe in recipes}
    for row, width in enumerate(widths):
        flow = mo.MirrorFlow(mo.MLP((DIM, width, 1), output_scale=1.0), data, mo.Euclidean())
        for seed in range(seeds):
            generator = torch.Generator().manual_seed(seed)
            theta = torch.randn(flow.network.size, generator=generator, dtype=torch.float64)
            theta = theta / math.sqrt(width)
            loss, field = flow.loss_and_field(theta)
            gradient = torch.exp(-loss) / samples * field
            for recipe, steps in found.items():
                step = recipe.rate(theta, width) * gradient
                steps[row, seed] = float(step.norm() / theta.norm())
    return {recipe: Measured(widths, steps) for recipe, steps in found.items()}


def growth(recipe: Recipe, depth: int, parameters: bool) -> float:
    """The power of the width by which Lemma 4.10's log of the time grows, late; −inf for none.

    Args:
        recipe: what decides λ.
        depth: L; the network has L − 1 hidden layers of that width.
        parameters: whether n is the number of parameters, as in the lemma, or the width.
    """
    late = WIDTHS[-3:]
    counts = [DIM * it + (depth - 2) * it**2 + it if parameters else it for it in late]
    values = [recipe.time_exponent(it, n, depth) for it, n in zip(late, counts, strict=True)]
    return slope(late, values)[0] if values[-1] > 0 else -math.inf


def _draw_column(axes: Sequence[Axes], alpha: int, measured: Steps) -> None:
    """E[η D] above and first steps below of one potential, and those of gradient descent."""
    shown = [it for it in measured if it.alpha in (2, alpha)]
    for it, line, marker in zip(shown, LINES, MARKERS, strict=False):
        shade, found = colour(_potential(it.alpha, 1.0)), measured[it]
        text = it.family if it.alpha == 2 else str(it)
        text += " (paper: mirror-μP)" if MUP in it.listed and it.alpha != 2 else ""
        above = [expected(it, width) for width in WIDTHS]
        axes[0].plot(WIDTHS, above, ls=line, color=shade, lw=1.1, label=text)
        middle = np.exp(np.log(found.steps).mean(axis=1))
        low, high = middle - found.steps.min(axis=1), found.steps.max(axis=1) - middle
        axes[1].errorbar(
            found.widths, middle, (low, high), color=shade, ls=line, marker=marker, ms=3, lw=0.9,
            elinewidth=0.7,
        )  # fmt: skip
    for axis in axes:
        axis.set(xscale="log", yscale="log", xlabel="width")
    axes[0].set_title(shown[-1].family)
    axes[0].legend(title=r"$(\eta, \lambda)$", loc="lower left", title_fontsize=7, fontsize=6)


def _mup_table(measured: Steps) -> ResultTable:
    rows = []
    for it, found in measured.items():
        means = [expected(it, width) for width in WIDTHS[-3:]]
        spread = [expected(it, width, 2) for width in found.widths]
        late, steepness = slope(WIDTHS[-3:], means)[0], found.slope()
        slopes = (_signed(late), _signed(slope(found.widths, spread)[0]))
        step = f"{_signed(steepness[0])} ± {steepness[1]:.2f}"
        flat = abs(late) < FLAT
        cells = (it.title, f"{means[-1]:.2g}", *slopes, step)
        rows.append((*cells, _said(MUP in it.listed), _found(MUP in it.listed, flat)))
    top = max(next(iter(measured.values())).widths)
    title = (
        "Table 10, mirror-μP: E[ηD] at width 1e8, its slope in log width there (0 if mirror-μP); "
        "slopes of the root mean square of ηD and of the first step ‖ηD ∂𝓛‖/‖θ₀‖, from 1e2 to "
        f"{top:g}"
    )
    columns = ("(η, λ)", "E[ηD]", "slope", "rms", "step", "paper", "found")
    return ResultTable(title, columns, tuple(rows))


def _margin_table() -> ResultTable:
    rows = []
    for it in RECIPES:
        powers = [growth(it, *case) for case in ((2, False), (2, True), (3, True))]
        cells = ["none" if one == -math.inf else _signed(one) for one in powers]
        listed = MARGIN in it.listed
        rows.append((it.title, *cells, _said(listed), _found(listed, powers[0] < FLAT)))
    title = (
        "Table 10, margin reachable: the power of the width by which log t of Lemma 4.10 grows, "
        "with n the width, as in the table, or the number of parameters, as in the lemma; "
        "reachable if it is not positive"
    )
    columns = ("(η, λ)", "n width", "n all, L = 2", "n all, L = 3", "paper", "found")
    return ResultTable(title, columns, tuple(rows))


def _found(listed: bool, holds: bool) -> str:
    """What was found, marked where the paper says something else."""
    return _said(holds) + (" ≠" if listed != holds else "")


def _said(holds: bool) -> str:
    return "yes" if holds else "no"


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # − 0 is written as 0


def _potential(alpha: int, lam: float) -> mo.SeparablePotential:
    if alpha == 2:
        return mo.Euclidean()
    return mo.HyperbolicEntropy(lam) if alpha == 1 else mo.SmoothedHomogeneous(float(alpha), lam)


SCENARIO = Table10
