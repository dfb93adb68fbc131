"""The multipliers with which the paper proves Theorem 4.7, and the (ε, δ) of its Lemma G.6.

At θ̃ = θ/q_min^{1/L}, with h̃_i = h_i/q_min^{1−1/L}, ζ = Q̂^{2/α−1} Aθ/q_min^{1/L} in the place of
∂½φ²(θ̃) and λ_i = Q̂^{2/α−1} q_min^{1−2/L} ‖θ‖_A p_i/‖G‖_D:

    ‖ζ − Σ λ_i h̃_i‖₂ ≤ ε = C₁ √(1−β),        Σ λ_i (q_i(θ̃) − 1) ≤ δ = C₂ / log(1/𝓛),

with C₁² = 2 γ̃^{−2/L} μ Q̂^{2/α−1}, μ = max(1, max A), and C₂ = γ̃^{−2/L} K/(eL).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.theory.points import Points


@dataclass(frozen=True, eq=False)
class Approximate:
    """The paper's own certificate at T points; (T,) where nothing else is said.

    Attributes:
        multipliers: λ, (T, K).
        beta: the cosine β of θ and dθ/dt in the metric A.
        epsilon: ‖ζ − Σ λ_i h̃_i‖₂, with the least-norm h_i.
        epsilon_bound: C₁ √(1−β).
        delta: Σ λ_i (q_i(θ̃) − 1).
        delta_bound: C₂ / log(1/𝓛); negative before the loss is below 1.
        distance: ‖∂½φ²(θ̃) − Σ λ_i h̃_i‖₂, what Definition G.4 asks of ε.
        size: ‖∂½φ²(θ̃)‖₂, to which these are to be compared.
    """

    multipliers: Tensor
    beta: Tensor
    epsilon: Tensor
    epsilon_bound: Tensor
    delta: Tensor
    delta_bound: Tensor
    distance: Tensor
    size: Tensor

    def __repr__(self) -> str:
        values = {name: float(getattr(self, name)[-1]) for name in ("beta", "epsilon", "delta")}
        bounds = f"≤ {float(self.epsilon_bound[-1]):.2e}", f"≤ {float(self.delta_bound[-1]):.2e}"
        return (
            f"Approximate(β {values['beta']:.8g}, ε {values['epsilon']:.2e} {bounds[0]}, "
            f"δ {values['delta']:.2e} {bounds[1]})"
        )


def approximate(flow: MirrorFlow, theta: Tensor) -> Approximate | None:
    """The paper's certificate at ``theta`` (T, n) with positive margins; None unless α ≥ 2."""
    alpha = flow.potential.degree
    if alpha is None or alpha < 2:
        return None
    return of_points(Points.at(flow, theta))


def of_points(points: Points) -> Approximate:
    """The same at points that are measured, of a flow with α ≥ 2."""
    flow, theta, q_min, q_hat = points.flow, points.theta, points.q_min, points.q_hat
    alpha, degree = flow.potential.degree, flow.network.degree
    assert alpha is not None
    hessian, local, speed = points.hessian, points.local, points.speed
    factor = q_hat ** (2 / alpha - 1)
    scale = factor * local.sqrt() * q_min ** (-1 / degree)
    # Aθ/√M and G/√N, of which ζ and Σ λ_i h̃_i are the same multiple.
    radial = hessian * theta / local.sqrt()[:, None]
    pull = points.field / speed.sqrt()[:, None]
    margins, weights = flow.margins(theta), flow.weights(theta)
    multipliers = factor * q_min ** (1 - 2 / degree) * (local / speed).sqrt()
    multipliers = multipliers[:, None] * weights
    power = (points.loss.log() - degree / alpha * q_hat.log()) * (-2 / degree)  # γ̃^{−2/L}
    largest = hessian.amax(-1).clamp(min=1.0)
    x = points.misalignment
    one_less = x / (torch.sqrt(1 + x) * (1 + torch.sqrt(1 + x)))
    slope = half_square_gradient(flow, theta / q_min[:, None] ** (1 / degree))
    return Approximate(
        multipliers,
        1 - one_less,
        scale * (radial - pull).norm(dim=-1),
        (2 * power.exp() * largest * factor * one_less).sqrt(),
        (multipliers * (margins / q_min[:, None] - 1)).sum(-1),
        power.exp() * len(flow.dataset) / (math.e * degree * points.loss),
        (slope - scale[:, None] * pull).norm(dim=-1),
        slope.norm(dim=-1),
    )


def half_square_gradient(flow: MirrorFlow, theta: Tensor) -> Tensor:
    """∂½φ² of the horizon, (T, n)."""
    with torch.enable_grad():
        variable = theta.detach().requires_grad_(True)
        half = 0.5 * flow.potential.horizon(variable).square().sum()
        return torch.autograd.grad(half, variable)[0]
