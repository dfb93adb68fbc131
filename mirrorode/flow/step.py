"""What is fixed during one attempted step: the mode of the flow, the clock, the geometry.

In a mode, a pattern together with the kinks that are being slid along, the flow is smooth. Its
velocity is the element of −∂°𝓛 of least norm in the metric D: gradients are projected on the
tangent space of the kinks slid along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mirrorode.flow.kinks import Pairs
from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.flow.trajectory import Stats
from mirrorode.problem.networks import Pattern


@dataclass(frozen=True)
class Mode:
    """What is smooth at the moment: the pattern, and the kinks that are being slid along.

    Attributes:
        pattern: one (K, units) a hidden layer; sliding pairs are off.
        slides: the sliding pairs.
        captured: one (units,) a hidden layer: units held at zero incoming weights.
    """

    pattern: Pattern
    slides: Pairs
    captured: list[Tensor]

    def restrict(self, samples: Tensor) -> Mode:
        """The mode of a subset of samples that contains every sliding one."""
        place = torch.searchsorted(samples, self.slides.sample)
        slides = replace(self.slides, sample=place)
        return replace(self, pattern=[on[samples] for on in self.pattern], slides=slides)

    def held(self, fan_in: Sequence[int]) -> Pattern:
        """Pairs whose kink needs no watching: sliding ones, captured units, units on a line."""
        captured = zip(self.pattern, self.captured, strict=True)
        held = [unit.expand_as(on).clone() for on, unit in captured]
        for layer, unit, _ in zip(*self.on_a_line(fan_in).lists(), strict=True):
            held[layer][:, unit] = True
        return self.slides.mark(held, True)

    def on_a_line(self, fan_in: Sequence[int]) -> Pairs:
        """Units (sample −1) that slide on all but one direction of their incoming weights.

        These move on a line through zero, where all kinks of the unit meet: it crosses none
        before, and what happens at zero is for `capture` to say.
        """
        found = []
        for layer, captured in enumerate(self.captured):
            own = self.slides.unit[self.slides.layer == layer]
            count = torch.bincount(own, minlength=len(captured))
            on_line = (count >= fan_in[layer] - 1) & ~captured & (fan_in[layer] > 0)
            units = torch.nonzero(on_line)[:, 0]
            found += [(layer, unit, -1) for unit in units.tolist()]
        return Pairs.of(found, self.slides.unit.device)


@dataclass(frozen=True)
class Clock:
    """The scalar equation log Σ_i μ_i = follows·ν + offset at each node.

    In loss time, dx = 𝓛 dt, the weights sum to one: follows = 0, offset = 0. In log ℓ time the
    loss at the nodes is prescribed: follows = 1, offset_j = −ℓ_j.
    """

    follows: float
    offset: Tensor


@dataclass(frozen=True)
class Step:
    """Everything that is fixed during one attempted step of size ``h`` (K samples that matter)."""

    flow: MirrorFlow
    x: Tensor
    y: Tensor
    mode: Mode
    clock: Clock
    h: float
    dual: Tensor
    preactivations: list[Tensor]
    coefficients: Tensor
    scale: Tensor
    weight_tolerance: float
    stats: Stats

    def project(self, theta: Tensor, rows: Tensor) -> Tensor:
        """Gradients (…, R, n) made tangent to the kinks slid along, in the metric D."""
        normals = self.normals(theta)
        if normals is None:
            return rows
        weighted = normals * metric(self.flow, theta)[..., None, :]
        gram = weighted @ normals.mT
        return rows - torch.linalg.solve(gram, weighted @ rows.mT).mT @ normals

    def normals(self, theta: Tensor) -> Tensor | None:
        """Normals (…, S, n) of the sliding kinks, coordinates of captured units among them."""
        slides, captured = self.mode.slides, self.mode.captured
        parts = [incoming(self.flow, layer, on, theta) for layer, on in enumerate(captured)]
        if len(slides):
            pattern = [on[slides.sample] for on in self.mode.pattern]
            parts.insert(0, pair_normals(self.flow, theta, self.x, slides, pattern))
        count = sum(part.shape[-2] for part in parts)
        return torch.cat(parts, dim=-2) if count else None


def pair_normals(
    flow: MirrorFlow, theta: Tensor, x: Tensor, pairs: Pairs, pattern: Pattern
) -> Tensor:
    """Gradients (…, F, n) of the pre-activations of the pairs; one pattern row for each pair."""
    normals = theta.new_zeros(*theta.shape[:-1], len(pairs), flow.network.size)
    for layer in range(len(pattern)):
        here = torch.nonzero(pairs.layer == layer)[:, 0]
        below = [on[..., here, :] for on in pattern]
        rows = x[pairs.sample[here]]
        normals[..., here, :] = flow.network.normals(theta, rows, below, layer, pairs.unit[here])
    return normals


def has_kinks(flow: MirrorFlow) -> bool:
    """Whether anything changes at all where a pre-activation is zero."""
    return any(off != on for off, on in flow.network.slopes)


def jumps(flow: MirrorFlow, pairs: Pairs) -> Tensor:
    """Slope on the on side minus that on the off side, for each pair (F,)."""
    by_layer = flow.dataset.x.new_tensor([on - off for off, on in flow.network.slopes])
    return by_layer[pairs.layer]


def incoming(flow: MirrorFlow, layer: int, captured: Tensor, like: Tensor) -> Tensor:
    """Coordinate vectors (…, units × fan-in, n) of the incoming weights of ``captured`` units."""
    units = torch.nonzero(captured)[:, 0]
    rows = flow.network.incoming(layer, units).reshape(-1)
    basis = torch.nn.functional.one_hot(rows, flow.network.size).to(like)
    return basis.expand(*like.shape[:-1], *basis.shape)


def metric(flow: MirrorFlow, theta: Tensor) -> Tensor:
    """The diagonal of D, kept finite where the Hessian vanishes (λ = 0 at a zero weight)."""
    largest = torch.finfo(theta.dtype).max ** 0.3
    return flow.potential.inverse_hessian(theta).clamp(max=largest)


def slide_coefficients(
    step: Step, theta: Tensor, mu: Tensor, free: Tensor, signals: list[Tensor]
) -> Tensor:
    """ξ (…, S) that makes the sliding kinks stationary.

    ``free`` (…, n) is Σ μ_i h_i with the sliding pairs off; ξ_s times the gradient that pair s
    adds when it is on, summed over the pairs, takes the normal velocities to zero.
    """
    slides, normals = step.mode.slides, step.normals(theta)
    if normals is None or len(slides) == 0:
        return theta.new_zeros(*theta.shape[:-1], 0)
    weighted = normals * metric(step.flow, theta)[..., None, :]
    needed = -torch.linalg.solve(weighted @ normals.mT, (weighted @ free[..., None]))[..., 0]
    push = step.y[slides.sample] * slides.gather(signals) * jumps(step.flow, slides)
    return needed[..., : len(slides)] / (mu[..., slides.sample] * push)
