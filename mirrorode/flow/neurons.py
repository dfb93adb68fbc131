"""N neurons of a two-layer network under prescribed sample weights: independent small problems.

Neurons act on each other only through the weights of the samples. Where these are given as
polynomials of the position s in a step, neuron j obeys

    ż_w = h a F_j(s),    ż_a = h w·F_j(s),    F_j(s) quadratic in s for a fixed set of surfaces,

with w = ∇Q(z_w), a = ∇Q(z_a): 1 + d unknowns, whatever the number of samples. While it slides on
surfaces E its force is made tangent to them in the metric D: F − Eᵀ(E D Eᵀ)⁻¹E D F.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mirrorode.flow.surfaces import Surfaces
from mirrorode.problem.mirror import Potential

LARGEST_METRIC = 1e90  # where the Hessian vanishes (λ = 0 at a zero weight) D is kept finite


@dataclass(frozen=True)
class Neurons:
    """The state of N neurons.

    Attributes:
        dual: (N, d + 1), incoming weights first, the output weight last.
        on: (N, G), which side of each surface; sliding ones are off.
        slides: (N, G), the surfaces slid along.
        captured: (N,), held at zero incoming weights.
    """

    dual: Tensor
    on: Tensor
    slides: Tensor
    captured: Tensor


@dataclass(frozen=True)
class Drive:
    """What moves the neurons in one step: polynomials in s, ascending coefficients first.

    Attributes:
        potential: whose metric they move in.
        surfaces: the kinks.
        base: force with every surface off, (3, d).
        strength: β, (3, G).
        total: Σ_i μ_i, (3,).
        h: length of the step.
        moving: 1, or 0 where the output weights are constants.
    """

    potential: Potential
    surfaces: Surfaces
    base: Tensor
    strength: Tensor
    total: Tensor
    h: float
    moving: float

    def force(self, on: Tensor) -> Tensor:
        """F of neurons with surfaces ``on`` (A, G), as polynomials (A, 3, d)."""
        pulls = self.strength[:, :, None] * self.surfaces.normal
        return self.base + torch.einsum("ag,mgd->amd", on.to(self.base), pulls)

    def primal(self, dual: Tensor) -> Tensor:
        """θ = ∇Q(z)."""
        return self.potential.inverse_gradient(dual)

    def metric(self, theta: Tensor) -> Tensor:
        """The diagonal of D."""
        return self.potential.inverse_hessian(theta).clamp(max=LARGEST_METRIC)


@dataclass(frozen=True)
class Slides:
    """The surfaces that some of the neurons slide along, padded to one number M.

    Attributes:
        rows: the neurons that slide, (B,).
        surface: (B, M); valid marks what is not padding.
        normal: (B, M, d), zero where padded.
    """

    rows: Tensor
    surface: Tensor
    valid: Tensor
    normal: Tensor

    @classmethod
    def of(cls, slides: Tensor, surfaces: Surfaces) -> Slides:
        """From a mask (A, G)."""
        count = slides.sum(1)
        rows = torch.nonzero(count)[:, 0]
        most = int(count.max()) if len(rows) else 0
        valid, surface = torch.topk(slides[rows].to(torch.uint8), most, dim=1)
        normal = surfaces.normal[surface] * valid[..., None]
        return cls(rows, surface, valid > 0, normal)

    def multipliers(self, metric: Tensor, force: Tensor) -> Tensor:
        """(E D Eᵀ)⁻¹E D F of the sliding neurons: (…, B, M, C) for forces in columns (…, B, d, C).

        The metric is (…, B, d).
        """
        weighted = self.normal * metric[..., None, :]
        if self.normal.shape[1] == 1:
            return weighted @ force / (weighted * self.normal).sum(-1, keepdim=True)
        gram = weighted @ self.normal.mT + torch.diag_embed((~self.valid).to(force))
        return torch.linalg.solve(gram, weighted @ force)

    def tangent(self, metric: Tensor, force: Tensor) -> Tensor:
        """The forces made tangent in the metric, (…, B, d, C)."""
        return force - self.normal.mT @ self.multipliers(metric, force)


def polynomial(coefficients: Tensor, s: Tensor) -> Tensor:
    """Σ_m c_m s^m for coefficients (A, 3, d) and positions s (…, A): (…, A, d)."""
    s = s[..., None]
    constant, linear, quadratic = coefficients.unbind(1)
    return torch.addcmul(constant, s, torch.addcmul(linear, s, quadratic))


def slope(drive: Drive, force: Tensor, slides: Slides, s: Tensor, state: Tensor) -> Tensor:
    """d/ds of (z_w, z_a, ∫dissipation) (A, d + 2) at positions s (A,).

    The last entry is h‖ż‖²_D/Σμ: what the neuron adds to log(1/𝓛).
    """
    theta = drive.primal(state[:, :-1])
    weights, output = theta[:, :-1], theta[:, -1:]
    metric = drive.metric(theta)
    pull = polynomial(force, s)
    if len(slides.rows):
        rows = slides.rows
        tangent = slides.tangent(metric[rows, :-1], pull[rows, :, None])[..., 0]
        pull = pull.index_copy(0, rows, tangent)
    outward = (weights * pull).sum(1, keepdim=True)
    velocity = torch.cat([output * pull, outward if drive.moving else 0 * outward], 1)
    gained = (velocity.square() * metric).sum(1) / polynomial(drive.total[None, :, None], s)[:, 0]
    return drive.h * torch.cat([velocity, gained[:, None]], 1)


def snap(drive: Drive, slides: Slides, dual: Tensor) -> Tensor:
    """The sliding neurons' incoming duals (A, d + 1) moved least in D onto their surfaces."""
    if len(slides.rows) == 0:
        return dual
    incoming = dual[slides.rows, :-1]
    for _ in range(2):
        weights = drive.primal(incoming)
        metric = drive.metric(weights)
        # The multipliers of D⁻¹w: what takes w off the surfaces.
        back = slides.multipliers(metric, (weights / metric)[..., None])
        incoming = incoming - (slides.normal.mT @ back)[..., 0]
    moved = dual.clone()
    moved[slides.rows, :-1] = incoming
    return moved
