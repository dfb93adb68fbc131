"""What a potential of one's own leaves out, numerically from the value r(t) alone.

Derivatives are automatic. The inverse of r' is Newton's method in log|t|, where a power is a
straight line, kept inside a bracket. The term κ̃ of the balance equation is the difference
t r' − r + r(0) only where that keeps its digits; elsewhere it is ∫₀ᵗ s r''(s) ds, which has nothing
to cancel.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]

_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(10)
_PANELS = 30  # halvings of [0, t]; what is left over is below round-off of t²
_KEPT = 0.05  # share of the largest term that a difference must be, to be taken
_AT_ONCE = 1 << 11  # coordinates whose integrals are formed together, of 300 points each
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
    zero, _ = derivatives(value, dual.new_zeros(1))
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
        new = u + missing * risen / (torch.exp(u) * bend)
        new = torch.where((new >= low) & (new <= high), new, 0.5 * (low + high))
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


def balance_term(value: Function, theta: Tensor) -> Tensor:
    """κ̃(θ) = θ r'(θ) − r(θ) + r(0), elementwise, to a few units of round-off."""
    flat = theta.detach().reshape(-1)
    slope, _ = derivatives(value, flat)
    with torch.no_grad():
        here, there = value(flat), value(torch.zeros_like(flat))
    found = flat * slope - here + there
    size = torch.maximum((flat * slope).abs(), torch.maximum(here.abs(), there.abs()))
    lost = torch.nonzero(~(found > _KEPT * size) & (flat != 0))[:, 0]
    for part in lost.split(_AT_ONCE):
        found[part] = _integral(value, flat[part])
    return torch.where(flat == 0, 0.0, found).reshape(theta.shape)


def _integral(value: Function, theta: Tensor) -> Tensor:
    """∫₀ᵗ s r''(s) ds = t² ∫₀¹ u r''(ut) du over panels, each as far from 0 as it is long."""
    ends = 2.0 ** -np.arange(1, _PANELS + 1)[:, None]
    share = theta.new_tensor((ends * (1.5 + 0.5 * _POINTS)).reshape(-1))
    weight = theta.new_tensor((0.5 * ends * _WEIGHTS).reshape(-1))
    _, curvature = derivatives(value, theta[:, None] * share)
    return theta * (theta * (curvature @ (weight * share)))


def horizon(terms: Function, degree: float, theta: Tensor, eta: float = 1e-9) -> Tensor:
    """η (α Σ κ̃(θ/η))^{1/α} at a small η, which is relative to the size of θ; over the last axis."""
    size = theta.abs().amax(-1, keepdim=True).clamp(min=math.ulp(0.0))
    total = (degree * terms(theta / (eta * size)).sum(-1)) ** (1 / degree)
    return eta * size[..., 0] * total
