"""Clarke subdifferentials ∂°q_i at a point, in a form in which problems over them stay convex.

With all pairs on a kink off, h_i is the gradient of that pattern; a pair (sample i, unit j) adds
ν_ij times the normal of its kink, the gradient of its pre-activation. For a multiplier λ_i, ν_ij
lies between 0 and what it is for a kink coefficient ξ_ij = 1, which is λ_i times the signal from
above: linear in λ_i and in the ν of higher layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mirrorode.flow.kinks import Pairs
from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.flow.normals import pair_normals
from mirrorode.theory.cones import Array, nearest

ON_KINK = 1e-9  # the integrator holds sliding pairs there to round-off
CARRIES = 1e-14  # softmax weight below which a sample has no part in the field
CHUNK = 512  # normals held at once where two layers of a sample are on kinks


@dataclass(frozen=True)
class Clarke:
    """∂°q_i of M samples with S pairs on a kink: v = Σ λ_i h_i is uᵀ(gradients, normals).

    The unknowns u = (λ, ν) satisfy λ ≥ 0 and, for every pair, ν_s between 0 and (full·u)_s.

    Attributes:
        samples: which, (M,), in rising order.
        kinks: the pairs.
        gradients: y_i ∂f_i with these pairs off, (M, n).
        normals: gradients of their pre-activations, (S, n).
        full: ν_s at ξ_s = 1 as a linear function of u, (S, M + S).
    """

    samples: Tensor
    kinks: Pairs
    gradients: Tensor
    normals: Tensor
    full: Tensor

    @classmethod
    def at(
        cls,
        flow: MirrorFlow,
        theta: Tensor,
        samples: Tensor,
        *,
        clarke: bool = True,
        on_kink: float = ON_KINK,
    ) -> Clarke:
        """∂°q_i at ``theta`` (n,), in double precision on the host, for ``samples`` (M,).

        Args:
            flow: the flow.
            theta: the point.
            samples: indices, in rising order.
            clarke: whether to use the kinks; without them every h_i is the gradient on the
                pattern at θ.
            on_kink: a pair is on its kink if its pre-activation is at most this fraction of the
                largest that its unit has on the data. (A ReLU unit that is zero on all of them has
                the zero gradient among its choices, and that is the best one.)
        """
        x, y = (part.double().cpu() for part in (flow.dataset.x, flow.dataset.y))
        forward = flow.network.forward(theta, x)
        kinks = Pairs.none(theta.device)
        if clarke:
            kinks = _on_kink(flow, forward.preactivations, samples, on_kink)
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
        return cls(samples, kinks, y[samples, None] * gradient[samples], normals, full)

    @property
    def columns(self) -> Tensor:
        """Gradients and normals, (M + S, n)."""
        return torch.cat([self.gradients, self.normals])

    def elements(self, xi: Tensor) -> Tensor:
        """h_i with the kink coefficients ξ (S,), as rows (M, n)."""
        count = len(self.gradients)
        u = torch.cat([self.gradients.new_ones(count), torch.zeros_like(xi)])
        for layer in sorted(set(self.kinks.layer.tolist()), reverse=True):
            here = torch.nonzero(self.kinks.layer == layer)[:, 0]
            u[count + here] = xi[here] * (self.full @ u)[here]
        place = torch.searchsorted(self.samples, self.kinks.sample)
        return self.gradients.index_add(0, place, u[count:, None] * self.normals)

    def weighted(self, weights: Tensor) -> Clarke:
        """The one set Σ p_i ∂°q_i for given weights p (M,), as if of one sample."""
        count = len(self.gradients)
        full = torch.cat([(self.full[:, :count] @ weights)[:, None], self.full[:, count:]], 1)
        total = (weights @ self.gradients)[None]
        return Clarke(self.samples[:1], self.kinks, total, self.normals, full)

    def solve(
        self, minimise: Callable[[Array], Array], scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """λ, ν, ξ of the convex problem that ``minimise`` solves over a cone in scaled unknowns.

        Where two layers of one sample are on kinks, the sign of the signal below can depend on ξ
        above. A first solution with room for both signs decides it; should another sign be better,
        the residual is a bound from above.
        """
        count, constant = len(self.gradients), self.full[:, len(self.gradients) :].abs().sum(1) == 0
        sign = torch.where(constant, torch.sign(self.full[:, :count].sum(1)), 0.0)
        if not bool(constant.all()):
            first = torch.from_numpy(minimise(self._cone(sign, scale))) / scale
            sign = torch.where(constant, sign, torch.where(self.full @ first < 0, -1.0, 1.0))
        u = torch.from_numpy(minimise(self._cone(sign, scale))) / scale
        return self.recover(u)

    def _cone(self, sign: Tensor, scale: Tensor) -> Array:
        """Rows whose product with the scaled unknowns must not be negative, of unit length."""
        count, size = len(self.gradients), len(self.kinks)
        positive = torch.eye(count + size, dtype=self.full.dtype)
        own, full = positive[count:], self.full
        both = sign == 0
        signed = torch.where(both, 1.0, sign)[:, None]
        room = torch.where(both[:, None], self._room(), signed * full)
        low = torch.where(both[:, None], own + room, signed * own)
        rows = torch.cat([positive[:count], low, room - signed * own]) / scale
        return (rows / rows.norm(dim=1, keepdim=True)).numpy()

    def _room(self) -> Tensor:
        """A bound of |ν| that is linear in λ alone, (S, M + S)."""
        count = len(self.gradients)
        bound = self.full[:, :count].abs()
        for _ in range(int(self.kinks.layer.max()) if len(self.kinks) else 0):
            bound = self.full[:, :count].abs() + self.full[:, count:].abs() @ bound
        return torch.cat([bound, torch.zeros_like(self.full[:, count:])], 1)

    def recover(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """λ and ξ within their bounds to the last bit, from the top down, and the ν they make."""
        count = len(self.gradients)
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


def least_norm(flow: MirrorFlow, theta: Tensor) -> Tensor:
    """The field G = Σ p_i h_i, (T, n), of the least-norm selection at points ``theta`` (T, n).

    Of all h_i ∈ ∂°q_i it makes ‖G‖ in the metric D = (∇²R)⁻¹ smallest: the velocity of the flow,
    of which `MirrorFlow.vector_field` is the off side.
    """
    field = flow.vector_field(theta)
    for point in torch.nonzero(_touches(flow, theta))[:, 0].tolist():
        field[point] = _least_norm_at(flow, theta[point]).to(field)
    return field


def _touches(flow: MirrorFlow, theta: Tensor) -> Tensor:
    """Whether any pair is on its kink, (T,)."""
    found = torch.zeros(len(theta), dtype=torch.bool)
    pre = flow.network.forward(theta, flow.dataset.x).preactivations
    for value, (off, on) in zip(pre, flow.network.slopes, strict=True):
        if off != on:
            largest = value.abs().amax(-2, keepdim=True)
            found |= ((value.abs() <= ON_KINK * largest) & (largest > 0)).flatten(1).any(1).cpu()
    return found


def _least_norm_at(flow: MirrorFlow, theta: Tensor) -> Tensor:
    theta = theta.double().cpu()
    weights = flow.weights(theta.to(flow.dataset.x)).double().cpu()
    samples = torch.nonzero(weights > CARRIES)[:, 0]
    total = Clarke.at(flow, theta, samples).weighted(weights[samples])
    if len(total.kinks) == 0:
        return total.gradients[0]
    both = _in_metric(flow, theta, torch.cat([total.gradients[:1], total.normals]))
    base, normals = both[0], both[1:]
    gram, signal = normals @ normals.T, total.full[:, 0]
    size = gram.diagonal()
    apart = (gram - torch.diag(size)).abs() <= 1e-13 * torch.outer(size.sqrt(), size.sqrt())
    if bool(apart.all()) and not bool(total.full[:, 1:].any()):
        slope = size * signal
        share = (-(normals @ base) / slope.where(slope != 0, 1.0)).clamp(0, 1)
        return total.gradients[0] + (share * signal) @ total.normals
    scale = torch.cat([base[None], normals]).norm(dim=1).clamp(min=1e-300)
    columns = (torch.cat([base[None], normals]) / scale[:, None]).T

    def minimise(cone: Array) -> Array:
        # A row that asks the first unknown to be one. The problem is homogeneous in the others,
        # so that a different value of it scales them and nothing else.
        ask = torch.zeros(1, columns.shape[1], dtype=columns.dtype)
        ask[0, 0] = 1.0
        target = torch.zeros(len(columns) + 1, dtype=columns.dtype)
        target[-1] = 1.0
        return nearest(torch.cat([columns, ask]).numpy(), target.numpy(), cone)

    lam, nu, _ = total.solve(minimise, scale)
    return total.gradients[0] + (nu / lam) @ total.normals


def _in_metric(flow: MirrorFlow, theta: Tensor, rows: Tensor) -> Tensor:
    """D^{1/2} rows, so that products become those of D; a weight that cannot move has none."""
    if flow.potential.separable:
        return rows * flow.potential.inverse_hessian(theta).clamp(max=1e300).sqrt()
    identity = torch.eye(len(theta), dtype=theta.dtype)
    return rows @ torch.linalg.cholesky(flow.potential.precondition(theta, identity))


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
