"""Units held at zero incoming weights: all their kinks at once.

A unit whose output weight is large against its incoming ones can be driven to w = 0 in finite
time, sliding along kinks until nothing is left of it. There, with the force
F(u) = Σ_i p_i y_i s σ(u·z_i) for a direction u (z_i what enters the layer, s the signal above), the
inclusion keeps it as long as F ≤ 0 in every direction, and lets it go where F is largest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mirrorode.flow.kinks import Pairs
from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.flow.step import Mode

STEPS = 20  # of the fixed-point iteration u ← F'(u)/‖F'(u)‖; two suffice from every edge
ON_EDGE = 1e-6  # cosine
LOOSE = 1e-7  # of the largest possible force: what counts as zero


def strongest(inputs: Tensor, force: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over unit vectors u of Σ_i force_i σ(u·z_i), and where.

    Args:
        inputs: z, (K, d).
        force: (K,).

    Returns:
        The largest value found relative to Σ|force_i|‖z_i‖, and its direction (d,). In one and
        two dimensions every cell and every edge is tried; above, iteration from ±z_i.
    """
    starts = [inputs, -inputs]
    if inputs.shape[1] == 2:
        edges = torch.stack([-inputs[:, 1], inputs[:, 0]], 1)
        for tilt in (0.0, 1e-7, -1e-7):
            starts += [edges + tilt * inputs, -edges + tilt * inputs]
    u = torch.nn.functional.normalize(torch.cat(starts))
    best, where = force.new_tensor(-torch.inf), u[0]
    for _ in range(2 if inputs.shape[1] <= 2 else STEPS):
        value = torch.relu(u @ inputs.T) @ force
        top = int(value.argmax())
        if value[top] > best:
            best, where = value[top], u[top]
        u = torch.nn.functional.normalize(((u @ inputs.T > 0) * force) @ inputs)
    return best / (force.abs() @ inputs.norm(dim=1)).clamp(min=1e-300), where


def pull(
    flow: MirrorFlow, theta: Tensor, samples: Tensor, share: Tensor, layer: int, unit: int
) -> tuple[float, Tensor, Tensor]:
    """`strongest` for one captured unit, from the weights ``share`` (K,) of ``samples``.

    Returns:
        The relative pull, its direction, and the samples whose kink the direction lies on, which
        the unit will slide along when it leaves.
    """
    x, y = flow.dataset.x[samples], flow.dataset.y[samples]
    forward = flow.network.forward(theta, x)
    _, signals = flow.network.pull(forward, share * y)
    force = signals[layer][:, unit]
    inputs = forward.entering[layer]
    value, direction = strongest(inputs, force)
    on_edge = ((inputs @ direction).abs() < ON_EDGE * inputs.norm(dim=1)) & (force < 0)
    return float(value), direction, samples[on_edge]


def places_of(flow: MirrorFlow, layer: int, unit: int) -> Tensor:
    """Places in θ of the incoming weights of one unit."""
    return flow.network.incoming(layer, torch.tensor([unit], device=flow.dataset.x.device))[0]


def hold(flow: MirrorFlow, dual: Tensor, mode: Mode, units: Pairs) -> tuple[Tensor, Mode]:
    """Put the incoming weights of ``units`` at zero and keep them there."""
    dual, captured, slides, pattern = (
        dual.clone(),
        [c.clone() for c in mode.captured],
        mode.slides,
        mode.pattern,
    )
    pattern = [on.clone() for on in pattern]
    for layer, unit, _ in zip(*units.lists(), strict=True):
        dual[places_of(flow, layer, unit)] = 0.0
        captured[layer][unit] = True
        pattern[layer][:, unit] = False
        slides = slides[~((slides.layer == layer) & (slides.unit == unit))]
    return dual, Mode(pattern, slides, captured)


def free(
    flow: MirrorFlow, dual: Tensor, mode: Mode, layer: int, unit: int, start: Tensor
) -> tuple[Tensor, Mode]:
    """Let a captured unit go with the incoming dual weights ``start``, on its true pattern."""
    dual, captured = dual.clone(), [c.clone() for c in mode.captured]
    dual[places_of(flow, layer, unit)] = start
    captured[layer][unit] = False
    theta = flow.potential.inverse_gradient(dual)
    pattern = [on.clone() for on in mode.pattern]
    pattern[layer][:, unit] = (
        flow.network.forward(theta, flow.dataset.x).preactivations[layer][:, unit] > 0
    )
    return dual, Mode(pattern, mode.slides, captured)
