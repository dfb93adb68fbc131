"""The velocity of the flow at one dual on one mode, with what its kinks need to be judged.

In the loss clock dσ = 𝓛 dt the dual moves by dz/dσ = G = Σ p_i h_i and log(1/𝓛) by ‖G‖²_D. On the
kinks slid along G is the element of least norm: with the normals N taken on the off side,
G = G₀ − Nᵀ(N D Nᵀ)⁻¹N D G₀, where D is zero for the weights of captured units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mirrorode.flow import normals
from mirrorode.flow.kinks import Pairs
from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.flow.normals import Normals
from mirrorode.flow.step import Mode, metric
from mirrorode.problem.networks import MLP, Forward


@dataclass(frozen=True)
class Field:
    """The flow at a dual, all samples taken into account.

    Attributes:
        dual, theta: (n,).
        inverse: D on its diagonal, zero for captured weights, (n,).
        loss: log(1/𝓛) on the pattern of the mode.
        share: p, (K,).
        forward: the network on the pattern.
        pushes: one (K, units) a kink layer; switching a pair on adds its push times its normal
            to G. Negative where the kink is convex.
        direction: G, (n,); speed: ‖G‖²_D.
        normals, gram: of the sliding pairs; None without any.
        coefficients: ξ of the sliding pairs, (S,).
    """

    dual: Tensor
    theta: Tensor
    inverse: Tensor
    loss: float
    share: Tensor
    forward: Forward
    pushes: list[Tensor]
    direction: Tensor
    speed: float
    normals: Normals | None
    gram: Tensor | None
    coefficients: Tensor


def evaluate(flow: MirrorFlow, dual: Tensor, mode: Mode) -> Field:
    """G and its company at ``dual``: one evaluation."""
    network, data = flow.network, flow.dataset
    theta = flow.potential.inverse_gradient(dual)
    forward = network.forward(theta, data.x, mode.pattern)
    q = data.y * forward.output
    share = torch.softmax(-q, 0)
    free, signals = network.pull(forward, share * data.y)
    inverse = metric(flow, theta)
    held = captured_places(flow, mode)
    if len(held):
        inverse, free = inverse.index_fill(0, held, 0.0), free.index_fill(0, held, 0.0)
    found, gram, xi, direction = None, None, free[:0], free
    jumps = [on - off for off, on in network.slopes]
    pushes = [jump * signal for jump, signal in zip(jumps, signals, strict=True)]
    slides = mode.slides
    if len(slides):
        found = normals_of(flow, theta, slides, mode)
        gram = found.gram(inverse)
        multipliers = -solve_gram(gram, found.along((inverse * free)[None])[0])
        added = found.combine(multipliers[None])[0]
        direction = free + (added.index_fill(0, held, 0.0) if len(held) else added)
        xi, pushes = recover(flow, theta, share * data.y, mode, multipliers, pushes)
    speed = (inverse * direction.square()).sum()
    loss, norm = torch.stack([-torch.logsumexp(-q, 0), speed]).tolist()
    return Field(
        dual, theta, inverse, loss, share, forward, pushes, direction, norm, found, gram, xi
    )


def normals_of(flow: MirrorFlow, theta: Tensor, pairs: Pairs, mode: Mode) -> Normals:
    """The normals of ``pairs`` on the pattern of the mode."""
    pattern = [on[pairs.sample] for on in mode.pattern]
    return normals.of_pairs(flow.network, theta, flow.dataset.x, pairs, pattern)


def captured_places(flow: MirrorFlow, mode: Mode) -> Tensor:
    """Places in θ of the incoming weights of captured units."""
    found = [mode.slides.unit[:0]]
    for layer, captured in enumerate(mode.captured):
        if bool(captured.any()):
            units = torch.nonzero(captured)[:, 0]
            found.append(flow.network.incoming(layer, units).reshape(-1))
    return torch.cat(found)


def recover(
    flow: MirrorFlow,
    theta: Tensor,
    weight: Tensor,
    mode: Mode,
    multipliers: Tensor,
    pushes: list[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """ξ of the sliding pairs from the multipliers of their normals, and the pushes they leave.

    A pair's multiplier is ξ times its push, and the push of a lower layer depends on the ξ of the
    layers above: where one sample slides in several layers they are found from the top down.
    ``weight`` (K,) is p_i y_i.
    """
    network, slides = flow.network, mode.slides
    several = isinstance(network, MLP) and len(set(slides.layer.tolist())) > 1
    if several:
        pattern = [on.to(theta) for on in mode.pattern]
        xi = torch.zeros_like(multipliers)
        for layer in range(len(pattern) - 1, -1, -1):
            here = slides.layer == layer
            if not bool(here.any()):
                continue
            xi[here] = multipliers[here] / _nonzero(slides[here].gather(pushes))
            pattern[layer][slides.sample[here], slides.unit[here]] = xi[here]
            if layer > 0:
                forward = network.forward(theta, flow.dataset.x, pattern)
                _, signals = network.pull(forward, weight)
                jumps = [on - off for off, on in network.slopes]
                below = [jump * signal for jump, signal in zip(jumps, signals, strict=True)]
                pushes = below[:layer] + pushes[layer:]
        return xi, pushes
    return multipliers / _nonzero(slides.gather(pushes)), pushes


def _nonzero(push: Tensor) -> Tensor:
    return torch.where(push == 0, torch.finfo(push.dtype).tiny, push)


def solve_gram(gram: Tensor, right: Tensor) -> Tensor:
    """gram⁻¹ right for (…, S, S) and (…, S) or (…, S, m), scaled to a unit diagonal.

    Twenty units of round-off on it decide where normals have come to depend on each other.
    """
    flat = right.ndim == gram.ndim - 1
    size = gram.diagonal(dim1=-2, dim2=-1).clamp(min=1e-300).rsqrt()
    scaled = gram * size[..., :, None] * size[..., None, :]
    scaled.diagonal(dim1=-2, dim2=-1).add_(20 * torch.finfo(gram.dtype).eps)
    vector = size[..., None] * (right[..., None] if flat else right)
    factor, info = torch.linalg.cholesky_ex(scaled)
    if bool((info > 0).any()):
        solved = torch.linalg.lstsq(scaled, vector).solution
    else:
        solved = torch.cholesky_solve(vector, factor)
    solved = size[..., None] * solved
    return solved[..., 0] if flat else solved
