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
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mirrorode.flow.kinks import Pairs
from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.flow.normals import pair_normals
from mirrorode.problem.errors import InputError, require, require_finite
from mirrorode.theory.cones import Array, nearest, smallest
from mirrorode.theory.margins import asymptotic_degree

ON_KINK = 1e-9  # the integrator holds sliding pairs there to round-off
CANDIDATE = 2.0  # times the smallest margin
SUPPORT = 1e-6  # share of the multipliers that counts as one
CHUNK = 512  # normals held at once where two layers of a sample are on kinks


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
    """

    residual: float
    stationarity: float
    complementarity: float
    multipliers: Tensor
    kink_coefficients: Tensor
    kinks: Pairs

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
    return problem.linear() if flow.potential.degree == 1 else problem.quadratic()


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
    kinks: Pairs
    gradients: Tensor  # h (M, n), pairs on a kink off
    normals: Tensor  # m (S, n)
    full: Tensor  # (S, M + S): ν_s at ξ_s = 1 as a linear function of (λ, ν)

    @classmethod
    def at(cls, flow: MirrorFlow, theta: Tensor, clarke: bool, on_kink: float) -> _Problem:
        """Scale θ, choose the samples and find the kinks."""
        x, y = (part.double().cpu() for part in (flow.dataset.x, flow.dataset.y))
        theta = _normalised(flow, theta, x, y)
        forward = flow.network.forward(theta, x)
        margins = y * forward.output
        samples = torch.nonzero(margins <= CANDIDATE)[:, 0]
        pre = forward.preactivations
        kinks = Pairs.none(theta.device)
        if clarke:
            kinks = _on_kink(flow, pre, samples, on_kink)
        pattern = kinks.mark(forward.pattern, False)
        gradient, signals = flow.network.backward(flow.network.forward(theta, x, pattern))
        own = [on[kinks.sample] for on in pattern]
        normals = pair_normals(flow.network, theta, x, kinks, own)
        signal = y[kinks.sample] * kinks.gather(signals).to(theta) * _jump(flow, kinks)
        # A pair without signal or without input is no kink of the margin, unless one above it,
        # when on, lets it through.
        through = _through(flow, theta, x, kinks, own, normals)
        matters = (normals.norm(dim=1) > 0) & ((signal != 0) | (through != 0).any(1))
        kinks, normals, signal = kinks[matters], normals[matters], signal[matters]
        through = through[matters][:, matters]
        place = torch.searchsorted(samples, kinks.sample)
        own_sample = torch.nn.functional.one_hot(place, len(samples)).to(theta)
        full = torch.cat([signal[:, None] * own_sample, through], 1)
        rows = y[samples, None] * gradient[samples]
        return cls(flow, theta, margins, samples, kinks, rows, normals, full)

    def quadratic(self) -> KKT:
        """φ a multiple of ‖·‖_p, p > 1: the nearest point of a cone."""
        alpha, degree = asymptotic_degree(self.flow), self.flow.network.degree
        size = torch.linalg.vector_norm(self.theta, ord=alpha)
        unit = self.theta / size
        gradient = torch.copysign(unit.abs() ** (alpha - 1), unit) * size
        columns = torch.cat([self.gradients, self.normals]) / gradient.norm()
        weight = degree * (self.margins[self.samples] - 1) / size**2
        price = torch.cat([weight, weight.new_zeros(len(self.kinks))])
        matrix = torch.cat([columns, price[:, None]], 1)
        target = torch.cat([gradient / gradient.norm(), gradient.new_zeros(1)])
        scale = matrix.norm(dim=1).clamp(min=1e-300)
        scaled = (matrix / scale[:, None]).T.numpy()

        def solve(cone: Array) -> Array:
            return nearest(scaled, target.numpy(), cone)

        lam, nu, xi = self._solve(solve, scale)
        image = torch.cat([lam, nu]) @ columns
        stationarity = float((target[:-1] - image).norm())
        complementarity = float(lam @ weight)
        residual = math.hypot(stationarity, complementarity)
        horizon = (self.flow.potential.horizon(self.theta) / size) ** 2
        return self._report(residual, stationarity, complementarity, horizon * lam, xi)

    def linear(self) -> KKT:
        """φ a multiple of ‖·‖₁: the duality gap, a linear program."""
        degree, size = self.flow.network.degree, self.theta.abs().sum()
        columns = torch.cat([self.gradients, self.normals])
        scale = columns.abs().amax(1).clamp(min=1e-300)
        scaled = (columns / scale[:, None]).T.numpy()
        typical = scale[: len(self.samples)].amax()  # so that Σλ_i = 1 is in these units
        total = torch.cat([typical / scale[: len(self.samples)], scale.new_zeros(len(self.kinks))])

        def solve(cone: Array) -> Array:
            return smallest(scaled, cone, total.numpy())

        lam, nu, xi = self._solve(solve, scale)
        image = torch.cat([lam, nu]) @ columns
        growth = degree * (lam @ self.margins[self.samples])  # ⟨θ, v⟩: normals have no part in it
        stationarity = max(0.0, float(size * image.abs().max() / growth) - 1)
        complementarity = float(lam @ (self.margins[self.samples] - 1) / lam.sum())
        residual = max(0.0, float(size * image.abs().max() / (degree * lam.sum())) - 1)
        lam = lam * self.flow.potential.horizon(self.theta) ** 2 / growth
        return self._report(residual, stationarity, complementarity, lam, xi)

    def _solve(
        self, solve: Callable[[Array], Array], scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """λ, ν, ξ of the convex problem that ``solve`` solves over a cone in scaled unknowns.

        Where two layers of one sample are on kinks, the sign of the signal below can depend on ξ
        above. A first solution with room for both signs decides it; should another sign be better,
        the residual is a bound from above.
        """
        count, constant = len(self.samples), self.full[:, len(self.samples) :].abs().sum(1) == 0
        sign = torch.where(constant, torch.sign(self.full[:, :count].sum(1)), 0.0)
        if not bool(constant.all()):
            first = torch.from_numpy(solve(self._cone(sign, scale))) / scale
            sign = torch.where(constant, sign, torch.where(self.full @ first < 0, -1.0, 1.0))
        u = torch.from_numpy(solve(self._cone(sign, scale))) / scale
        return self._recover(u)

    def _cone(self, sign: Tensor, scale: Tensor) -> Array:
        """Rows whose product with the scaled unknowns must not be negative, of unit length."""
        count, size = len(self.samples), len(self.kinks)
        positive = torch.eye(count + size, dtype=self.theta.dtype)
        own, full = positive[count:], self.full
        both = sign == 0
        signed = torch.where(both, 1.0, sign)[:, None]
        room = torch.where(both[:, None], self._room(), signed * full)
        low = torch.where(both[:, None], own + room, signed * own)
        rows = torch.cat([positive[:count], low, room - signed * own]) / scale
        return (rows / rows.norm(dim=1, keepdim=True)).numpy()

    def _room(self) -> Tensor:
        """A bound of |ν| that is linear in λ alone, (S, M + S)."""
        count = len(self.samples)
        bound = self.full[:, :count].abs()
        for _ in range(int(self.kinks.layer.max()) if len(self.kinks) else 0):
            bound = self.full[:, :count].abs() + self.full[:, count:].abs() @ bound
        return torch.cat([bound, torch.zeros_like(self.full[:, count:])], 1)

    def _recover(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """λ and ξ within their bounds to the last bit, from the top down, and the ν they make."""
        count = len(self.samples)
        u = u.clone()
        u[:count] = u[:count].clamp(min=0)
        xi = torch.zeros_like(u[count:])
        for layer in sorted(set(self.kinks.layer.tolist()), reverse=True):
            here = self.kinks.layer == layer
            full = (self.full @ u)[here]
            ratio = u[count:][here] / torch.where(full == 0, 1.0, full)
            xi[here] = torch.where(full == 0, 0.0, ratio.clamp(0, 1))
            u[count:][here] = xi[here] * full
        return u[:count], u[count:], xi

    def _report(
        self, residual: float, stationarity: float, complementarity: float, lam: Tensor, xi: Tensor
    ) -> KKT:
        multipliers = torch.zeros_like(self.margins)
        multipliers[self.samples] = lam
        return KKT(residual, stationarity, complementarity, multipliers, xi, self.kinks)


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


def _on_kink(flow: MirrorFlow, pre: list[Tensor], samples: Tensor, tolerance: float) -> Pairs:
    """Pairs of the samples whose pre-activation is zero to a fraction of their unit's largest."""
    found = Pairs.none(samples.device)
    for layer, value in enumerate(pre):
        off, on = flow.network.slopes[layer]
        largest = value.abs().amax(0)
        near = value[samples].abs() <= tolerance * largest
        if off == 0:
            near &= largest > 0
        row, unit = torch.nonzero(near & (on != off), as_tuple=True)
        found = found + Pairs(torch.full_like(row, layer), unit, samples[row])
    return found


def _through(
    flow: MirrorFlow, theta: Tensor, x: Tensor, kinks: Pairs, pattern: list[Tensor], m: Tensor
) -> Tensor:
    """(S, S): what ν of a pair adds to the full ν of one below it for the same sample.

    Switching the lower pair on adds to the normal of the upper one a multiple of its own.
    """
    found = m.new_zeros(len(kinks), len(kinks))
    same = kinks.sample[:, None] == kinks.sample[None]
    below, above = torch.nonzero(same & (kinks.layer[:, None] < kinks.layer[None]), as_tuple=True)
    for low, high in zip(below.split(CHUNK), above.split(CHUNK), strict=True):
        switched = [on[high].clone() for on in pattern]
        for layer, on in enumerate(switched):
            here = torch.nonzero(kinks.layer[low] == layer)[:, 0]
            on[here, kinks.unit[low][here]] = True
        gain = pair_normals(flow.network, theta, x, kinks[high], switched) - m[high]
        size = m[low].square().sum(1)
        part = (gain * m[low]).sum(1) / size.clamp(min=1e-300)
        # Round-off where the two units are not connected.
        noise = 1e-13 * m[high].norm(dim=1) / size.sqrt().clamp(min=1e-150)
        found[low, high] = torch.where(part.abs() > noise, part, 0.0)
    return found


def _jump(flow: MirrorFlow, kinks: Pairs) -> Tensor:
    """Slope on − slope off of each pair."""
    slopes = [flow.network.slopes[layer] for layer in kinks.layer.tolist()]
    return torch.tensor([on - off for off, on in slopes], dtype=torch.float64)
