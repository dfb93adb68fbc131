"""The end of an explicit step: what it has crossed, the mode behind it, and the error of both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mirrorode.flow import capture, field, kinks, radau, switching
from mirrorode.flow.dense import DenseStep
from mirrorode.flow.dormand_prince import Smooth
from mirrorode.flow.field import Field
from mirrorode.flow.kinks import Pairs
from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.flow.state import Run, State
from mirrorode.flow.step import Mode, has_kinks
from mirrorode.flow.switching import Behind, Crossings

RESIDUAL = 3.0  # times rtol: |∫‖G‖²_D dσ − Δℓ| that rejects a step
SWEEPS = 3  # at most, until crossings and their times are known
STEADY = 0.01  # of a step: times that move less are known
CROWDED = 150  # crossings in one step: a shorter step costs less than their selection
AT_ONCE = 1e-6  # of a step: crossings this close to its end are taken to be in it
DRIFTED = 1e-3  # of the error scale: sliding pairs this far off their kinks are put back


@dataclass(frozen=True)
class Hits:
    """What a step passes: when, in [0, 1], and how fast it goes wrong behind, per step."""

    pairs: Pairs
    times: Tensor
    rates: Tensor

    @property
    def sizes(self) -> Tensor:
        """How far the dual has gone at the end, in units of the error scale."""
        return (1 - self.times) * self.rates


@dataclass(frozen=True)
class End:
    """Where a step ends that is kept up to ``share``, and how well.

    Attributes:
        share: of the smooth step.
        dense: dense output.
        behind: the field and mode behind the kinks.
        error: of what kinks have left and of the energy; above 1 the step must be cut.
        hits: what it has passed; units that came to zero have sample −1.
    """

    share: float
    dense: DenseStep
    behind: Behind
    error: float
    hits: Hits

    @property
    def loss(self) -> float:
        """log(1/𝓛) at the end."""
        return float(self.dense.loss[-1])

    def due(self, time: float) -> Pairs:
        """The pairs passed just then, in [0, 1]: where round-off may see them on either side."""
        return self.hits.pairs[(self.hits.times - time).abs() < AT_ONCE]


def finish(
    run: Run, state: State, smooth: Smooth, scale: Tensor, share: float, due: Pairs | None = None
) -> End:
    """The step kept up to ``share``, behind its kinks; pairs that are ``due`` there among them."""
    flow, mode = run.flow, state.mode
    due = Pairs.none(state.dual.device) if due is None else due
    while True:
        duals = smooth.dual(share * radau.NODES)
        theta = flow.potential.inverse_gradient(duals)
        forward = flow.network.forward(theta, flow.dataset.x, mode.pattern)
        pairs, times = _crossed(flow, smooth.first, mode, forward.preactivations, due)
        run.stats.half_passes += 3
        if len(pairs) <= CROWDED:
            break
        share *= float(torch.sort(times).values[CROWDED // 2])
    h = share * smooth.h
    last = smooth.last if share == 1 else field.evaluate(flow, duals[-1], mode)
    run.stats.half_passes += 0 if share == 1 else 2
    found = switching.select(flow, mode, last, pairs, (1 - times) * h, scale, h)
    for _ in range(SWEEPS if len(pairs) else 0):
        before = found
        pre = _behind(flow, duals + found.nodes, found, forward.preactivations, h)
        pairs, times = _crossed(flow, smooth.first, mode, pre, due)
        found = switching.select(flow, mode, last, pairs, (1 - times) * h, scale, h)
        run.stats.half_passes += 3
        if _same(found, before, h):
            break
    zeros = _zeros(flow, mode, smooth.first, duals, scale, due)
    if len(pairs) or len(zeros.pairs) or _has_drifted(last, mode, scale):
        behind = switching.go_on(flow, mode, duals[-1] + found.nodes[-1], found, zeros.pairs)
        run.stats.half_passes += 2
    else:
        behind = switching.leave(flow, mode, last, [])
    exits = _exits(smooth.first, last, mode, scale, h)
    losses = (-torch.logsumexp(-flow.dataset.y * forward.output, -1)).cpu().numpy()
    losses = np.concatenate([[smooth.first.loss], losses + found.gains])
    losses[-1] = behind.field.loss
    passed = float((smooth.dissipated(share * radau.NODES) + found.gains)[-1])
    lost = abs(passed - (losses[-1] - losses[0])) + behind.astray()
    lost /= RESIDUAL * run.rtol * max(1.0, abs(passed))
    left = found.left(behind.field.direction - last.direction, scale)
    error = max(left, lost, float(exits.sizes.sum()), float(zeros.sizes.sum()))
    path = torch.cat([smooth.first.dual[None], duals + found.nodes])
    path[-1] = behind.field.dual
    dense = DenseStep(path, h, state.log_time, losses, np.zeros(4), False, passed)
    crossed = Hits(pairs, times, found.rates * h)
    return End(share, dense, behind, error, _join([crossed, zeros, exits]))


def _join(hits: list[Hits]) -> Hits:
    pairs = hits[0].pairs
    for other in hits[1:]:
        pairs = pairs + other.pairs
    return Hits(
        pairs, torch.cat([one.times for one in hits]), torch.cat([one.rates for one in hits])
    )


def _crossed(
    flow: MirrorFlow, first: Field, mode: Mode, pre: list[Tensor], due: Pairs
) -> tuple[Pairs, Tensor]:
    """Pairs that end the step beyond their kink, and when they passed it; ``due`` ones at the end.

    A pair that went there and back on the smooth extension has only touched its kink.
    """
    due = due[due.sample >= 0]
    if not has_kinks(flow):
        return due, first.dual.new_zeros(len(due))
    values = [
        torch.cat([a[None], b]) for a, b in zip(first.forward.preactivations, pre, strict=True)
    ]
    pairs, times = kinks.crossings(mode.pattern, values, mode.held(flow.network.fan_in))
    code = torch.stack(pairs.fields)
    unique, inverse = torch.unique(code, dim=1, return_inverse=True)
    latest = times.new_zeros(unique.shape[1]).scatter_reduce(0, inverse, times, "amax")
    odd = torch.bincount(inverse, minlength=unique.shape[1]) % 2 == 1
    pairs, times = Pairs(*unique)[odd], latest[odd]
    known = (torch.stack(due.fields)[:, :, None] == torch.stack(pairs.fields)[:, None]).all(0)
    late = due[~known.any(1)]
    return pairs + late, torch.cat([times, times.new_ones(len(late))])


def _behind(
    flow: MirrorFlow, duals: Tensor, found: Crossings, smooth: list[Tensor], h: float
) -> list[Tensor]:
    """Pre-activations at the nodes when kinks have been accounted for.

    A unit that switches moves what the layers above see, and with it the time of their crossings:
    to first order in the step, so that the first look, on the smooth extension, does not do. What
    a pair's own crossing adds is taken out, so that its root does not depend on the time assumed.
    """
    theta = flow.potential.inverse_gradient(duals)
    pre = flow.network.forward(theta, flow.dataset.x).preactivations
    own = found.since - h * (1 - found.since.new_tensor(radau.NODES))[:, None]
    own = own.clamp(min=0.0) * found.pull
    stays = (found.x > 0) & (found.x < 1)
    for layer, (value, plain) in enumerate(zip(pre, smooth, strict=True)):
        here = (found.pairs.layer == layer) & ~stays
        value[:, found.pairs.sample[here], found.pairs.unit[here]] -= own[:, here]
        held = (found.pairs.layer == layer) & stays
        at = found.pairs.sample[held], found.pairs.unit[held]
        value[:, at[0], at[1]] = plain[:, at[0], at[1]]
    return pre


def _same(found: Crossings, before: Crossings, h: float) -> bool:
    """Whether another look at the crossings has changed little."""
    if len(found.pairs) != len(before.pairs):
        return False
    pairs = zip(found.pairs.fields, before.pairs.fields, strict=True)
    moved = (found.since - before.since).abs() < STEADY * h
    return all(bool((a == b).all()) for a, b in pairs) and bool(moved.all())


def _zeros(
    flow: MirrorFlow, mode: Mode, first: Field, duals: Tensor, scale: Tensor, due: Pairs
) -> Hits:
    """Units on a line through zero incoming weights that have passed it."""
    found = []
    path = torch.cat([first.dual[None], duals])
    now = set(zip(*due[due.sample < 0].lists(), strict=True))
    for layer, unit, _ in zip(*mode.on_a_line(flow.network.fan_in).lists(), strict=True):
        places = capture.places_of(flow, layer, unit)
        along = path[:, places] @ path[0, places]
        if float(along[-1]) <= 0 or (layer, unit, -1) in now:
            cubic = (along @ along.new_tensor(radau.STATE_BASIS))[None]
            ends = along.new_tensor([0.0, 1.0])
            falling = torch.zeros(1, dtype=torch.bool, device=along.device)
            time = float(kinks.roots(cubic, ends[:1], ends[1:], falling))
            step = (path[-1] - path[0])[places] / scale[places]
            found.append(((layer, unit, -1), time, float(step.norm()) / len(scale) ** 0.5))
    pairs = Pairs.of([one[0] for one in found], duals.device)
    return Hits(pairs, *(duals.new_tensor([one[k] for one in found]) for k in (1, 2)))


def _exits(first: Field, last: Field, mode: Mode, scale: Tensor, h: float) -> Hits:
    """Sliding pairs whose ξ has left [0, 1], with half of what it then does wrong."""
    xi, before = last.coefficients, first.coefficients
    over = (xi - 0.5).abs() - 0.5
    out = over > 0
    pairs = mode.slides[out]
    if last.normals is None or len(pairs) == 0:
        return Hits(pairs[:0], xi[:0], xi[:0])
    share = (over[out] / (xi - before)[out].abs().clamp(min=1e-300)).clamp(max=1.0)
    push = pairs.gather(last.pushes).abs()
    rates = 0.5 * h * over[out] * push * last.normals.sizes(scale)[out]
    return Hits(pairs, 1 - share, rates)


def _has_drifted(last: Field, mode: Mode, scale: Tensor) -> bool:
    """Whether the sliding pairs are off their kinks by more than is tolerated."""
    if last.normals is None or last.gram is None:
        return False
    off = mode.slides.gather(last.forward.preactivations).abs()
    moved = off / last.gram.diagonal().clamp(min=1e-300) * last.normals.sizes(scale)
    return bool((moved > DRIFTED).any())
