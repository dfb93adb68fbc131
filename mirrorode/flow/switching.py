"""What the kinks that a smooth step has crossed make of its end.

A step is taken on the pattern at its start. A pair s that reaches its kink at τ, a time h − τ
before the end, then adds x_s Δ_s to the velocity, Δ_s its full change from one side to the other:
x = 1 where it crosses, 0 < x < 1 where it stays on its kink. The x minimise ‖G + Σ x_s Δ_s‖²_D
over the box, the least-norm selection. The dual moves by Σ (h − τ_s) x_s Δ_s, exact to first order,
and so a step need not stop at kinks whose effect is small; what is left is of second order, and
is seen in the velocity at the end, which differs from G + Σ x_s Δ_s by it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mirrorode.flow import capture, field, radau
from mirrorode.flow.events import enter
from mirrorode.flow.field import Field
from mirrorode.flow.kinks import Pairs
from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.flow.normals import solve_gram
from mirrorode.flow.step import Mode

STRICT = 2.0  # crossings come by the hundred; what each leaves may add up
PIVOTS = 60  # of the box; where that is not enough the error of the step will tell
ROUNDS = 6  # of pairs that leave their kinks one after the other


@dataclass(frozen=True)
class Happening:
    """Pairs to which the same happens, with ξ where they begin or cease to slide."""

    kind: str
    pairs: Pairs
    coefficients: list[float]


@dataclass(frozen=True)
class Crossings:
    """The selection at the pairs that a smooth step of length h has crossed.

    Attributes:
        pairs: F of them; since: h − τ, the time that each has spent beyond its kink.
        was_on: on which side it started.
        x: how much of the change to the other side it makes.
        change: Σ x_s Δ_s, what they add to G, (n,).
        nodes: what they add to the dual at the Radau nodes, (3, n).
        gains: and to log(1/𝓛) there, by the energy that they add, (3,).
        rates: of the change of the dual by each, in units of the error scale.
        pull: what each adds to the velocity of its own pre-activation.
    """

    pairs: Pairs
    since: Tensor
    was_on: Tensor
    x: Tensor
    change: Tensor
    nodes: Tensor
    gains: np.ndarray
    rates: Tensor
    pull: Tensor

    def left(self, change: Tensor, scale: Tensor) -> float:
        """What the crossings do to the dual beyond first order, given the whole change of G.

        The velocity drifts away from what the crossings alone make of it, about in proportion to
        the time since: half of that drift, over that time, is left.
        """
        sizes = self.rates * self.since
        total = float(sizes.sum())
        if total == 0:
            return 0.0
        drift = ((change - self.change) / scale).square().mean().sqrt()
        return STRICT * 0.5 * float((sizes * self.since).sum()) / total * float(drift)


def select(
    flow: MirrorFlow,
    mode: Mode,
    last: Field,
    pairs: Pairs,
    since: Tensor,
    scale: Tensor,
    h: float,
) -> Crossings:
    """The least-norm selection at ``pairs``, on the field ``last`` at the smooth end."""
    count = len(pairs)
    if count == 0:
        none = last.dual.new_zeros(4, len(last.dual))
        zero = pairs.sample > 0
        return Crossings(pairs, since, zero, since, none[0], none[1:], np.zeros(3), since, since)
    was_on = pairs.gather([on.to(since) for on in mode.pattern]) > 0
    push = pairs.gather(last.pushes)
    turn = torch.where(was_on, -push, push)
    found = field.normals_of(flow, last.theta, pairs + mode.slides, mode)
    gram = found.gram(last.inverse)
    # Coefficients of the sliding normals that keep each Δ_s tangent to their kinks.
    tied = solve_gram(gram[count:, count:], gram[count:, :count])
    within = gram[:count, :count] - gram[:count, count:] @ tied
    rates = found.along((last.inverse * last.direction)[None])[0, :count]
    matrix, slope = turn[:, None] * within * turn, turn * rates
    x = box_least(matrix, slope, push < 0)
    order = torch.argsort(since, descending=True, stable=True)
    moved = x * turn
    earlier = torch.tril(within[order[:, None], order], -1) @ moved[order]
    energy = torch.empty_like(since)
    energy[order] = moved[order] * (2 * rates[order] + 2 * earlier)
    energy = energy + moved.square() * within.diagonal()
    beyond = since - h * (1 - since.new_tensor(radau.NODES))[:, None]
    beyond = torch.cat([torch.ones_like(since)[None], beyond.clamp(min=0.0)])
    weights = beyond * moved
    added = found.combine(torch.cat([weights, -weights @ tied.T], 1))
    added = torch.where(last.inverse > 0, added, 0.0)
    rates_of_dual = moved.abs() * found.sizes(scale)[:count]
    gains = (beyond[1:] * energy).sum(1).cpu().numpy()
    pull = moved * within.diagonal()
    return Crossings(pairs, since, was_on, x, added[0], added[1:], gains, rates_of_dual, pull)


def box_least(matrix: Tensor, slope: Tensor, free: Tensor) -> Tensor:
    """The x in [0, 1] that minimises ½xᵀMx + slope·x, with x = 1 where it is not ``free``.

    Block principal pivoting from x = 1; one violator at a time once blocks do not help.
    """
    m, g, may = matrix.cpu().numpy(), slope.cpu().numpy(), free.cpu().numpy()
    size = 1 / np.sqrt(np.maximum(np.diag(m), 1e-300))
    x, inside = np.ones(len(g)), np.zeros(len(g), dtype=bool)
    fewest, patience = len(x) + 1, 3
    for _ in range(PIVOTS):
        if inside.any():
            part = m[np.ix_(inside, inside)] * np.outer(size[inside], size[inside])
            part[np.diag_indices_from(part)] += 1e-14
            rest = g[inside] + m[np.ix_(inside, ~inside)] @ x[~inside]
            x[inside] = -np.linalg.solve(part, size[inside] * rest) * size[inside]
        gradient, tiny = m @ x + g, 1e-12 * (np.abs(m) @ np.abs(x) + np.abs(g))
        wrong = np.where(x > 0.5, gradient > tiny, gradient < -tiny) & may & ~inside
        wrong |= inside & ((x < 0) | (x > 1))
        if not wrong.any():
            break
        if wrong.sum() < fewest:
            fewest, patience = int(wrong.sum()), 3
        elif patience > 0:
            patience -= 1
        else:
            wrong &= np.arange(len(x)) == np.flatnonzero(wrong)[-1]
        x = np.where(inside & wrong, np.round(np.clip(x, 0, 1)), x)
        inside ^= wrong
    return torch.as_tensor(np.clip(x, 0.0, 1.0)).to(slope)


@dataclass(frozen=True)
class Behind:
    """The field and its mode behind what has happened, and in which order that was."""

    field: Field
    mode: Mode
    happenings: list[Happening]

    def astray(self) -> float:
        """What of log(1/𝓛) is due to pairs that are beyond their kink, against the pattern.

        The selection holds back, or lets through, some that others, met later, move the other way.
        The step is then too long to put them all in order.
        """
        at, total = self.field, 0.0
        layers = zip(at.forward.preactivations, self.mode.pattern, at.pushes, strict=True)
        for pre, on, push in layers:
            total += float((push * pre)[(pre > 0) != on].abs().sum())
        return total


def go_on(flow: MirrorFlow, mode: Mode, dual: Tensor, crossed: Crossings, zeros: Pairs) -> Behind:
    """The mode behind the crossings at the end of a step, and the flow on it.

    ``dual`` is that at the end, with what the crossings have added; the units ``zeros`` have come
    to zero incoming weights and are held there.
    """
    pairs, x = crossed.pairs, crossed.x
    happenings, pattern = [], mode.pattern
    for value in (False, True):
        flipped = pairs[(x == 1) & (crossed.was_on != value)]
        pattern = flipped.mark(pattern, value)
        happenings.append(Happening("cross", flipped, []))
    mode = replace(mode, pattern=pattern)
    if len(zeros):
        dual, mode = capture.hold(flow, dual, mode, zeros)
        happenings.append(Happening("capture", zeros, []))
    partly = (x > 0) & (x < 1)
    if len(mode.slides) or bool(partly.any()):
        dual, mode, entered, which = enter(flow, dual, mode, pairs[partly])
        xi = torch.where(crossed.was_on, 1 - x, x)[partly][which]
        happenings.append(Happening("slide", entered, xi.tolist()))
    return leave(flow, mode, field.evaluate(flow, dual, mode), happenings)


def leave(flow: MirrorFlow, mode: Mode, at: Field, happenings: list[Happening]) -> Behind:
    """End the sliding of pairs whose ξ is outside [0, 1]; the box says which of them go."""
    for _ in range(ROUNDS):
        xi = at.coefficients
        if not bool(((xi < 0) | (xi > 1)).any()) or at.gram is None:
            break
        push = mode.slides.gather(at.pushes)
        matrix = push[:, None] * at.gram * push
        found = box_least(matrix, -matrix @ xi, torch.ones_like(xi, dtype=torch.bool))
        off, on = found == 0, found == 1
        if not bool((off | on).any()):
            break
        leaving, arrived = mode.slides[off | on], on[off | on]
        happenings = [*happenings, Happening("exit", leaving, arrived.to(xi).tolist())]
        pattern = mode.slides[on].mark(mode.pattern, True)
        mode = replace(mode, pattern=pattern, slides=mode.slides[~(off | on)])
        at = field.evaluate(flow, at.dual, mode)
    return Behind(at, mode, happenings)
