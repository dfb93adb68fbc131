"""What a neuron does when it meets a kink: cross, slide, leave, be captured, be let go.

The velocity is the element of least norm in D of the hull of the one-sided ones. With the surfaces
in question off, force F, and coefficients ξ in [0, 1] of their strengths β,

    minimise ‖a (F + Σ_s ξ_s β_s e_s)‖_D,

which needs a β < 0 (a convex kink) to have its minimum inside; a concave kink, a β > 0, is crossed
on arrival. At w = 0 all surfaces meet, and the neuron stays as long as nothing pulls it away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import lsq_linear
from torch import Tensor
from torch.nn.functional import normalize, pad

from mirrorode.flow.neurons import Drive, polynomial

CROSS, SLIDE, EXIT, CAPTURE, RELEASE, BRANCH = range(6)
KINDS = ("cross", "slide", "exit", "capture", "release", "branch")
ON_EDGE = 1e-9  # cosine between a direction and a surface it lies on
LOOSE = 1e-10  # relative pull beyond which a neuron leaves w = 0
SEARCH = 20  # fixed-point iterations for the strongest pull above two dimensions


@dataclass(frozen=True)
class Meeting:
    """Neurons ``rows`` that meet a surface: E of them, each at its own position ``s`` (E,).

    Attributes:
        dual: (E, d + 1); on, slides: (E, G), before; surface: (E,), the one met.
    """

    rows: Tensor
    s: Tensor
    dual: Tensor
    on: Tensor
    slides: Tensor
    surface: Tensor


def decide(drive: Drive, met: Meeting) -> tuple[Tensor, Tensor, Tensor]:
    """The modes after the meetings: on (E, G), slides (E, G), and ξ of the surface met (E,).

    ξ is 0 or 1 where the surface is crossed.
    """
    row = torch.arange(len(met.s), device=met.s.device)
    beta = drive.beta(met.rows, met.surface, met.s)
    convex = drive.primal(met.rows, met.dual)[:, -1] * beta < 0
    before = met.on[row, met.surface]
    members, on = met.slides.clone(), met.on.clone()
    members[row, met.surface] = convex
    on[row, met.surface] = torch.where(convex, before, ~before)
    on &= ~members
    xi = on.to(met.s)
    asked = torch.nonzero(members.any(1))[:, 0]
    if len(asked):
        rows, s, dual = met.rows[asked], met.s[asked], met.dual[asked]
        xi[asked] += settle(drive, rows, s, dual, on[asked], members[asked])
    return xi >= 1, (xi > 0) & (xi < 1), xi[row, met.surface]


def settle(
    drive: Drive, rows: Tensor, s: Tensor, dual: Tensor, free: Tensor, members: Tensor
) -> Tensor:
    """ξ (A, G) of least norm for ``members``, zero elsewhere; others are on where ``free``."""
    metric = drive.metric(rows, drive.primal(rows, dual))[:, :-1]
    force = polynomial(drive.force(rows, free), s)[:, :-1]
    inside = drive.slides(rows, members)
    beta = drive.beta(rows, inside.surface, s)
    found = inside.multipliers(metric, force[..., None])[..., 0]
    xi = torch.where(inside.valid, -found / torch.where(inside.valid, beta, 1.0), 0.5)
    bad = torch.nonzero(((xi <= 0) | (xi >= 1)).any(1) & (inside.valid.sum(1) > 1))[:, 0]
    xi = xi.clamp(0, 1)
    for k in bad.tolist():
        use = inside.valid[k]
        columns = inside.normal[k, use] * beta[k, use, None]
        xi[k, use] = _box(columns, metric[k], force[k])
    found = torch.zeros_like(members, dtype=dual.dtype)
    found[members] = xi[inside.valid]
    return found


def _box(columns: Tensor, metric: Tensor, force: Tensor) -> Tensor:
    """ξ in [0, 1]^M that minimises ‖F + Σ ξ_s c_s‖_D for rows c (M, d), columns normalised."""
    weighted = (columns * metric.sqrt()).cpu().numpy()
    size = np.linalg.norm(weighted, axis=1)
    size = np.where(size > 0, size, 1.0)
    target = -(force * metric.sqrt()).cpu().numpy()
    bounds = (np.zeros(len(size)), size)
    scale = max(float(np.linalg.norm(target)), 1e-300)
    found = lsq_linear(
        (weighted / size[:, None]).T, target / scale, (bounds[0], bounds[1] / scale), method="bvls"
    )
    xi = found.x * scale / size
    xi[found.active_mask < 0], xi[found.active_mask > 0] = 0.0, 1.0
    return torch.as_tensor(xi).to(columns).clamp(0, 1)


def strongest(normal: Tensor, base: Tensor, strength: Tensor) -> tuple[float, Tensor]:
    """The largest of base·u + Σ_g β_g max(e_g·u, 0) over unit vectors u, and where.

    Exact in one and two dimensions, where every cell and every edge is tried; above, the fixed
    point of u ← F'(u)/‖F'(u)‖ from each ±e_g.

    Args:
        normal: (G, d); base: (d,); strength: (G,).

    Returns:
        The value relative to ‖base‖ + Σ|β|, and the direction (d,).
    """
    starts = [normal, -normal, base[None]]
    if normal.shape[1] == 2:
        edges = torch.stack([-normal[:, 1], normal[:, 0]], 1)
        for tilt in (0.0, 1e-7, -1e-7):
            starts += [edges + tilt * normal, -edges + tilt * normal]
    u = normalize(torch.cat(starts))
    best, where = -torch.inf, u[0]
    for _ in range(2 if normal.shape[1] <= 2 else SEARCH):
        along = u @ normal.T
        value = u @ base + torch.relu(along) @ strength
        top = int(value.argmax())
        if float(value[top]) > best:
            best, where = float(value[top]), u[top]
        u = normalize(base + ((along > 0) * strength) @ normal)
    size = float(base.norm() + strength.abs().sum())
    return best / max(size, 1e-300), where


def pull(drive: Drive, network: int, s: float, sign: float) -> tuple[float, Tensor]:
    """`strongest` on a neuron at w = 0 whose output weight has this sign, at position s."""
    normal, base, strength = _at(drive, network, s, sign)
    return strongest(normal, base, strength)


def outward(
    drive: Drive, network: int, s: float, sign: float, direction: Tensor
) -> tuple[Tensor, Tensor]:
    """On and sliding surfaces (G,) of a neuron that leaves w = 0 in ``direction``."""
    normal, _, strength = _at(drive, network, s, sign)
    along = normal @ direction
    edge = (along.abs() < ON_EDGE) & (strength < 0)
    room = (0, drive.normal.shape[1] - len(normal))
    return pad((along > 0) & ~edge, room), pad(edge, room)


def _at(drive: Drive, network: int, s: float, sign: float) -> tuple[Tensor, Tensor, Tensor]:
    """Kinks, force with all off, and strengths, of a network at a position, times the sign."""
    known = drive.known[network]
    powers = sign * drive.base.new_tensor([1.0, s, s * s])
    base = powers @ drive.base[network, :, :-1]
    return drive.normal[network, :known], base, powers @ drive.strength[network, :, :known]
