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
    count = len(start.dual)
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
            path.duals[outputs == 1] = path.end.dual  # back on their surfaces, as the next step is
            return path
        piece, error = advance(
            drive, rows, s[rows], torch.minimum(delta[rows], 1 - s[rows]), state[rows],
            force[rows], on[rows], slides[rows], tolerance,
        )  # fmt: skip
        factor = (0.9 * error.clamp(min=1e-12) ** -0.2).clamp(0.2, 5.0)
        fine = error <= 1
        share, kind, surface, looked = first_event(drive, piece)
        path.work += looked * len(rows) / count
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


def _write(path: Path, outputs: Tensor, piece: Piece, share: Tensor, fine: Tensor) -> None:
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
        one, dropped = torch.nonzero(met.slides & ~slides[here], as_tuple=True)
        if len(one):  # what it slid along before does not hold it beside the new one
            side, code = on[here[one], dropped].to(xi), torch.full_like(one, meeting.EXIT)
            path.events.append(Happening(s[here[one]], here[one], dropped, code, side))
    leaving = kind == meeting.EXIT
    if bool(leaving.any()):
        here, which = rows[leaving], surface[leaving]
        row = torch.arange(len(here), device=here.device)
        theta = drive.primal(state[here, :-1])
        padded = Slides.of(slides[here], drive.surfaces)
        force = polynomial(drive.force(on[here]), s[here])
        value = padded.multipliers(drive.metric(theta)[:, :-1], force[..., None])[..., 0]
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
        strength, direction = meeting.pull(drive, float(s[row]), sign)
        if strength > meeting.LOOSE:  # it only passes through zero
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
        high, low = float(grid[pulled[0]]), float(grid[max(0, pulled[0] - 1)])
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
