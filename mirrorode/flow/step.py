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
from mirrorode.flow.normals import Normals, of_pairs, solve_gram
from mirrorode.flow.trajectory import Stats
from mirrorode.problem.homogeneous import HomogeneousNetwork, Pattern
from mirrorode.problem.networks import MLP


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
        found, inverse, held = self.normals(theta), self.inverse(theta), self._held()
        rows = rows.index_fill(-1, held, 0.0) if len(held) else rows
        if found is None:
            return rows
        along = found.along(rows * inverse[..., None, :])
        added = found.combine(solve_gram(found.gram(inverse), along.mT).mT)
        return rows - (added.index_fill(-1, held, 0.0) if len(held) else added)

    def inverse(self, theta: Tensor) -> Tensor:
        """D on its diagonal, zero for the weights of captured units."""
        held, inverse = self._held(), metric(self.flow, theta)
        return inverse.index_fill(-1, held, 0.0) if len(held) else inverse

    def normals(self, theta: Tensor, others: Pairs | None = None) -> Normals | None:
        """Normals (…, S, n) of the sliding kinks, those of ``others`` before them."""
        pairs = self.mode.slides if others is None else others + self.mode.slides
        if len(pairs) == 0:
            return None
        pattern = [on[pairs.sample] for on in self.mode.pattern]
        return of_pairs(self.flow.network, theta, self.x, pairs, pattern)

    def _held(self) -> Tensor:
        return captured_places(self.flow, self.mode)


def captured_places(flow: MirrorFlow, mode: Mode) -> Tensor:
    """Places in θ of the incoming weights of captured units."""
    found = [mode.slides.unit[:0]]
    for layer, captured in enumerate(mode.captured):
        if bool(captured.any()):
            units = torch.nonzero(captured)[:, 0]
            found.append(flow.network.incoming(layer, units).reshape(-1))
    return torch.cat(found)


def has_kinks(flow: MirrorFlow) -> bool:
    """Whether anything changes at all where a pre-activation is zero."""
    return any(off != on for off, on in flow.network.slopes)


def jumps(flow: MirrorFlow, pairs: Pairs) -> Tensor:
    """Slope on the on side minus that on the off side, for each pair (F,)."""
    by_layer = flow.dataset.x.new_tensor([on - off for off, on in flow.network.slopes])
    return by_layer[pairs.layer]


def metric(flow: MirrorFlow, theta: Tensor) -> Tensor:
    """The diagonal of D, kept finite where the Hessian vanishes (λ = 0 at a zero weight)."""
    largest = torch.finfo(theta.dtype).max ** 0.3
    return flow.potential.inverse_hessian(theta).clamp(max=largest)


def speed(flow: MirrorFlow, theta: Tensor, direction: Tensor) -> Tensor:
    """‖G‖²_D of a G (n,)."""
    if flow.potential.separable:
        return (metric(flow, theta) * direction.square()).sum()
    return (direction * flow.potential.precondition(theta, direction)).sum()


def push_signals(network: HomogeneousNetwork, weighted: list[Tensor]) -> list[Tensor]:
    """What switching on adds of each normal to Σ c_i ∂f_i, from signals times c_i."""
    slopes = zip(network.slopes, weighted, strict=True)
    return [(on - off) * signal for (off, on), signal in slopes]


def recover(
    network: HomogeneousNetwork,
    theta: Tensor,
    x: Tensor,
    weight: Tensor,
    mode: Mode,
    multipliers: Tensor,
    pushes: list[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """ξ (…, S) of the sliding pairs from the multipliers of their normals, and their pushes.

    A pair's multiplier is ξ times its push, and the push of a lower layer depends on the ξ of the
    layers above: where kinks of several layers are slid along they are found from the top down.
    ``weight`` (…, K) is p_i y_i. Modules take no fractional pattern; there the pushes are those
    with the pairs above off.
    """
    slides, xi = mode.slides, torch.zeros_like(multipliers)
    several = isinstance(network, MLP) and len(set(slides.layer.tolist())) > 1
    pattern = [on.to(theta).expand(*theta.shape[:-1], *on.shape).clone() for on in mode.pattern]
    for layer in range(len(pattern) - 1, -1, -1):
        here = slides.layer == layer
        push = slides[here].gather(pushes)
        push = torch.where(push == 0, torch.finfo(push.dtype).tiny, push)
        xi[..., here] = multipliers[..., here] / push
        if several and layer > 0 and bool(here.any()):
            pattern[layer][..., slides.sample[here], slides.unit[here]] = xi[..., here]
            _, signals = network.pull(network.forward(theta, x, pattern), weight)
            pushes = push_signals(network, signals)[:layer] + pushes[layer:]
    return xi, pushes


def slide_coefficients(
    step: Step, theta: Tensor, weight: Tensor, free: Tensor, pushes: list[Tensor]
) -> Tensor:
    """ξ (…, S) that makes the sliding kinks stationary.

    ``free`` (…, n) is Σ μ_i h_i with the sliding pairs off, ``weight`` (…, K) is μ_i y_i; ξ_s
    times its push times the normal of pair s, summed over the pairs, takes the normal velocities
    to zero.
    """
    found = step.normals(theta)
    if found is None:
        return theta.new_zeros(*theta.shape[:-1], 0)
    inverse = step.inverse(theta)
    along = found.along((inverse * free)[..., None, :])[..., 0, :]
    needed = -solve_gram(found.gram(inverse), along)
    network = step.flow.network
    return recover(network, theta, step.x, weight, step.mode, needed, pushes)[0]
