"""How near a direction is to a KKT point of the margin problem that the flow is said to solve.

Theorem 4.7: the direction of θ(t) tends to a KKT point of min ½φ(θ)² subject to q_i(θ) ≥ 1, with φ
the horizon of the potential. There are then λ_i ≥ 0, zero where q_i > 1, and h_i ∈ ∂°q_i with
Σ λ_i h_i ∈ ∂½φ². At a kink of sample i in unit j the Clarke subdifferential ∂°q_i is a segment, and
its coefficient ξ_ij ∈ [0, 1] is chosen along with λ: a flow that slides for ever tends to a
point that is no KKT point for h_i of either end.

The problem stays convex. With all pairs on a kink off, h_i is the gradient of that pattern; a pair
adds ν_ij times the gradient of its pre-activation, and ν_ij lies between 0 and what it is for
ξ_ij = 1, which is λ_i times the signal from above: linear in λ_i and in the ν of higher layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mirrorode.flow.kinks import Pairs
from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.problem.errors import InputError, require, require_finite
from mirrorode.theory.approximate import Approximate, approximate
from mirrorode.theory.cones import Array, nearest, smallest
from mirrorode.theory.margins import asymptotic_degree
from mirrorode.theory.subdifferential import ON_KINK, Clarke

CANDIDATE = 2.0  # times the smallest margin
SUPPORT = 1e-6  # share of the multipliers that counts as one


@dataclass(frozen=True, eq=False)
class KKT:
    """The best certificate that θ is near a KKT point, for θ scaled to a smallest margin of 1.

    For a horizon ‖·‖_p with p > 1,

    * ``stationarity`` is ‖∂½φ² − Σλ_i h_i‖₂ / ‖∂½φ²‖₂,
    * ``complementarity`` is L·Σ λ_i (q_i − 1) / φ², 0 where only the smallest margins have weight,
    * ``residual`` the root of the sum of their squares, which the multipliers minimise.

    For ‖·‖₁ the subdifferential jumps where a weight reaches zero, which a flow never does in
    finite time, so the distance to it says nothing; the duality gap does. With v = Σλ_i h_i,

    * ``stationarity`` is ‖θ‖₁‖v‖_∞ / ⟨θ, v⟩ − 1,
    * ``complementarity`` is Σλ_i (q_i − 1) / Σλ_i,
    * ``residual`` is ‖θ‖₁‖v‖_∞ / (L·Σλ_i) − 1 = (1 + stationarity)(1 + complementarity) − 1, which
      the multipliers minimise.

    All are zero at a KKT point and nowhere else, and do not change with the length of θ.

    Attributes:
        residual: the relative residual.
        stationarity: its part from the gradients.
        complementarity: its part from weight on margins that are not the smallest.
        multipliers: λ, (K,).
        kink_coefficients: ξ, (S,), for the pairs in ``kinks``; of no meaning where λ_i = 0.
        kinks: the pairs (layer, unit, sample) that are on their kink.
        image: Σ λ_i h_i, (n,), at θ scaled to a smallest margin of 1.
        paper: the multipliers with which the paper proves Theorem 4.7, at θ of the length it has,
            and their (ε, δ); None for α < 2.
    """

    residual: float
    stationarity: float
    complementarity: float
    multipliers: Tensor
    kink_coefficients: Tensor
    kinks: Pairs
    image: Tensor
    paper: Approximate | None

    @property
    def support(self) -> Tensor:
        """The samples that carry the multipliers."""
        return torch.nonzero(self.multipliers > SUPPORT * self.multipliers.sum())[:, 0]

    def __repr__(self) -> str:
        inside = (self.kink_coefficients > SUPPORT) & (self.kink_coefficients < 1 - SUPPORT)
        used = int((inside & torch.isin(self.kinks.sample, self.support)).sum())
        return (
            f"KKT(residual {self.residual:.2e}: stationarity {self.stationarity:.2e}, "
            f"complementarity {self.complementarity:.2e}; {len(self.support)} support vectors, "
            f"{used} kinks in use of {len(self.kinks)})"
        )


def kkt(flow: MirrorFlow, theta: Tensor, *, clarke: bool = True, on_kink: float = ON_KINK) -> KKT:
    """How near the direction of ``theta`` is to a KKT point of min ½φ² subject to q_i ≥ 1.

    Every sample enters, at the price of its complementarity, so that none has to be picked by a
    threshold; only those beyond twice the smallest margin are left out, which can but enlarge
    the residual. What a selection by softmax weights would decide depends on the length of θ.

    Args:
        flow: the flow, whose potential has a degree.
        theta: (n,), of any length.
        clarke: whether to use the kinks; without them every h_i is the gradient with the pairs on
            a kink off.
        on_kink: a pair is on its kink if its pre-activation is at most this fraction of the
            largest that its unit has on the data. (A ReLU unit that is zero on all of them has the
            zero gradient among its choices, and that is the best one.)

    Raises:
        InputError: if θ is no finite vector with positive margins, or if the potential has no
            degree or a horizon that is not a multiple of ‖·‖_α.
    """
    problem = _Problem.at(flow, theta, clarke, on_kink)
    found = problem.linear() if flow.potential.degree == 1 else problem.quadratic()
    own = approximate(flow, torch.as_tensor(theta).detach().to(flow.dataset.x)[None])
    return replace(found, paper=own)


@dataclass(frozen=True)
class _Problem:
    """The convex problem at θ, scaled to q_min = 1: M candidate samples, S pairs on a kink.

    The unknowns are u = (λ, ν), both in units that make their columns of unit length, and the
    image v = Σ λ_i h_i + Σ ν_s m_s of gradients and normals.
    """

    flow: MirrorFlow
    theta: Tensor
    margins: Tensor  # (K,)
    samples: Tensor  # (M,)
    clarke: Clarke

    @classmethod
    def at(cls, flow: MirrorFlow, theta: Tensor, clarke: bool, on_kink: float) -> _Problem:
        """Scale θ, choose the samples and find the kinks."""
        x, y = (part.double().cpu() for part in (flow.dataset.x, flow.dataset.y))
        theta = _normalised(flow, theta, x, y)
        margins = y * flow.network.output(theta, x)
        samples = torch.nonzero(margins <= CANDIDATE * margins.min())[:, 0]
        sets = Clarke.at(flow, theta, samples, clarke=clarke, on_kink=on_kink)
        return cls(flow, theta, margins, samples, sets)

    def quadratic(self) -> KKT:
        """φ a multiple of ‖·‖_p, p > 1: the nearest point of a cone."""
        alpha, degree = asymptotic_degree(self.flow), self.flow.network.degree
        size = torch.linalg.vector_norm(self.theta, ord=alpha)
        unit = self.theta / size
        gradient = torch.copysign(unit.abs() ** (alpha - 1), unit) * size
        columns = self.clarke.columns / gradient.norm()
        weight = degree * (self.margins[self.samples] - 1) / size**2
        price = torch.cat([weight, weight.new_zeros(len(self.clarke.kinks))])
        matrix = torch.cat([columns, price[:, None]], 1)
        target = torch.cat([gradient / gradient.norm(), gradient.new_zeros(1)])
        scale = matrix.norm(dim=1).clamp(min=1e-300)
        scaled = (matrix / scale[:, None]).T.numpy()

        def minimise(cone: Array) -> Array:
            return nearest(scaled, target.numpy(), cone)

        lam, nu, xi = self.clarke.solve(minimise, scale)
        image = torch.cat([lam, nu]) @ columns
        stationarity = float((target[:-1] - image).norm())
        complementarity = float(lam @ weight)
        residual = math.hypot(stationarity, complementarity)
        horizon = (self.flow.potential.horizon(self.theta) / size) ** 2
        image = horizon * gradient.norm() * image
        return self._report(residual, stationarity, complementarity, horizon * lam, xi, image)

    def linear(self) -> KKT:
        """φ a multiple of ‖·‖₁: the duality gap, a linear program."""
        degree, size = self.flow.network.degree, self.theta.abs().sum()
        columns = self.clarke.columns
        scale = columns.abs().amax(1).clamp(min=1e-300)
        scaled = (columns / scale[:, None]).T.numpy()
        typical = scale[: len(self.samples)].amax()  # so that Σλ_i = 1 is in these units
        total = torch.cat(
            [typical / scale[: len(self.samples)], scale.new_zeros(len(self.clarke.kinks))]
        )

        def minimise(cone: Array) -> Array:
            return smallest(scaled, cone, total.numpy())

        lam, nu, xi = self.clarke.solve(minimise, scale)
        image = torch.cat([lam, nu]) @ columns
        growth = degree * (lam @ self.margins[self.samples])  # ⟨θ, v⟩: normals have no part in it
        stationarity = max(0.0, float(size * image.abs().max() / growth) - 1)
        complementarity = float(lam @ (self.margins[self.samples] - 1) / lam.sum())
        residual = max(0.0, float(size * image.abs().max() / (degree * lam.sum())) - 1)
        length = self.flow.potential.horizon(self.theta) ** 2 / growth
        return self._report(
            residual, stationarity, complementarity, length * lam, xi, length * image
        )

    def _report(
        self,
        residual: float,
        stationarity: float,
        complementarity: float,
        lam: Tensor,
        xi: Tensor,
        image: Tensor,
    ) -> KKT:
        multipliers = torch.zeros_like(self.margins)
        multipliers[self.samples] = lam
        kinks = self.clarke.kinks
        return KKT(residual, stationarity, complementarity, multipliers, xi, kinks, image, None)


def _normalised(flow: MirrorFlow, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """θ scaled to a smallest margin of 1, after the checks of all arguments."""
    potential, shape = flow.potential, (flow.network.size,)
    if potential.degree is None:
        raise InputError(f"`potential` must have a degree for `kkt`, but {potential} has none")
    theta = torch.as_tensor(theta).detach().to(x)
    require(theta.shape == shape, "theta", f"have shape {shape}", tuple(theta.shape))
    require_finite(theta, "theta")
    theta = theta / theta.abs().amax().clamp(min=1e-300)
    smallest_margin = float((y * flow.network.output(theta, x)).min())
    fine = smallest_margin > 0
    require(fine, "theta", "have positive margins", f"wrong on a sample ({smallest_margin:.3g})")
    ratios = [
        potential.horizon(value) / torch.linalg.vector_norm(value, ord=potential.degree)
        for value in (theta, torch.linspace(0.5, 1.5, len(theta)).to(theta))
    ]
    fine = bool(torch.isclose(ratios[0], ratios[1], rtol=1e-6))
    require(fine, "potential", "have a multiple of ‖·‖_α as its horizon", potential)
    return theta / smallest_margin ** (1 / flow.network.degree)
