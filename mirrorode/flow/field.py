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
from mirrorode.flow.step import Mode, captured_places, metric, push_signals, recover
from mirrorode.problem.homogeneous import Forward


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
    pushes = push_signals(network, signals)
    slides = mode.slides
    if len(slides):
        found = normals_of(flow, theta, slides, mode)
        gram = found.gram(inverse)
        multipliers = -normals.solve_gram(gram, found.along((inverse * free)[None])[0])
        added = found.combine(multipliers[None])[0]
        direction = free + (added.index_fill(0, held, 0.0) if len(held) else added)
        xi, pushes = recover(network, theta, data.x, share * data.y, mode, multipliers, pushes)
    speed = (inverse * direction.square()).sum()
    loss, norm = torch.stack([-torch.logsumexp(-q, 0), speed]).tolist()
    return Field(
        dual, theta, inverse, loss, share, forward, pushes, direction, norm, found, gram, xi
    )


def normals_of(flow: MirrorFlow, theta: Tensor, pairs: Pairs, mode: Mode) -> Normals:
    """The normals of ``pairs`` on the pattern of the mode."""
    pattern = [on[pairs.sample] for on in mode.pattern]
    return normals.of_pairs(flow.network, theta, flow.dataset.x, pairs, pattern)
