"""The neurons through one step, event by event, for given sample weights.

Each neuron has its own position in the step and its own step size: Dormand–Prince 5(4) with its
dense output (Dormand and Prince 1980; Shampine 1986), on which every kink is located. An event costs
one neuron a piece more, never the others anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from scipy.integrate import RK45
from torch import Tensor

from mirrorode.flow import meeting
from mirrorode.flow.meeting import Meeting
from mirrorode.flow.neurons import Drive, Neurons, Slides, polynomial, slope, snap

GRID = (0.25, 0.5, 0.75, 1.0)  # where a piece is looked at for kinks, two crossings in it included
SIGN = 1e-13  # of ‖w‖: what counts as on the surface, in detection and location alike
MOST_ROUNDS = 600
ROOT = 1e-11  # of a piece


class Lost(Exception):
    """The neurons cannot be followed through this step: it is to be shortened."""


@dataclass(frozen=True)
class Happening:
    """Events in a step: position, neuron, surface (−1 for all), kind and ξ, each (E,)."""

    s: Tensor
    neuron: Tensor
    surface: Tensor
    kind: Tensor
    coefficient: Tensor


@dataclass
class Path:
    """What the neurons did.

    Attributes:
        duals: at the outputs, (P, N, d + 1); slides: there, (P, N, G).
        end: their state at the end; gained: what they added to log(1/𝓛), (N,).
        events: in no order; work: passes over all pairs of neurons and surfaces.
        shortest: length of the shortest piece that the tolerance asked for.
    """

    duals: Tensor
    slides: Tensor
    end: Neurons
    gained: Tensor
    events: list[Happening] = field(default_factory=list)
    work: float = 0.0
    shortest: float = 1.0


@dataclass(frozen=True)
class _Piece:
    """One local step of A neurons: start, length, state and its dense output."""

    rows: Tensor
    s: Tensor
    delta: Tensor
    state: Tensor
    dense: Tensor  # (A, d + 2, 4)
    force: Tensor
    on: Tensor
    slides: Tensor
    sliding: Slides

    def at(self, share: Tensor) -> Tensor:
        """The state at shares (…, A) of the piece: (…, A, d + 2)."""
        value = torch.zeros_like(self.state).expand(*share.shape, -1)
        for m in range(3, -1, -1):
            value = (value + self.dense[..., m]) * share[..., None]
        return self.state + self.delta[:, None] * value

    def of(self, which: Tensor, share: Tensor) -> Tensor:
        """The state of neurons ``which`` (C,) at shares (C,): (C, d + 2)."""
        value = torch.zeros_like(self.state[which])
        for m in range(3, -1, -1):
            value = (value + self.dense[which, :, m]) * share[:, None]
        return self.state[which] + self.delta[which, None] * value


def follow(
    drive: Drive, start: Neurons, outputs: Tensor, tolerance: float, even: float = 0.0
) -> Path:
    """Take the neurons from s = 0 to 1; their duals at the increasing positions ``outputs`` (P,).

    With ``even`` > 0 all take pieces of this length, shorter ones only where the tolerance asks for
    it: what comes out is then a smooth function of the weights, free of the noise that a choice of
    pieces makes.

    Raises:
        Lost: if a neuron meets kinks without end.
    """
    count, size = start.dual.shape
    state = torch.cat([start.dual, start.dual.new_zeros(count, 1)], 1)
    on, slides, captured = start.on.clone(), start.slides.clone(), start.captured.clone()
    path = Path(
        start.dual.expand(len(outputs), -1, -1).clone(),
        slides.expand(len(outputs), -1, -1).clone(),
        start,
        state[:, -1],
    )
    s = torch.zeros_like(state[:, 0])
    delta = torch.full_like(s, even or 1.0)
    _let_go(drive, path, state, on, slides, captured, s)
    still = ~(on.any(1) | slides.any(1)) & bool((drive.base == 0).all())
    s[still | (captured & (s == 0))] = 1.0
    force = drive.force(on)
    path.work += 1.5
    for _ in range(MOST_ROUNDS):
        rows = torch.nonzero(s < 1)[:, 0]
        if len(rows) == 0:
            path.end = Neurons(state[:, :-1], on, slides, captured)
            path.gained = state[:, -1]
            return path
        piece, error = _advance(
            drive, rows, s[rows], torch.minimum(delta[rows], 1 - s[rows]), state[rows],
            force[rows], on[rows], slides[rows], tolerance,
        )  # fmt: skip
        factor = (0.9 * error.clamp(min=1e-12) ** -0.2).clamp(0.2, 5.0)
        fine = error <= 1
        path.work += 4 * len(rows) / count
        share, kind, surface = _first_event(drive, piece)
        share = torch.where(fine, share, torch.zeros_like(share))
        kind = torch.where(fine, kind, torch.full_like(kind, -1))
        _write(path, outputs, piece, share, fine)
        reached = piece.at(share)
        state[rows] = torch.where(fine[:, None], reached, state[rows])
        end = piece.s + share * piece.delta
        last = (share == 1) & (piece.s + piece.delta >= 1)
        s[rows] = torch.where(fine, torch.where(last, torch.ones_like(end), end), s[rows])
        path.shortest = min(path.shortest, float((piece.delta * factor.clamp(max=1.0)).min()))
        if even:
            delta[rows] = torch.where(fine, torch.full_like(factor, even), piece.delta * factor)
        else:
            delta[rows] = torch.where(fine, piece.delta.clamp(min=1e-3), piece.delta) * factor
        changed = torch.nonzero(kind >= 0)[:, 0]
        if len(changed):
            here = rows[changed]
            _apply(
                drive, path, outputs, here, kind[changed], surface[changed], s, state, on, slides,
                captured,
            )  # fmt: skip
            force[here] = drive.force(on[here])
            path.work += 1.5 * len(here) / count
        sliding = rows[slides[rows].any(1)]
        if len(sliding):
            padded = Slides.of(slides[sliding], drive.surfaces)
            state[sliding, :-1] = snap(drive, padded, state[sliding, :-1])
        if not bool(torch.isfinite(state[rows]).all()):
            break
    raise Lost


def _advance(
    drive: Drive, rows: Tensor, s: Tensor, delta: Tensor, state: Tensor, force: Tensor,
    on: Tensor, slides: Tensor, tolerance: float,
) -> tuple[_Piece, Tensor]:  # fmt: skip
    """One Dormand–Prince step, and its error relative to the tolerance (A,)."""
    sliding = Slides.of(slides, drive.surfaces)
    slopes = state.new_empty(7, *state.shape)
    slopes[0] = slope(drive, force, sliding, s, state)
    step = delta[:, None]
    for stage in range(1, 6):
        weight = state.new_tensor(RK45.A[stage, :stage])
        inner = state + step * torch.tensordot(weight, slopes[:stage], 1)
        slopes[stage] = slope(drive, force, sliding, s + float(RK45.C[stage]) * delta, inner)
    end = state + step * torch.tensordot(state.new_tensor(RK45.B), slopes[:6], 1)
    slopes[6] = slope(drive, force, sliding, s + delta, end)
    error = (delta[:, None] * torch.tensordot(state.new_tensor(RK45.E), slopes, 1))[:, :-1]
    size = torch.maximum(state[:, :-1].abs(), end[:, :-1].abs()).amax(1)
    error = error.abs().amax(1) / (tolerance * size).clamp(min=1e-300)
    error = torch.nan_to_num(error, nan=1e9, posinf=1e9)
    dense = torch.einsum("kam,kp->amp", slopes, state.new_tensor(RK45.P))
    return _Piece(rows, s, delta, state, dense, force, on, slides, sliding), error


def _first_event(drive: Drive, piece: _Piece) -> tuple[Tensor, Tensor, Tensor]:
    """For each neuron of the piece the share of its first event, its kind (−1: none), its surface."""
    count = len(piece.rows)
    share = torch.ones_like(piece.s)
    kind = torch.full_like(piece.rows, -1)
    surface = torch.full_like(piece.rows, -1)
    grid = share.new_tensor(GRID)[:, None].expand(-1, count)
    theta = drive.primal(piece.at(grid)[..., :-1])
    start = drive.primal(piece.state[:, :-1])
    slack = SIGN * start[:, :-1].norm(dim=1)
    before = piece.on
    sign = torch.where(before, -1.0, 1.0).to(share)
    beyond = (theta[..., :-1] @ drive.surfaces.normal.T) * sign > slack[:, None]
    beyond &= ~piece.slides
    outside = _outside(drive, piece, grid, theta)
    ended, back, on_line = _ended(piece, theta, start)
    rows = piece.sliding.rows
    # A neuron that slides on a line through w = 0 meets no other surface before it is there.
    beyond[:, rows[on_line]] = False
    bad = beyond.any(-1)
    if len(rows):
        bad[:, rows] |= outside.any(-1) | ended | back
    if not bool(bad.any()):
        return share, kind, surface
    hit = torch.nonzero(bad.any(0))[:, 0]
    first = bad.to(torch.uint8).argmax(0)
    edges = share.new_tensor((0.0, *GRID))
    low, high = edges[first], edges[first + 1]
    found = _crossings(drive, piece, beyond, hit, first, low, high, sign, slack)
    if len(rows):
        slot = torch.full_like(piece.rows, -1)
        slot[rows] = torch.arange(len(rows), device=rows.device)
        found += _exits(drive, piece, outside, slot, hit, first, low, high)
        found += _turns(drive, piece, ended, back, slot, hit, first, low, high, start)
    neuron, at, what, where = (torch.cat(part) for part in zip(*found, strict=True))
    order = torch.argsort(at, stable=True)
    order = order[torch.argsort(neuron[order], stable=True)]
    lead = torch.ones_like(order, dtype=torch.bool)
    lead[1:] = neuron[order].diff() != 0
    order = order[lead]
    share[neuron[order]] = at[order]
    kind[neuron[order]] = what[order]
    surface[neuron[order]] = where[order]
    return share, kind, surface


def _outside(drive: Drive, piece: _Piece, grid: Tensor, theta: Tensor) -> Tensor:
    """Which coefficients of sliding surfaces are outside [0, 1], (4, B, M)."""
    rows = piece.sliding.rows
    if len(rows) == 0:
        return torch.zeros(len(grid), 0, 0, dtype=torch.bool, device=grid.device)
    xi = _coefficients(
        drive, piece, rows, piece.sliding, (piece.s + grid * piece.delta)[:, rows], theta[:, rows]
    )
    return ((xi < -1e-12) | (xi > 1 + 1e-12)) & piece.sliding.valid


def _coefficients(
    drive: Drive, piece: _Piece, rows: Tensor, sliding: Slides, s: Tensor, theta: Tensor
) -> Tensor:
    """ξ (…, B, M) of the sliding surfaces of neurons ``rows`` at positions s (…, B)."""
    metric = drive.metric(theta)[..., :-1]
    force = polynomial(piece.force[rows], s)
    c = drive.strength[:, sliding.surface]
    at = s[..., None]
    beta = c[0] + at * (c[1] + at * c[2])
    found = sliding.multipliers(metric, force)
    return torch.where(sliding.valid, -found / torch.where(sliding.valid, beta, 1.0), 0.5)


def _ended(piece: _Piece, theta: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which sliding neurons have passed w = 0, whose output weight has turned; which are on a line."""
    rows = piece.sliding.rows
    w, a = theta[:, rows, :-1], theta[:, rows, -1]
    dim = w.shape[-1]
    on_line = (piece.sliding.valid.sum(1) >= dim - 1) & (dim > 1)
    ended = ((w * start[rows, :-1]).sum(-1) < 0) & on_line
    back = (a * start[rows, -1]) < 0
    return ended, back, on_line


_Found = list[tuple[Tensor, Tensor, Tensor, Tensor]]


def _crossings(
    drive: Drive, piece: _Piece, beyond: Tensor, hit: Tensor, first: Tensor, low: Tensor,
    high: Tensor, sign: Tensor, slack: Tensor,
) -> _Found:  # fmt: skip
    at_first = beyond[first[hit], hit]
    slot, surface = torch.nonzero(at_first, as_tuple=True)
    neuron = hit[slot]
    normal = drive.surfaces.normal[surface]
    side, beneath = sign[neuron, surface], slack[neuron]

    def gap(share: Tensor) -> Tensor:
        weights = drive.primal(piece.of(neuron, share)[:, :-2])
        return side * (weights * normal).sum(1) - beneath

    at = _root(gap, low[neuron], high[neuron])
    return [(neuron, at, torch.full_like(neuron, meeting.CROSS), surface)]


def _exits(
    drive: Drive, piece: _Piece, outside: Tensor, slot: Tensor, hit: Tensor, first: Tensor,
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

    def gap(share: Tensor) -> Tensor:
        theta = drive.primal(piece.of(neuron, share)[:, :-1])
        s = piece.s[neuron] + share * piece.delta[neuron]
        xi = _coefficients(drive, piece, neuron, sliding, s, theta)[row, column]
        return (xi - 0.5).abs() - (0.5 + 1e-12)

    at = _root(gap, low[neuron], high[neuron])
    kind = torch.full_like(neuron, meeting.EXIT)
    return [(neuron, at, kind, sliding.surface[row, column])]


def _turns(
    drive: Drive, piece: _Piece, ended: Tensor, back: Tensor, slot: Tensor, hit: Tensor,
    first: Tensor, low: Tensor, high: Tensor, start: Tensor,
) -> _Found:  # fmt: skip
    found: _Found = []
    hit = hit[slot[hit] >= 0]
    for mask, kind, columns in (
        (ended, meeting.CAPTURE, slice(None, -1)),
        (back, meeting.BRANCH, slice(-1, None)),
    ):
        neuron = hit[mask[first[hit], slot[hit]]]
        if len(neuron) == 0:
            continue

        def gap(share: Tensor, neuron: Tensor = neuron, columns: slice = columns) -> Tensor:
            theta = drive.primal(piece.of(neuron, share)[:, :-1])
            return -(theta[:, columns] * start[neuron, columns]).sum(1)

        at = _root(gap, low[neuron], high[neuron])
        code = torch.full_like(neuron, kind)
        found.append((neuron, at, code, torch.full_like(neuron, -1)))
    return found


def _root(gap: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Where each gap turns positive in [low, high]: Ridders' method (1979).

    The result lies on the positive side, by at most 1e-11, so that what was seen has happened.
    """
    f_low, f_high = gap(low), gap(high)
    high = torch.where(f_low >= 0, low, high)
    for _ in range(50):
        if not bool((high - low > ROOT).any()):
            break
        middle = 0.5 * (low + high)
        value = gap(middle)
        bent = value * (value.square() - f_low * f_high).clamp(min=1e-300).rsqrt()
        guess = middle - 0.5 * (high - low) * bent
        # The guess is on one side by a hair; one more hair, and the root is enclosed.
        f_guess = gap(guess)
        hair = guess + torch.where(f_guess > 0, -0.9 * ROOT, 0.9 * ROOT)
        for at, f in ((middle, value), (guess, f_guess), (hair, gap(hair))):
            inside = (at > low) & (at < high)
            above, below = inside & (f > 0), inside & ~(f > 0)
            f_high, high = torch.where(above, f, f_high), torch.where(above, at, high)
            f_low, low = torch.where(below, f, f_low), torch.where(below, at, low)
    return high


def _write(path: Path, outputs: Tensor, piece: _Piece, share: Tensor, fine: Tensor) -> None:
    """The duals at those outputs that the kept part of the piece covers."""
    local = (outputs[:, None] - piece.s) / piece.delta
    covered = (local > 0) & (local <= share + 1e-14) & fine
    covered |= (local <= 1 + 1e-9) & (local > share) & (share == 1) & fine
    value = piece.at(local.clamp(0, 1))[..., :-1]
    kept = path.duals[:, piece.rows]
    path.duals[:, piece.rows] = torch.where(covered[..., None], value, kept)
    # Outputs further on find the neuron where it stands if nothing moves it any more.
    ahead = (local > share) & ~covered & fine
    now = piece.at(share)[None, :, :-1]
    path.duals[:, piece.rows] = torch.where(ahead[..., None], now, path.duals[:, piece.rows])
    modes = path.slides[:, piece.rows]
    path.slides[:, piece.rows] = torch.where(
        (covered | ahead)[..., None], piece.slides[None], modes
    )


def _apply(
    drive: Drive, path: Path, outputs: Tensor, rows: Tensor, kind: Tensor, surface: Tensor,
    s: Tensor, state: Tensor, on: Tensor, slides: Tensor, captured: Tensor,
) -> None:  # fmt: skip
    """What the events make of the neurons ``rows``, in place."""
    crossing = kind == meeting.CROSS
    if bool(crossing.any()):
        here, which = rows[crossing], surface[crossing]
        met = Meeting(s[here], state[here, :-1], on[here], slides[here], which)
        on[here], slides[here], xi = meeting.decide(drive, met)
        stays = slides[here, which]
        code = torch.where(stays, meeting.SLIDE, meeting.CROSS)
        path.events.append(Happening(s[here], here, which, code, xi))
    leaving = kind == meeting.EXIT
    if bool(leaving.any()):
        here, which = rows[leaving], surface[leaving]
        row = torch.arange(len(here), device=here.device)
        theta = drive.primal(state[here, :-1])
        padded = Slides.of(slides[here], drive.surfaces)
        force = polynomial(drive.force(on[here]), s[here])
        value = padded.multipliers(drive.metric(theta)[:, :-1], force)
        column = (padded.surface == which[:, None]).to(torch.uint8).argmax(1)
        xi = -value[row, column] / meeting.strengths(drive, s[here], which)
        slides[here, which] = False
        on[here, which] = xi > 0.5
        code = torch.full_like(here, meeting.EXIT)
        path.events.append(Happening(s[here], here, which, code, (xi > 0.5).to(xi)))
    for row in rows[kind == meeting.BRANCH].tolist():
        # The kink turns from attracting to repelling: of the continuations take the one off it.
        slides[row] = False
        _note(path, s, row, meeting.BRANCH)
    for row in rows[kind == meeting.CAPTURE].tolist():
        state[row, :-2] = 0.0
        on[row], slides[row] = False, False
        _note(path, s, row, meeting.CAPTURE)
        sign = float(torch.sign(state[row, -2]))
        value, direction = meeting.pull(drive, float(s[row]), sign)
        if value > meeting.LOOSE:  # it only passes through zero
            on[row], slides[row] = meeting.outward(drive, float(s[row]), sign, direction)
            _note(path, s, row, meeting.RELEASE)
        else:
            captured[row] = True
            path.duals[outputs > s[row], row, :-1] = 0.0
            s[row] = 1.0


def _note(path: Path, s: Tensor, row: int, kind: int) -> None:
    one = torch.tensor([row], device=s.device)
    code = torch.full_like(one, kind)
    path.events.append(Happening(s[one].clone(), one, -torch.ones_like(one), code, s.new_zeros(1)))


def _let_go(
    drive: Drive, path: Path, state: Tensor, on: Tensor, slides: Tensor, captured: Tensor, s: Tensor
) -> None:
    """Free the captured neurons that are pulled away from zero in this step, where that begins."""
    for sign in (1.0, -1.0):
        held = torch.nonzero(captured & (torch.sign(state[:, -2]) == sign))[:, 0]
        if len(held) == 0:
            continue
        grid = (0.0, *GRID)
        pulls = [meeting.pull(drive, at, sign)[0] for at in grid]
        path.work += 0.1
        pulled = [k for k, value in enumerate(pulls) if value > meeting.LOOSE]
        if not pulled:
            continue
        high = grid[pulled[0]]
        low = grid[max(0, pulled[0] - 1)]
        while high - low > 1e-12:
            middle = 0.5 * (low + high)
            if meeting.pull(drive, middle, sign)[0] > meeting.LOOSE:
                high = middle
            else:
                low = middle
        direction = meeting.pull(drive, high, sign)[1]
        leaves, edge = meeting.outward(drive, high, sign, direction)
        on[held], slides[held], captured[held] = leaves, edge, False
        s[held] = max(high, 1e-15)
        for row in held.tolist():
            _note(path, s, row, meeting.RELEASE)
