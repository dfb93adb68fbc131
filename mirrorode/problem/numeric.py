"""What a potential of one's own leaves out, numerically from the value r(t) alone.

Derivatives are automatic. The inverse of r' is Newton's method in log|t|, where a power is a
straight line, kept inside a bracket; where r is one function for all coordinates, it and 1/r'' are
tabulated to round-off (`tables`), and looked up. The term κ̃ of the balance equation is the
difference t r' − r + r(0) only where that keeps its digits; elsewhere it is ∫₀ᵗ s r''(s) ds, which
has nothing to cancel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mirrorode.problem.tables import Table

Function = Callable[[Tensor], Tensor]

_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(10)
_PANELS = 60  # halvings of [0, t]; what is left over is below round-off of t, and of t²
_KEPT = 0.05  # share of the largest term that a difference must be, to be taken
_AT_ONCE = 1 << 20  # points of integrals that are evaluated together
SHARES = torch.tensor([0.125, 0.25, 0.5, 1.0], dtype=torch.float64)
FARTHEST = 230.0  # of log|t| where a degree is looked for: the square of e^230 is a number
LEAST = 9.0  # of log|t| that must be reached for it
SETTLED = 1e-6  # change of the degree from one size to its square that is none
_FAR = 80.0  # log|t| at which the horizon is read off
_LARGEST = 700.0  # of |log|t||
_ITERATIONS = 200
_CLOSE = 1e-8  # of the last step but one: Newton squares it


def derivatives(value: Function, theta: Tensor) -> tuple[Tensor, Tensor]:
    """r'(θ) and r''(θ), elementwise."""
    with torch.enable_grad():
        theta = theta.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(value(theta).sum(), theta, create_graph=True)
        if not slope.requires_grad:  # r is linear, as far as can be seen
            return slope.detach(), torch.zeros_like(slope)
        (curvature,) = torch.autograd.grad(slope.sum(), theta, allow_unused=True)
    curvature = torch.zeros_like(slope) if curvature is None else curvature
    return slope.detach(), curvature.detach()


def curvature(value: Function, theta: Tensor) -> Tensor:
    """r''(θ), elementwise.

    At 0 it is that of a tiny weight: where r is written in |t|, autograd takes |·|' for 0 there.
    """
    tiny = math.sqrt(torch.finfo(theta.dtype).tiny)
    return derivatives(value, torch.where(theta == 0, tiny, theta))[1]


def inverse_gradient(value: Function, dual: Tensor) -> Tensor:
    """The t with r'(t) = z, elementwise.

    With t = ±e^u and Δ = |r'(t) − r'(0)|, the equation is log Δ(u) = log|z − r'(0)|.
    """
    zero, _ = derivatives(value, torch.zeros_like(dual))
    gap = dual - zero
    side, target = torch.sign(gap), torch.log(gap.abs())
    u = torch.zeros_like(dual)
    low, high = torch.full_like(dual, -_LARGEST), torch.full_like(dual, _LARGEST)
    for _ in range(_ITERATIONS):
        theta = side * torch.exp(u)
        slope, bend = derivatives(value, theta)
        risen = (slope - zero) * side
        missing = target - torch.log(risen)
        low, high = torch.where(missing >= 0, u, low), torch.where(missing > 0, high, u)
        new = u + missing * (risen / bend) / torch.exp(u)
        inside = (new >= low) & (new <= high) & torch.isfinite(bend)
        new = torch.where(inside, new, 0.5 * (low + high))
        moved = torch.where(side == 0, 0.0, (new - u).abs())
        u = new
        if not bool((moved > _CLOSE * (1 + u.abs())).any()):
            break
    theta = side * torch.exp(u)
    slope, bend = derivatives(value, theta)
    # The last step in t itself: e^u has lost a digit or two where |u| is large.
    polished = theta - (slope - dual) / bend
    fine = torch.isfinite(polished) & ((polished - theta).abs() < 1e-6 * theta.abs())
    return torch.where(side == 0, torch.zeros_like(dual), torch.where(fine, polished, theta))


@dataclass(frozen=True)
class Tables:
    """The inverse of r' and 1/r'' of one function r, looked up.

    Attributes:
        zero: r'(0).
        at_zero: 1/r''(0).
        inverse: |t| of z − r'(0).
        metric: 1/r'' of t.
    """

    zero: float
    at_zero: float
    inverse: Table
    metric: Table

    @classmethod
    def of(cls, value: Function) -> Tables:
        """Tabulate r."""
        none = torch.zeros(1, dtype=torch.float64)
        slope, bend = derivatives(value, none)[0], curvature(value, none)
        octaves = torch.exp2(torch.arange(-1000.0, 1000.0, dtype=torch.float64))
        sides = torch.stack([octaves, -octaves])
        risen, bends = derivatives(value, sides)
        risen = (risen - slope).abs()
        fine = torch.isfinite(risen) & torch.isfinite(bends) & (risen > 0) & (bends > 0)
        # Outside of these Newton would look for what is not there.
        low = torch.where(fine, risen, torch.inf).amin(1)
        high = torch.where(fine, risen, 0.0).amax(1)

        def size(gap: Tensor) -> Tensor:
            side = 0 if bool(gap.flatten()[0] > 0) else 1
            inside = (gap.abs() >= low[side]) & (gap.abs() <= high[side])
            found = torch.full_like(gap, torch.nan)
            found[inside] = inverse_gradient(value, slope + gap[inside]).abs()
            return found

        def metric(theta: Tensor) -> Tensor:
            return 1 / curvature(value, theta)

        return cls(float(slope), float(1 / bend), Table.of(size), Table.of(metric))

    def primal(self, dual: Tensor) -> tuple[Tensor, Tensor]:
        """t with r'(t) = z, and where it is known."""
        gap = dual - self.zero
        size, known = self.inverse(gap)
        none = gap == 0
        return torch.where(none, 0.0, torch.copysign(size, gap)), known | none

    def inverse_hessian(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """1/r''(t), and where it is known."""
        found, known = self.metric(theta)
        none = theta == 0
        return torch.where(none, self.at_zero, found), known | none

    def to(self, device: torch.device) -> Tables:
        """The same on a device."""
        return Tables(self.zero, self.at_zero, self.inverse.to(device), self.metric.to(device))


def balance_term(value: Function, theta: Tensor) -> Tensor:
    """κ̃(θ) = θ r'(θ) − r(θ) + r(0), elementwise, to a few units of round-off."""
    theta = theta.detach()
    slope, _ = derivatives(value, theta)
    with torch.no_grad():
        here, there = value(theta), value(torch.zeros_like(theta))
    found = theta * slope - here + there
    size = torch.maximum((theta * slope).abs(), torch.maximum(here.abs(), there.abs()))
    lost = ~(found > _KEPT * size) & (theta != 0)
    if bool(lost.any()):
        # Rows with something lost, whole: r may be another function for each coordinate.
        rows = lost.reshape(-1, lost.shape[-1]).any(-1).reshape(lost.shape[:-1])
        found[rows] = torch.where(lost[rows], balance_integral(value, theta[rows]), found[rows])
    return torch.where(theta == 0, 0.0, found)


def balance_integral(value: Function, theta: Tensor) -> Tensor:
    """∫₀ᵗ s r''(s) ds = t² ∫₀¹ u r''(ut) du over panels, each as far from 0 as it is long."""
    ends = 2.0 ** -np.arange(1, _PANELS + 1)[:, None]
    share = theta.new_tensor((ends * (1.5 + 0.5 * _POINTS)).reshape(-1))
    weight = theta.new_tensor((0.5 * ends * _WEIGHTS).reshape(-1)) * share
    total = torch.zeros_like(theta)
    together = max(1, _AT_ONCE // max(1, theta.numel()))
    for some, heavy in zip(share.split(together), weight.split(together), strict=True):
        _, bend = derivatives(value, some.reshape(-1, *[1] * theta.ndim) * theta)
        total += torch.tensordot(heavy, bend, 1)
    return theta * (theta * total)


def degree(value: Function, width: int) -> tuple[float, float] | None:
    """The α of Definition 4.1 and how far it is known; None where there is none.

    It is the limit of t² r''/κ̃ = d log κ̃/d log t on both sides, on all ``width`` coordinates, at
    sizes that are the powers 1/8, 1/4, 1/2 and 1 of the largest at which r is a number. Of a
    homogeneous function nothing is left to change; a logarithm in κ̃ shows as a slope that still
    does.
    """
    far = torch.exp(torch.linspace(2.0, FARTHEST, 400, dtype=torch.float64))[:, None].expand(
        -1, width
    )
    slopes, ends = [], []
    for side in (far, -far):
        with torch.no_grad():
            here = value(side)
        bend = derivatives(value, side)[1]
        fine = (torch.isfinite(here) & torch.isfinite(bend) & (bend > 0)).all(-1)
        count = int(fine.long().cumprod(0).sum())
        if count == 0:
            return None
        ends.append(0.9 * float(far[count - 1, 0].log()))  # t r' is larger than r
        theta = torch.sign(side[0]) * torch.exp(ends[-1] * SHARES)[:, None]
        bend = derivatives(value, theta)[1]
        slopes.append(theta * (theta * bend) / balance_term(value, theta))
    found = torch.cat(slopes, -1)
    change = float((found[-1] - found[-2]).abs().amax())
    spread = float(found[-1].amax() - found[-1].amin())
    if not max(change, spread) < SETTLED or min(ends) < LEAST:
        return None
    return round(float(found[-1].mean()), 8), max(change, spread, 1e-8)


def horizon_weights(terms: Function, alpha: float, width: int) -> tuple[Tensor, Tensor]:
    """c± = lim ακ̃(±t)/t^α of each coordinate, (width,) each, at a t whose power is a number."""
    far = math.exp(min(_FAR, 600 / alpha))
    theta = torch.full((width,), far, dtype=torch.float64)
    up, down = (alpha * terms(side * theta) / far**alpha for side in (1.0, -1.0))
    return up, down
