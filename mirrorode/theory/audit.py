"""`audit`: what the theorems ask of a potential, looked at one by one.

A separable R = Σ r(θ_k) satisfies what is asked if each r does, so that everything is seen on a
grid of sizes of one weight, of both signs, from 1e-6 to 1e6 where r is a number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mirrorode.problem import numeric
from mirrorode.problem.consistency import require_mirror
from mirrorode.problem.errors import require
from mirrorode.problem.potentials import SeparablePotential
from mirrorode.theory.verdicts import NO_DEGREE, ROUND_OFF, Verdict, Verdicts

SIZES = torch.logspace(-6, 6, 1201, dtype=torch.float64)
BISECTIONS = 24
STAYS = 0.5  # of a change of r'' over a grid step, still there after so many bisections: a jump
SUSPECTS = 4  # grid steps with the largest changes that are looked into
NOISE = 1e-9  # of r'', below which a change of it near zero is not measured
EPSILON = 1e-3  # of an exponent
GROWS = 1.5  # ratio of (αQ)^(1/α) − φ at 1e8 and 1e4 from which it is unbounded
WIDE = 1.1  # the c of Assumption H.1 where 1 will not do
NO_MARGIN = "there is no Q-margin, and Theorems 4.5 to 4.9 do not speak about it"


class Audit(Verdicts):
    """Findings on a potential; prints as a table."""

    title = "What the theorems ask of the potential"


def audit(potential: SeparablePotential) -> Audit:
    """Judge Assumptions 2.3, 4.4, G.1 and H.1 and find the asymptotic degree of a potential.

    Args:
        potential: separable; of a `Layerwise` each part is to be audited by itself.

    Returns:
        A list of `Verdict` that prints as a table; the detail says what a finding means for the
        theorems.

    Raises:
        InputError: if it is no separable potential, or no mirror potential at all, or if what it
            overrides does not belong to its value.
    """
    fine = isinstance(potential, SeparablePotential)
    require(fine, "potential", "be a separable potential", repr(potential))
    width = potential.value(torch.ones(1, dtype=torch.float64)).numel()
    require_mirror(potential, width)
    grid = Grid.of(potential, width)
    kind = (convex, twice_differentiable, coercive, lipschitz, degree, assumption_4_4)
    found = [one(potential, grid) for one in (*kind, assumption_g_1, assumption_h_1)]
    return Audit(found)


@dataclass(frozen=True)
class Grid:
    """What r is on the grid.

    Attributes:
        theta: sizes with a sign, (T, width), ascending; those at which r is a number.
        curvature: r'', (T, width).
        width: coordinates with a function of their own; 1 if there is one for all.
    """

    theta: Tensor
    curvature: Tensor
    width: int

    @classmethod
    def of(cls, potential: SeparablePotential, width: int) -> Grid:
        """Of a potential."""
        theta = torch.cat([-SIZES.flip(0), SIZES])[:, None].expand(-1, width)
        bend = numeric.curvature(potential.value, theta)
        fine = (torch.isfinite(potential.value(theta)) & torch.isfinite(bend)).all(-1)
        return cls(theta[fine], bend[fine], width)

    @property
    def reach(self) -> str:
        """How far it goes."""
        return f"for |θ_k| from 1e-6 to {float(self.theta.abs().amax()):.1g}"

    def near_zero(self, potential: SeparablePotential, decades: Tensor) -> Tensor:
        """r'' at ±10^decades, (2, decades, width)."""
        size = (10.0**decades)[:, None].expand(-1, self.width)
        return numeric.curvature(potential.value, torch.stack([size, -size]))


def convex(potential: SeparablePotential, grid: Grid) -> Verdict:
    """(1): r' rises."""
    name = "Assumption 2.3 (1): R is strictly convex"
    slope = numeric.derivatives(potential.value, grid.theta)[0].diff(dim=0)
    least = float((slope / grid.theta.diff(dim=0)).amin())
    detail = f"r' rises by at least {least:.2g} per unit {grid.reach}"
    return Verdict.judged(name, least if least > 0 else -1.0, detail)


def twice_differentiable(potential: SeparablePotential, grid: Grid) -> Verdict:
    """(2): r'' is finite and has no jump."""
    name = "Assumption 2.3 (2): R is twice differentiable"
    where = _jump(potential, grid)
    if where is not None:
        detail = f"r'' jumps at θ_k = {where:.6g}; the flow of z is defined all the same"
        return Verdict.judged(name, -1.0, detail)
    power = _power_at_zero(potential, grid)
    if power < -EPSILON:
        detail = f"r'' grows like |θ_k|^({power:.2f}) at 0; a weight at 0 is left in z, not in θ"
        return Verdict.judged(name, power, detail)
    more = "" if power < EPSILON else f"; r'' vanishes like |θ_k|^{power:.2f} at 0, where D = ∞"
    return Verdict.judged(name, 1.0, f"r'' is finite, and no jump of it is seen{more}")


def coercive(potential: SeparablePotential, grid: Grid) -> Verdict:
    """(3): r' is unbounded; a `MirrorFlow` refuses anything else."""
    name = "Assumption 2.3 (3): ‖∇R‖ → ∞ with ‖θ‖"
    far = 10.0 ** torch.arange(101, dtype=torch.float64)[:, None].expand(-1, grid.width)
    slope = numeric.derivatives(potential.value, far)[0]
    last = int(torch.isfinite(slope).all(-1).long().cumprod(0).sum()) - 1
    detail = f"r' is {float(slope[last].amin()):.3g} at {float(far[last, 0]):.0e}, and still rises"
    return Verdict.judged(name, 1.0, detail)


def lipschitz(potential: SeparablePotential, grid: Grid) -> Verdict:
    """(4): |r''(t) − r''(s)| ≤ C|t − s| on bounded sets."""
    name = "Assumption 2.3 (4): ∇²R is locally Lipschitz"
    if _jump(potential, grid) is not None:
        return Verdict.judged(name, -1.0, "r'' jumps")
    power = _power_at_zero(potential, grid)
    if power < -EPSILON:
        return Verdict.judged(name, power - 1, "r'' is infinite at 0")
    decades = torch.arange(-12.0, 0.0, dtype=torch.float64)
    bend = grid.near_zero(potential, decades)
    at_zero = 0.0 if power > EPSILON else grid.near_zero(potential, decades[:1] - 12)
    change = (bend - at_zero).abs()
    seen = ((change > NOISE * bend).all(-1)).all(0)
    both = torch.nonzero(seen[1:] & seen[:-1])[:, 0]
    if len(both) == 0:
        return Verdict.judged(name, 1.0, "no change of r'' is seen near 0")
    rate = float((change[:, both[0] + 1] / change[:, both[0]]).log10().amin())
    detail = f"r''(t) − r''(0) goes like |t|^{rate:.2f} at 0"
    if rate < 1 - 0.02:
        detail += "; of the flow in θ the solution need not be unique, that in z is integrated"
    return Verdict.judged(name, rate - 1 + 0.02, detail)


def degree(potential: SeparablePotential, grid: Grid) -> Verdict:
    """Definition 4.1; not to have a degree is a property, not a failure."""
    name = "Definition 4.1: asymptotically α-homogeneous"
    found = numeric.degree(potential.value, grid.width)
    if potential.degree is None:
        return Verdict.not_applicable(name, f"there is no degree: {NO_MARGIN}")
    if found is None:
        detail = f"α = {potential.degree:g} is given; it is not seen where r is a number"
        return Verdict.judged(name, -1.0, detail)
    alpha, error = found
    detail = f"α = {potential.degree:g}; {alpha:.8g} found, to {error:.0e}"
    return Verdict.judged(name, 10 * error - abs(alpha - potential.degree), detail)


def assumption_4_4(potential: SeparablePotential, grid: Grid) -> Verdict:
    """α r*(r'(t)) ≥ t² r''(t) for each t."""
    name = "Assumption 4.4: αQ ≥ ‖θ‖²_A"
    if potential.degree is None:
        return Verdict.not_applicable(name, NO_DEGREE)
    left, right = _q_hat(potential, grid.theta), grid.theta * (grid.theta * grid.curvature)
    slack = (left - right) / torch.maximum(left.abs(), right)
    at = int(slack.amin(-1).argmin())
    least = float(slack.amin())
    detail = f"smallest (αQ − ‖θ‖²_A)/αQ is {least:.2g}, at θ_k = {float(grid.theta[at, 0]):.3g}"
    if least < -ROUND_OFF:
        detail += "; Theorem 4.5 does not say that the margin grows"
        detail += _constant(potential)
    return Verdict.judged(name, least + ROUND_OFF, detail)


def assumption_g_1(potential: SeparablePotential, grid: Grid) -> Verdict:
    """∂½φ² ≈ Q̂^(2/α−1) Aθ far out, at weights that differ by two decades."""
    name = "Assumption G.1: ∂½φ² ≈ Q̂^(2/α−1) Aθ"
    alpha = potential.degree
    if alpha is None:
        return Verdict.not_applicable(name, NO_DEGREE)
    direction = torch.tensor([1.0, -0.5, 0.1, -0.01], dtype=torch.float64)
    theta = direction[: max(1, 4 // grid.width), None].expand(-1, grid.width)
    gaps = [_gap(potential, alpha, size * theta) for size in (1e5, 1e6)]
    detail = f"relative difference {gaps[1]:.1e} at ‖θ‖_∞ = 1e6"
    if alpha < 2:
        why = "α < 2: Theorem 4.7 then rests on Corollary 4.8"
        return Verdict.not_applicable(name, f"{why}; {detail}")
    falls = gaps[1] < 1e-9 or gaps[1] < 0.95 * gaps[0]
    return Verdict.judged(name, 1 - gaps[1] if falls else -gaps[1], detail)


def assumption_h_1(potential: SeparablePotential, grid: Grid) -> Verdict:
    """φ ≤ (αQ)^(1/α) ≤ cφ + a, with a = a₁ n^(1/α) for n weights."""
    name = "Assumption H.1: φ ≤ (αQ)^(1/α) ≤ cφ + a"
    alpha = potential.degree
    if alpha is None:
        return Verdict.not_applicable(name, NO_DEGREE)
    size = _q_hat(potential, grid.theta).clamp(min=0) ** (1 / alpha)
    below = _each(potential, grid.theta)
    slack = float(((size - below) / torch.maximum(size, below)).amin())
    far = torch.tensor([[1e4], [1e8]], dtype=torch.float64).expand(-1, grid.width)
    excess = _q_hat(potential, far) ** (1 / alpha) - _each(potential, far)
    bounded = bool((excess[1] <= GROWS * excess[0].abs() + 1e-6).all())
    c = 1.0 if bounded else WIDE
    a = max(0.0, float((size - c * below).amax()))
    detail = f"relative slack on the left {slack:.2g}; c = {c:g}, a = {a:.3g} n^(1/α) on n weights"
    detail += ": Lemma 4.10 holds with these" if slack >= -1e-9 else _constant(potential)
    return Verdict.judged(name, slack + 1e-9, detail)


def _constant(potential: SeparablePotential) -> str:
    """That a constant is in the way: Q is that of r less r(0)."""
    at_zero = float(torch.as_tensor(potential.conjugate_at_zero).amin())
    return f"; r(0) = {-at_zero:.3g} lowers Q, and may be left out of r" if at_zero < 0 else ""


def _q_hat(potential: SeparablePotential, theta: Tensor) -> Tensor:
    """α r*(r'(θ)), elementwise."""
    assert potential.degree is not None
    at_zero = torch.as_tensor(potential.conjugate_at_zero, dtype=torch.float64)
    # What round-off leaves of r(0) = 0 is no constant.
    at_zero = torch.where(at_zero.abs() < ROUND_OFF, 0.0, at_zero)
    own = type(potential).balance_term is not SeparablePotential.balance_term
    # A difference keeps what round-off a formula for r makes, log 2 − log 2 for one.
    kappa = (
        potential.balance_term(theta) if own else numeric.balance_integral(potential.value, theta)
    )
    return potential.degree * (kappa + at_zero)


def _each(potential: SeparablePotential, theta: Tensor) -> Tensor:
    """φ of each coordinate alone, of a tensor (T, width)."""
    alone = torch.diag_embed(theta)  # (T, width, width)
    return potential.horizon(alone)


def _gap(potential: SeparablePotential, alpha: float, theta: Tensor) -> float:
    """‖∂½φ² − Q̂^{2/α−1} Aθ‖/‖∂½φ²‖ with the rows (N, width) as so many weights."""
    with torch.enable_grad():
        free = theta.clone().requires_grad_(True)
        whole = (potential.horizon(free) ** alpha).sum() ** (1 / alpha)
        (slope,) = torch.autograd.grad(0.5 * whole**2, free)
    q_hat = _q_hat(potential, theta).sum()
    own = q_hat ** (2 / alpha - 1) * theta / potential.inverse_hessian(theta)
    return float((slope - own).norm() / slope.norm())


def _power_at_zero(potential: SeparablePotential, grid: Grid) -> float:
    """The power with which r'' goes at zero, the least of all coordinates and both signs."""
    bend = grid.near_zero(potential, torch.tensor([-28.0, -24.0], dtype=torch.float64))
    ratio = (bend[:, 1] / bend[:, 0]).log10() / 4
    fine = ratio[torch.isfinite(ratio)]
    return float(fine.amin()) if len(fine) else math.inf


def _jump(potential: SeparablePotential, grid: Grid) -> float | None:
    """Where r'' jumps, if it does: the largest changes on the grid, bisected."""
    theta, bend = grid.theta[:, 0], grid.curvature[:, 0].clamp(min=1e-300).log()
    same = theta[1:] * theta[:-1] > 0
    change = torch.where(same, bend.diff().abs(), 0.0)
    for index in change.argsort(descending=True)[:SUSPECTS].tolist():
        before = float(change[index])
        if before < EPSILON:
            return None
        low, high = float(theta[index]), float(theta[index + 1])
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            points = torch.tensor([low, middle, high], dtype=torch.float64)[:, None]
            log = numeric.curvature(potential.value, points.expand(-1, grid.width))[:, 0].log()
            left, right = float((log[1] - log[0]).abs()), float((log[2] - log[1]).abs())
            low, high = (low, middle) if left > right else (middle, high)
        if max(left, right) > STAYS * before:
            return 0.5 * (low + high)
    return None
