"""The neurons of two-layer networks through one step, event by event, for given sample weights.

Each neuron has its own position in the step and its own step size: Dormand–Prince 5(4) with its
dense output (`pieces`), on which every kink is located (`locate`). An event costs one neuron a
piece more, never the others anything. Networks are followed together, each as if it were alone.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from mirrorode.flow import meeting
from mirrorode.flow.locate import GRID, first_event
from mirrorode.flow.meeting import Meeting
from mirrorode.flow.neurons import Drive, Neurons, polynomial, snap
from mirrorode.flow.pieces import Piece, advance
from mirrorode.flow.underway import OUTPUTS, Happening, Path, Request, Underway

K = TypeVar("K", bound=Hashable)

MOST_ROUNDS = 600
SHORTEST = 1e-12  # piece with an error that no number can have
TOGETHER = 0.5  # of the networks are waited for: fewer come and go often, more wait for the last


class Convoy(Generic[K]):
    """Networks on their way through their steps, which join it and leave it one by one.

    All have one number of neurons and of dimensions. What one does depends on no other.
    """

    def __init__(self) -> None:
        self._way: Underway | None = None
        self._names: list[K] = []

    def __len__(self) -> int:
        return len(self._names)

    def join(self, requests: Mapping[K, Request]) -> None:
        """Set out with what is asked for, under its name."""
        if requests:
            new = _set_out(list(requests.values()))
            self._way = new if self._way is None else Underway.joined([self._way, new])
            self._names += requests

    def arrive(self) -> dict[K, Path | None]:
        """Go on until a share of the networks are through, and let these go.

        None for one that meets kinks without end, or leaves the finite numbers: its step is to be
        shortened.
        """
        way = self._way
        if way is None:
            return {}
        share = math.ceil(TOGETHER * len(self))
        while True:
            through = (way.s >= 1).reshape(len(self), -1).all(1)
            if int(through.sum()) >= share:
                break
            _give_up(way, torch.nonzero(~through & (way.rounds >= MOST_ROUNDS))[:, 0])
            rows = torch.nonzero(way.s < 1)[:, 0]
            if len(rows):
                _advance(way, rows)
            way.rounds += ~through
        return self._leave(way, through)

    def _leave(self, way: Underway, through: Tensor) -> dict[K, Path | None]:
        gone, going = torch.nonzero(through)[:, 0], torch.nonzero(~through)[:, 0]
        names = [self._names[b] for b in gone.tolist()]
        self._names = [self._names[b] for b in going.tolist()]
        self._way = way.part(going) if len(going) else None
        return dict(zip(names, _paths(way.part(gone) if len(going) else way), strict=True))


def _set_out(requests: Sequence[Request]) -> Underway:
    drive = Drive.joined([one.drive for one in requests])
    dual = torch.cat([one.start.dual for one in requests])
    room, outputs = drive.normal.shape[1], len(OUTPUTS)
    on, slides = (
        torch.cat([pad(mask, (0, room - mask.shape[1])) for mask in masks])
        for masks in ([one.start.on for one in requests], [one.start.slides for one in requests])
    )
    captured = torch.cat([one.start.captured for one in requests])
    s, rounds = torch.zeros_like(dual[:, 0]), torch.zeros(len(requests), device=dual.device)
    even, tolerance = (
        s.new_tensor(values).repeat_interleave(drive.count)
        for values in ([one.even for one in requests], [one.tolerance for one in requests])
    )
    way = Underway(
        drive, rounds, s, torch.where(even > 0, even, 1.0), even, tolerance, pad(dual, (0, 1)), on,
        slides.clone(), captured, torch.zeros_like(captured), drive.base,
        dual[:, None].repeat(1, outputs, 1), slides[:, None].repeat(1, outputs, 1), slides.any(1),
        torch.zeros_like(s), torch.ones_like(s),
    )  # fmt: skip
    _let_go(way)
    rows = torch.arange(len(s), device=s.device)
    pushed = (drive.base[..., :-1] != 0).flatten(1).any(1)[drive.owner(rows)]
    unmoved = ~(way.on.any(1) | way.slides.any(1) | pushed)
    way.s[unmoved | (way.captured & (s == 0))] = 1.0
    way.force = drive.force(rows, way.on)
    return way


def _paths(way: Underway) -> list[Path | None]:
    """What each network of ``way``, all through, did."""
    drive, count = way.drive, way.drive.count
    way.duals[:, -1] = way.state[:, :-1]  # back on their surfaces, as the next step is
    lost = way.lost.reshape(-1, count).any(1).tolist()
    looked = way.looked.reshape(-1, count).sum(1).tolist()
    shortest = way.shortest.reshape(-1, count).amin(1).tolist()
    events = _events_of(way)
    paths: list[Path | None] = []
    for b, known in enumerate(drive.known):
        rows = slice(b * count, (b + 1) * count)
        end = Neurons(
            way.state[rows, :-1], way.on[rows, :known], way.slides[rows, :known],
            way.captured[rows],
        )  # fmt: skip
        paths.append(None if lost[b] else Path(
            way.duals[rows].transpose(0, 1), way.modes[rows, :, :known].transpose(0, 1), end,
            way.state[rows, -1], events[b], 1.5 + looked[b] / max(1, count * known), shortest[b],
        ))  # fmt: skip
    return paths


def _events_of(way: Underway) -> list[Happening]:
    """What happened in each network, its neurons counted within it."""
    happened = way.happened()
    owner = way.drive.owner(happened.neuron)
    happened = replace(happened, neuron=happened.neuron % way.drive.count)
    order = torch.argsort(owner, stable=True)
    sizes = torch.bincount(owner, minlength=len(way.drive.known)).tolist()
    return [happened.of(part) for part in order.split(sizes)]


def _give_up(way: Underway, networks: Tensor) -> None:
    """Stop all neurons of these networks."""
    lost = torch.isin(way.drive.owner(torch.arange(len(way.s), device=way.s.device)), networks)
    way.lost |= lost
    way.s[lost] = 1.0


def _advance(way: Underway, rows: Tensor) -> None:
    """One piece of the neurons ``rows``, up to its first event."""
    drive, s, delta, state, even = way.drive, way.s, way.delta, way.state, way.even[rows]
    piece, error = advance(
        drive, rows, s[rows], torch.minimum(delta[rows], 1 - s[rows]), state[rows],
        way.force[rows], way.on[rows], way.slides[rows], way.tolerance[rows],
    )  # fmt: skip
    # Not as a power, whose last bit depends on how many there are.
    factor = (0.9 * torch.exp(-0.2 * torch.log(error.clamp(min=1e-12)))).clamp(0.2, 5.0)
    fine = error <= 1
    share, kind, surface, looked = first_event(drive, piece)
    way.looked[rows] += looked
    share = torch.where(fine, share, torch.zeros_like(share))
    kind = torch.where(fine, kind, torch.full_like(kind, -1))
    _write(way, piece, share, fine)
    reached = torch.where(fine[:, None], piece.curve.at(share), state[rows])
    state[rows] = reached
    end = piece.s + share * piece.delta
    last = (share == 1) & (piece.s + piece.delta >= 1)
    s[rows] = torch.where(fine, torch.where(last, torch.ones_like(end), end), s[rows])
    shorter = piece.delta * factor
    way.shortest[rows] = torch.minimum(way.shortest[rows], torch.minimum(piece.delta, shorter))
    free = torch.where(fine, piece.delta.clamp(min=1e-3) * factor, shorter)
    delta[rows] = torch.where(fine & (even > 0), even, free)
    changed = torch.nonzero(kind >= 0)[:, 0]
    if len(changed):
        here = rows[changed]
        _apply(way, here, kind[changed], surface[changed])
        way.force[here] = drive.force(here, way.on[here])
        way.looked[here] += 1.5 * drive.known_of(here)
    sliding = rows[way.slides[rows].any(1)]
    if len(sliding):
        padded = drive.slides(sliding, way.slides[sliding])
        state[sliding, :-1] = snap(drive, sliding, padded, state[sliding, :-1])
    wild = ~torch.isfinite(reached).all(1) | (~fine & (piece.delta < SHORTEST))
    if bool(wild.any()):
        _give_up(way, drive.owner(rows[wild]))


def _write(way: Underway, piece: Piece, share: Tensor, fine: Tensor) -> None:
    """The duals at the outputs that lie ahead: where the piece takes the neuron, or leaves it."""
    rows = piece.rows
    local = (share.new_tensor(OUTPUTS)[:, None] - piece.s) / piece.delta
    ahead = (local > 0) & fine
    value = piece.curve.at(torch.minimum(local.clamp(min=0), share))[..., :-1].transpose(0, 1)
    ahead = ahead.T[..., None]
    way.duals[rows] = torch.where(ahead, value, way.duals[rows])
    sliding = piece.slides.any(1)
    some = torch.nonzero((sliding | way.slid[rows]) & fine)[:, 0]
    if len(some):
        here = rows[some]
        way.modes[here] = torch.where(ahead[some], piece.slides[some, None], way.modes[here])
        way.slid[here] = sliding[some]


def _apply(way: Underway, rows: Tensor, kind: Tensor, surface: Tensor) -> None:
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


def _cross(way: Underway, rows: Tensor, surface: Tensor) -> None:
    """They meet a surface: each goes on beyond it or begins to slide."""
    s = way.s[rows]
    met = Meeting(rows, s, way.state[rows, :-1], way.on[rows], way.slides[rows], surface)
    way.on[rows], way.slides[rows], xi = meeting.decide(way.drive, met)
    code = torch.where(way.slides[rows, surface], meeting.SLIDE, meeting.CROSS)
    way.note(s, rows, surface, code, xi)
    one, dropped = torch.nonzero(met.slides & ~way.slides[rows], as_tuple=True)
    if len(one):  # what it slid along before does not hold it beside the new one
        side, code = way.on[rows[one], dropped].to(xi), torch.full_like(one, meeting.EXIT)
        way.note(s[one], rows[one], dropped, code, side)


def _exit(way: Underway, rows: Tensor, surface: Tensor) -> None:
    """They leave a surface to the side that their coefficient says."""
    drive, s, row = way.drive, way.s[rows], torch.arange(len(rows), device=rows.device)
    metric = drive.metric(rows, drive.primal(rows, way.state[rows, :-1]))[:, :-1]
    padded = drive.slides(rows, way.slides[rows])
    force = polynomial(drive.force(rows, way.on[rows]), s)[:, :-1]
    value = padded.multipliers(metric, force[..., None])[..., 0]
    column = (padded.surface == surface[:, None]).to(torch.uint8).argmax(1)
    above = -value[row, column] / drive.beta(rows, surface, s) > 0.5
    way.slides[rows, surface] = False
    way.on[rows, surface] = above
    way.note(s, rows, surface, torch.full_like(rows, meeting.EXIT), above.to(s))


def _capture(way: Underway, row: int) -> None:
    """It reaches w = 0, and stays there or only passes through."""
    way.state[row, :-2] = 0.0
    way.on[row], way.slides[row] = False, False
    way.note_one(row, meeting.CAPTURE)
    at, sign = float(way.s[row]), float(torch.sign(way.state[row, -2]))
    network = row // way.drive.count
    strength, direction = meeting.pull(way.drive, network, at, sign)
    if strength > meeting.LOOSE:
        way.on[row], way.slides[row] = meeting.outward(way.drive, network, at, sign, direction)
        way.note_one(row, meeting.RELEASE)
    else:
        way.captured[row] = True
        way.duals[row, way.duals.new_tensor(OUTPUTS) > at, :-1] = 0.0
        way.s[row] = 1.0


def _let_go(way: Underway) -> None:
    """Free the captured neurons that are pulled away from zero in this step, where that begins."""
    if not bool(way.captured.any()):
        return
    side = torch.sign(way.state[:, -2])
    for sign in (1.0, -1.0):
        held = torch.nonzero(way.captured & (side == sign))[:, 0]
        for network, part in way.drive.by_network(held):
            if part.stop > part.start:
                _let_go_of(way, network, held[part], sign)


def _let_go_of(way: Underway, network: int, held: Tensor, sign: float) -> None:
    """Those of one network whose output weights have one sign: what pulls them is the same."""
    grid = (0.0, *GRID)
    way.looked[held[:1]] += 0.1 * way.drive.count * way.drive.known[network]

    def pulled(at: float) -> bool:
        return meeting.pull(way.drive, network, at, sign)[0] > meeting.LOOSE

    first = next((k for k, at in enumerate(grid) if pulled(float(at))), None)
    if first is None:
        return
    high, low = float(grid[first]), float(grid[max(0, first - 1)])
    while high - low > 1e-12:
        middle = 0.5 * (low + high)
        high, low = (middle, low) if pulled(middle) else (high, middle)
    direction = meeting.pull(way.drive, network, high, sign)[1]
    leaves, edge = meeting.outward(way.drive, network, high, sign, direction)
    way.on[held], way.slides[held], way.captured[held] = leaves, edge, False
    way.s[held] = max(high, 1e-15)
    for row in held.tolist():
        way.note_one(row, meeting.RELEASE)
