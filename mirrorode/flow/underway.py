"""Neurons of two-layer networks in a step: what is asked, where they are, what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from mirrorode.flow import radau
from mirrorode.flow.neurons import Drive, Neurons

MIDDLES = 0.5 * (radau.NODES + np.concatenate([[0.0], radau.NODES[:-1]]))
OUTPUTS = np.stack([MIDDLES, radau.NODES], 1).reshape(-1)
"""Positions at which duals are wanted: the Radau nodes, and before each the middle up to it."""


@dataclass(frozen=True)
class Request:
    """The neurons of one network, to be taken from s = 0 to 1.

    Attributes:
        drive: of this network; start: where its neurons are.
        tolerance: relative, of a neuron's dual.
        even: if positive, all take pieces of this length, shorter ones only where the tolerance
            asks for it: what comes out is then a smooth function of the weights, free of the noise
            that a choice of pieces makes.
    """

    drive: Drive
    start: Neurons
    tolerance: float
    even: float = 0.0


@dataclass(frozen=True)
class Happening:
    """Events in a step: position, neuron, surface (−1 for all), kind and ξ, each (E,)."""

    s: Tensor
    neuron: Tensor
    surface: Tensor
    kind: Tensor
    coefficient: Tensor

    @classmethod
    def joined(cls, several: Sequence[Happening]) -> Happening:
        """All of them."""
        names = [one.name for one in fields(cls)]
        return cls(*(torch.cat([getattr(one, name) for one in several]) for name in names))

    def of(self, index: Tensor) -> Happening:
        """Some of the events."""
        return Happening(*(getattr(self, one.name)[index] for one in fields(self)))


@dataclass(frozen=True)
class Path:
    """What the neurons of a network did.

    Attributes:
        duals: at `OUTPUTS`, (P, N, d + 1); slides: there, (P, N, G).
        end: their state at the end; gained: what they added to log(1/𝓛), (N,).
        events: in no order; work: passes over all pairs of neurons and surfaces.
        shortest: length of the shortest piece that the tolerance asked for.
    """

    duals: Tensor
    slides: Tensor
    end: Neurons
    gained: Tensor
    events: Happening
    work: float
    shortest: float


@dataclass
class Underway:
    """B networks of N neurons somewhere in their steps, each at its own position.

    Attributes:
        rounds: that each network has taken, (B,).
        s: positions (BN,); delta: lengths of the next pieces; even, tolerance: as asked, (BN,).
        state: duals, and what each has added to log(1/𝓛), (BN, d + 2).
        on, slides: (BN, G); captured, lost: (BN,).
        force: polynomials of the force on their patterns.
        duals: at the outputs, (BN, P, d + 1); modes: the slides there, (BN, P, G).
        slid: whether any of them is not empty, (BN,).
        looked: pairs looked at; shortest: piece that the tolerance asked for, (BN,).
    """

    drive: Drive
    rounds: Tensor
    s: Tensor
    delta: Tensor
    even: Tensor
    tolerance: Tensor
    state: Tensor
    on: Tensor
    slides: Tensor
    captured: Tensor
    lost: Tensor
    force: Tensor
    duals: Tensor
    modes: Tensor
    slid: Tensor
    looked: Tensor
    shortest: Tensor
    events: list[Happening] = field(default_factory=list)

    @classmethod
    def joined(cls, ways: Sequence[Underway]) -> Underway:
        """All of them."""
        if len(ways) == 1:
            return ways[0]
        columns: dict[str, Tensor] = {}
        most = max(way.on.shape[-1] for way in ways)
        for name in TENSORS:
            parts = [getattr(way, name) for way in ways]
            if name in MASKS:
                parts = [pad(part, (0, most - part.shape[-1])) for part in parts]
            columns[name] = torch.cat(parts)
        first, events = 0, []
        for way in ways:
            events += [replace(one, neuron=one.neuron + first) for one in way.events]
            first += len(way.s)
        return cls(Drive.joined([way.drive for way in ways]), **columns, events=events)

    def part(self, networks: Tensor) -> Underway:
        """Some of the networks, in their order."""
        count, most = self.drive.count, max(self.drive.known[b] for b in networks.tolist())
        rows = (networks[:, None] * count + torch.arange(count, device=networks.device)).reshape(-1)
        columns = {}
        for name in TENSORS:
            column = getattr(self, name)[networks if name == "rounds" else rows]
            columns[name] = column[..., :most] if name in MASKS else column
        place = torch.full_like(self.s, -1).long()
        place[rows] = torch.arange(len(rows), device=rows.device)
        events = self.happened()
        events = replace(events, neuron=place[events.neuron])
        events = events.of(torch.nonzero(events.neuron >= 0)[:, 0])
        return Underway(self.drive.part(networks, most), **columns, events=[events])

    def happened(self) -> Happening:
        """All events so far."""
        none = torch.zeros_like(self.s[:0])
        nobody = none.long()
        self.events = [
            Happening.joined([Happening(none, nobody, nobody, nobody, none), *self.events])
        ]
        return self.events[0]

    def note(self, s: Tensor, neuron: Tensor, surface: Tensor, kind: Tensor, xi: Tensor) -> None:
        """Write events down."""
        self.events.append(Happening(s, neuron, surface, kind, xi))

    def note_one(self, row: int, kind: int) -> None:
        """Write down an event of one neuron with all its surfaces."""
        one = torch.tensor([row], device=self.s.device)
        code = torch.full_like(one, kind)
        self.note(self.s[one], one, -torch.ones_like(one), code, self.s.new_zeros(1))


MASKS = ("on", "slides", "modes")
TENSORS = [one.name for one in fields(Underway) if one.name not in ("drive", "events")]
