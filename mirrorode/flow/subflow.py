"""The neurons through one step, event by event, for given sample weights.

Each neuron has its own position in the step and its own step size: Dormand–Prince 5(4) with its
dense output (`pieces`), on which every kink is located (`locate`). An event costs one neuron a
piece more, never the others anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mirrorode.flow import meeting
from mirrorode.flow.locate import GRID, first_event
from mirrorode.flow.meeting import Meeting
from mirrorode.flow.neurons import Drive, Neurons, Slides, polynomial, snap
from mirrorode.flow.pieces import Piece, advance

MOST_ROUNDS = 600


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


@dataclass
class _Underway:
    """The N neurons somewhere in the step, each at its own position; changed in place.

    Attributes:
        s: positions (N,); delta: lengths of the next pieces (N,).
        state: duals, and what each has added to log(1/𝓛), (N, d + 2).
        on, slides: (N, G); captured: (N,).
        force: polynomials of the force on their patterns.
    """

    drive: Drive
    path: Path
    outputs: Tensor
    s: Tensor
    delta: Tensor
    state: Tensor
    on: Tensor
    slides: Tensor
    captured: Tensor
    force: Tensor

    def note(self, s: Tensor, neuron: Tensor, surface: Tensor, kind: Tensor, xi: Tensor) -> None:
        """Write events down."""
        self.path.events.append(Happening(s, neuron, surface, kind, xi))

    def note_one(self, row: int, kind: int) -> None:
        """Write down an event of one neuron with all its surfaces."""
        one = torch.tensor([row], device=self.s.device)
        code = torch.full_like(one, kind)
        self.note(self.s[one], one, -torch.ones_like(one), code, self.s.new_zeros(1))


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
    way = _set_out(drive, start, outputs, even)
    for _ in range(MOST_ROUNDS):
        rows = torch.nonzero(way.s < 1)[:, 0]
        if len(rows) == 0:
            return _arrived(way)
        _advance(way, rows, tolerance, even)
        if not bool(torch.isfinite(way.state[rows]).all()):
            break
    raise Lost


def _set_out(drive: Drive, start: Neurons, outputs: Tensor, even: float) -> _Underway:
    count = len(start.dual)
    state = torch.cat([start.dual, start.dual.new_zeros(count, 1)], 1)
    duals = start.dual.expand(len(outputs), -1, -1).clone()
    slides = start.slides.expand(len(outputs), -1, -1).clone()
    path = Path(duals, slides, start, state[:, -1], work=1.5)
    s = torch.zeros_like(state[:, 0])
    way = _Underway(
        drive, path, outputs, s, torch.full_like(s, even or 1.0), state,
        start.on.clone(), start.slides.clone(), start.captured.clone(), drive.base,
    )  # fmt: skip
    _let_go(way)
    unmoved = ~(way.on.any(1) | way.slides.any(1)) & bool((drive.base == 0).all())
    way.s[unmoved | (way.captured & (s == 0))] = 1.0
    way.force = drive.force(way.on)
    return way


def _arrived(way: _Underway) -> Path:
    path = way.path
    path.end = Neurons(way.state[:, :-1], way.on, way.slides, way.captured)
    path.gained = way.state[:, -1]
    path.duals[way.outputs == 1] = path.end.dual  # back on their surfaces, as the next step is
    return path


def _advance(way: _Underway, rows: Tensor, tolerance: float, even: float) -> None:
    """One piece of the neurons ``rows``, up to its first event."""
    drive, path, s, delta, state = way.drive, way.path, way.s, way.delta, way.state
    count = len(s)
    piece, error = advance(
        drive, rows, s[rows], torch.minimum(delta[rows], 1 - s[rows]), state[rows],
        way.force[rows], way.on[rows], way.slides[rows], tolerance,
    )  # fmt: skip
    factor = (0.9 * error.clamp(min=1e-12) ** -0.2).clamp(0.2, 5.0)
    fine = error <= 1
    share, kind, surface, looked = first_event(drive, piece)
    path.work += looked * len(rows) / count
    share = torch.where(fine, share, torch.zeros_like(share))
    kind = torch.where(fine, kind, torch.full_like(kind, -1))
    _write(path, way.outputs, piece, share, fine)
    state[rows] = torch.where(fine[:, None], piece.curve.at(share), state[rows])
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
        _apply(way, here, kind[changed], surface[changed])
        way.force[here] = drive.force(way.on[here])
        path.work += 1.5 * len(here) / count
    sliding = rows[way.slides[rows].any(1)]
    if len(sliding):
        padded = Slides.of(way.slides[sliding], drive.surfaces)
        state[sliding, :-1] = snap(drive, padded, state[sliding, :-1])


def _write(path: Path, outputs: Tensor, piece: Piece, share: Tensor, fine: Tensor) -> None:
    """The duals at those outputs that the kept part of the piece covers."""
    local = (outputs[:, None] - piece.s) / piece.delta
    covered = (local > 0) & (local <= share + 1e-14) & fine
    covered |= (local <= 1 + 1e-9) & (local > share) & (share == 1) & fine
    value = piece.curve.at(local.clamp(0, 1))[..., :-1]
    kept = path.duals[:, piece.rows]
    path.duals[:, piece.rows] = torch.where(covered[..., None], value, kept)
    # Outputs further on find the neuron where it stands if nothing moves it any more.
    ahead = (local > share) & ~covered & fine
    now = piece.curve.at(share)[None, :, :-1]
    path.duals[:, piece.rows] = torch.where(ahead[..., None], now, path.duals[:, piece.rows])
    modes = path.slides[:, piece.rows]
    path.slides[:, piece.rows] = torch.where(
        (covered | ahead)[..., None], piece.slides[None], modes
    )


def _apply(way: _Underway, rows: Tensor, kind: Tensor, surface: Tensor) -> None:
    """What the events make of the neurons ``rows``."""
    crossing, leaving = kind == meeting.CROSS, kind == meeting.EXIT
    if bool(crossing.any()):
        _cross(way, rows[crossing], surface[crossing])
    if bool(leaving.any()):
        _exit(way, rows[leaving], surface[leaving])
    for row in rows[kind == meeting.BRANCH].tolist():
        # The kink turns from attracting to repelling: of the continuations take the one off it.
        way.slides[row] = False
        way.note_one(row, meeting.BRANCH)
    for row in rows[kind == meeting.CAPTURE].tolist():
        _capture(way, row)


def _cross(way: _Underway, rows: Tensor, surface: Tensor) -> None:
    """They meet a surface: each goes on beyond it or begins to slide."""
    s = way.s[rows]
    met = Meeting(s, way.state[rows, :-1], way.on[rows], way.slides[rows], surface)
    way.on[rows], way.slides[rows], xi = meeting.decide(way.drive, met)
    code = torch.where(way.slides[rows, surface], meeting.SLIDE, meeting.CROSS)
    way.note(s, rows, surface, code, xi)
    one, dropped = torch.nonzero(met.slides & ~way.slides[rows], as_tuple=True)
    if len(one):  # what it slid along before does not hold it beside the new one
        side, code = way.on[rows[one], dropped].to(xi), torch.full_like(one, meeting.EXIT)
        way.note(s[one], rows[one], dropped, code, side)


def _exit(way: _Underway, rows: Tensor, surface: Tensor) -> None:
    """They leave a surface to the side that their coefficient says."""
    drive, s, row = way.drive, way.s[rows], torch.arange(len(rows), device=rows.device)
    metric = drive.metric(drive.primal(way.state[rows, :-1]))[:, :-1]
    padded = Slides.of(way.slides[rows], drive.surfaces)
    force = polynomial(drive.force(way.on[rows]), s)
    value = padded.multipliers(metric, force[..., None])[..., 0]
    column = (padded.surface == surface[:, None]).to(torch.uint8).argmax(1)
    above = -value[row, column] / meeting.strengths(drive, s, surface) > 0.5
    way.slides[rows, surface] = False
    way.on[rows, surface] = above
    way.note(s, rows, surface, torch.full_like(rows, meeting.EXIT), above.to(s))


def _capture(way: _Underway, row: int) -> None:
    """It reaches w = 0, and stays there or only passes through."""
    way.state[row, :-2] = 0.0
    way.on[row], way.slides[row] = False, False
    way.note_one(row, meeting.CAPTURE)
    at, sign = float(way.s[row]), float(torch.sign(way.state[row, -2]))
    strength, direction = meeting.pull(way.drive, at, sign)
    if strength > meeting.LOOSE:
        way.on[row], way.slides[row] = meeting.outward(way.drive, at, sign, direction)
        way.note_one(row, meeting.RELEASE)
    else:
        way.captured[row] = True
        way.path.duals[way.outputs > at, row, :-1] = 0.0
        way.s[row] = 1.0


def _let_go(way: _Underway) -> None:
    """Free the captured neurons that are pulled away from zero in this step, where that begins."""
    grid = (0.0, *GRID)
    for sign in (1.0, -1.0):
        held = torch.nonzero(way.captured & (torch.sign(way.state[:, -2]) == sign))[:, 0]
        if len(held) == 0:
            continue
        way.path.work += 0.1

        def pulled(at: float, sign: float = sign) -> bool:
            return meeting.pull(way.drive, at, sign)[0] > meeting.LOOSE

        first = next((k for k, at in enumerate(grid) if pulled(float(at))), None)
        if first is None:
            continue
        high, low = float(grid[first]), float(grid[max(0, first - 1)])
        while high - low > 1e-12:
            middle = 0.5 * (low + high)
            high, low = (middle, low) if pulled(middle) else (high, middle)
        direction = meeting.pull(way.drive, high, sign)[1]
        leaves, edge = meeting.outward(way.drive, high, sign, direction)
        way.on[held], way.slides[held], way.captured[held] = leaves, edge, False
        way.s[held] = max(high, 1e-15)
        for row in held.tolist():
            way.note_one(row, meeting.RELEASE)
