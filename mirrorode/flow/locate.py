"""Where in a piece a neuron first meets something: a kink, the end of a slide, w = 0, a = 0.

Every event function is looked at on a grid of the piece, so that two crossings in it are seen, and
its root found on the dense output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mirrorode.flow import meeting
from mirrorode.flow.neurons import Drive, Slides, polynomial
from mirrorode.flow.pieces import Curve, Piece

GRID = (0.25, 0.5, 0.75, 1.0)  # where a piece is looked at for kinks, two crossings in it included
SIGN = 1e-13  # of ‖w‖: what counts as on the surface, in detection and location alike
NEAR = 1.2  # times the largest movement seen: a surface beyond it is not met
ROOT = 1e-11  # of a piece


@dataclass(frozen=True)
class _Seen:
    """Pairs of a neuron and a surface that its movement can reach, and where it is beyond.

    Attributes:
        row, surface: (C,); normal: e, turned to the side that the mode has it on, (C, d).
        beyond: at the grid, (4, C).
    """

    row: Tensor
    surface: Tensor
    normal: Tensor
    beyond: Tensor


def first_event(drive: Drive, piece: Piece) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first event of each neuron: its share of the piece, its kind (−1: none), its surface.

    Also how many pairs of it and a surface were looked at, its start included.
    """
    count = len(piece.rows)
    share = torch.ones_like(piece.s)
    kind = torch.full_like(piece.rows, -1)
    surface = torch.full_like(piece.rows, -1)
    grid = share.new_tensor(GRID)[:, None].expand(-1, count)
    theta = drive.primal(piece.rows, piece.curve.at(grid)[..., :-1])
    start = drive.primal(piece.rows, piece.curve.start[:, :-1])
    slack = SIGN * start[:, :-1].norm(dim=1)
    outside = _outside(drive, piece, grid, theta)
    ended, back, on_line = _ended(piece, theta, start)
    rows = piece.sliding.rows
    # A neuron that slides on a line through w = 0 meets no other surface before it is there.
    free = torch.ones_like(share, dtype=torch.bool)
    free[rows[on_line]] = False
    seen, looked = _seen(drive, piece, theta[..., :-1], start[:, :-1], slack, free)
    bad = torch.zeros(len(GRID), count, dtype=torch.bool, device=share.device)
    at, pair = torch.nonzero(seen.beyond, as_tuple=True)
    bad[at, seen.row[pair]] = True
    if len(rows):
        bad[:, rows] |= outside.any(-1) | ended | back
    if not bool(bad.any()):
        return share, kind, surface, looked
    hit = torch.nonzero(bad.any(0))[:, 0]
    first = bad.to(torch.uint8).argmax(0)
    edges = share.new_tensor((0.0, *GRID))
    low, high = edges[first], edges[first + 1]
    found = _crossings(drive, piece, seen, first, low, high, slack)
    if len(rows):
        slot = torch.full_like(piece.rows, -1)
        slot[rows] = torch.arange(len(rows), device=rows.device)
        found += _exits(drive, piece, outside, slot, hit, first, low, high)
        found += _turns(drive, piece, ended, back, slot, hit, first, low, high, start)
    neuron, when, what, where = (torch.cat(part) for part in zip(*found, strict=True))
    order = torch.argsort(when, stable=True)
    order = order[torch.argsort(neuron[order], stable=True)]
    lead = torch.ones_like(order, dtype=torch.bool)
    lead[1:] = neuron[order].diff() != 0
    order = order[lead]
    share[neuron[order]] = when[order]
    kind[neuron[order]] = what[order]
    surface[neuron[order]] = where[order]
    return share, kind, surface, looked


def _seen(
    drive: Drive, piece: Piece, weights: Tensor, start: Tensor, slack: Tensor, free: Tensor
) -> tuple[_Seen, Tensor]:
    """What neurons that are ``free`` to meet surfaces see at the grid."""
    reach = (weights - start).norm(dim=-1).amax(0) * NEAR
    reach = torch.where(free, reach, -1.0)
    near = (drive.along(piece.rows, start).abs() <= reach[:, None]) & ~piece.slides
    row, surface = torch.nonzero(near, as_tuple=True)
    side = torch.where(piece.on[row, surface], -1.0, 1.0).to(start)
    normal = drive.normals(piece.rows[row], surface) * side[:, None]
    beyond = (weights[:, row] * normal).sum(-1) > slack[row]
    looked = drive.known_of(piece.rows) + len(weights) * torch.bincount(row, minlength=len(near))
    return _Seen(row, surface, normal, beyond), looked


def _outside(drive: Drive, piece: Piece, grid: Tensor, theta: Tensor) -> Tensor:
    """Which coefficients of sliding surfaces are outside [0, 1], (4, B, M)."""
    rows = piece.sliding.rows
    if len(rows) == 0:
        return torch.zeros(len(grid), 0, 0, dtype=torch.bool, device=grid.device)
    xi = _coefficients(
        drive, piece, rows, piece.sliding, (piece.s + grid * piece.delta)[:, rows], theta[:, rows]
    )
    return ((xi < -1e-12) | (xi > 1 + 1e-12)) & piece.sliding.valid


def _coefficients(
    drive: Drive, piece: Piece, rows: Tensor, sliding: Slides, s: Tensor, theta: Tensor
) -> Tensor:
    """ξ (…, B, M) of the sliding surfaces of neurons ``rows`` at positions s (…, B)."""
    neurons = piece.rows[rows]
    metric = drive.metric(neurons, theta)[..., :-1]
    force = polynomial(piece.force[rows], s)[..., :-1]
    beta = drive.beta(neurons, sliding.surface, s)
    found = sliding.multipliers(metric, force[..., None])[..., 0]
    return torch.where(sliding.valid, -found / torch.where(sliding.valid, beta, 1.0), 0.5)


def _ended(piece: Piece, theta: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which sliding neurons have passed w = 0, have turned their output weight; are on a line."""
    rows = piece.sliding.rows
    w, a = theta[:, rows, :-1], theta[:, rows, -1]
    dim = w.shape[-1]
    on_line = (piece.sliding.valid.sum(1) >= dim - 1) & (dim > 1)
    ended = ((w * start[rows, :-1]).sum(-1) < 0) & on_line
    back = (a * start[rows, -1]) < 0
    return ended, back, on_line


_Found = list[tuple[Tensor, Tensor, Tensor, Tensor]]


def _crossings(
    drive: Drive, piece: Piece, seen: _Seen, first: Tensor, low: Tensor, high: Tensor, slack: Tensor
) -> _Found:
    at_first = seen.beyond.gather(0, first[seen.row][None])[0]
    pair = torch.nonzero(at_first)[:, 0]
    neuron, normal = seen.row[pair], seen.normal[pair]
    rows, beneath = piece.rows[neuron], slack[neuron]
    weights = piece.curve.of(neuron, slice(None, -2))

    def gap(share: Tensor) -> Tensor:
        return (drive.primal(rows, weights.at(share)) * normal).sum(-1) - beneath

    at = _root(gap, low[neuron], high[neuron])
    return [(neuron, at, torch.full_like(neuron, meeting.CROSS), seen.surface[pair])]


def _exits(
    drive: Drive, piece: Piece, outside: Tensor, slot: Tensor, hit: Tensor, first: Tensor,
    low: Tensor, high: Tensor,
) -> _Found:  # fmt: skip
    hit = hit[slot[hit] >= 0]
    at_first = outside[first[hit], slot[hit]]
    which, column = torch.nonzero(at_first, as_tuple=True)
    if len(which) == 0:
        return []
    neuron = hit[which]
    part = slot[neuron]
    sliding = Slides(
        part, piece.sliding.surface[part], piece.sliding.valid[part], piece.sliding.normal[part]
    )
    row = torch.arange(len(neuron), device=neuron.device)
    duals = piece.curve.of(neuron, slice(None, -1))

    def gap(share: Tensor) -> Tensor:
        s = piece.s[neuron] + share * piece.delta[neuron]
        theta = drive.primal(piece.rows[neuron], duals.at(share))
        xi = _coefficients(drive, piece, neuron, sliding, s, theta)
        return (xi[..., row, column] - 0.5).abs() - (0.5 + 1e-12)

    at = _root(gap, low[neuron], high[neuron])
    kind = torch.full_like(neuron, meeting.EXIT)
    return [(neuron, at, kind, sliding.surface[row, column])]


def _turns(
    drive: Drive, piece: Piece, ended: Tensor, back: Tensor, slot: Tensor, hit: Tensor,
    first: Tensor, low: Tensor, high: Tensor, start: Tensor,
) -> _Found:  # fmt: skip
    found: _Found = []
    hit = hit[slot[hit] >= 0]
    for mask, kind, columns in (
        (ended, meeting.CAPTURE, slice(None, -2)),
        (back, meeting.BRANCH, slice(-2, -1)),
    ):
        neuron = hit[mask[first[hit], slot[hit]]]
        if len(neuron) == 0:
            continue

        rows, duals = piece.rows[neuron], piece.curve.of(neuron, columns)

        def gap(
            share: Tensor, rows: Tensor = rows, duals: Curve = duals,
            before: Tensor = -start[neuron, columns],
        ) -> Tensor:  # fmt: skip
            return (drive.primal(rows, duals.at(share)) * before).sum(-1)

        at = _root(gap, low[neuron], high[neuron])
        code = torch.full_like(neuron, kind)
        found.append((neuron, at, code, torch.full_like(neuron, -1)))
    return found


def _root(gap: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Where each gap turns positive in [low, high]: Ridders' method (1979).

    The gap is asked at several shares (…, C) at once. The result lies on the positive side, by at
    most 1e-11, so that what was seen has happened. What is found stays, whatever others need.
    """
    f_low, f_high = gap(torch.stack([low, high]))
    high = torch.where(f_low >= 0, low, high)
    for _ in range(50):
        wide = high - low > ROOT
        if not bool(wide.any()):
            break
        middle = 0.5 * (low + high)
        value = gap(middle)
        bent = value * (value.square() - f_low * f_high).clamp(min=1e-300).rsqrt()
        guess = middle - 0.5 * (high - low) * bent
        # The root is within a hair of the guess as a rule, and then enclosed.
        pair = torch.stack([guess - 0.45 * ROOT, guess + 0.45 * ROOT])
        for at, f in ((middle, value), *zip(pair, gap(pair), strict=True)):
            inside = (at > low) & (at < high) & wide
            above, below = inside & (f > 0), inside & ~(f > 0)
            f_high, high = torch.where(above, f, f_high), torch.where(above, at, high)
            f_low, low = torch.where(below, f, f_low), torch.where(below, at, low)
    return high
