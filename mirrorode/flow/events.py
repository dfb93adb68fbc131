"""What happens to the mode of the flow between steps: sliding begins, ends; a unit is captured.

Crossings happen inside steps (see `kinks`). A pair that comes to slide ends its step, unless it
overshoots by less than the error tolerance; so does a sliding coefficient that leaves [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mirrorode.flow import capture, field, radau
from mirrorode.flow.kinks import Pairs, roots
from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.flow.normals import of_pairs, solve_gram
from mirrorode.flow.state import Point, Run, State
from mirrorode.flow.step import Mode, Step, captured_places, metric
from mirrorode.flow.system import Stages
from mirrorode.problem.homogeneous import Forward, Pattern

SOFT = 0.3  # of the error scale: a kink overshot by less than this does not end a step
SOFT_LATE = 3e-3  # the same once the loss is the clock
OVERSHOOT = 0.03  # of a sliding coefficient beyond [0, 1]
MARGIN = 1e-3  # of a coefficient beyond [0, 1] that ends a slide: at less it may come straight back
NOTICED = 23.0  # a sample lighter than e⁻²³ of the total changes nothing
DEPENDENT = 1e-6  # share of a normal that is new to those already slid along


@dataclass(frozen=True)
class Ending:
    """How far an attempted step may be kept, and what happens at its end.

    Attributes:
        share: of the step up to the first event that must end it; 1 where none does.
        arrivals: pairs that begin to slide there.
        captures: units (sample −1) that reach zero incoming weights there.
    """

    share: float
    arrivals: Pairs
    captures: Pairs


def ending(step: Step, found: Stages, samples: Tensor) -> Ending:
    """The events of an attempted step that crossings inside it do not settle."""
    captures = step.mode.on_a_line(step.flow.network.fan_in)
    capture_times, reached = _times_of_zero(step, found, captures)
    captures, capture_times = captures[reached], capture_times[reached]
    hard_capture = _distance_to_zero(step, found, captures) > SOFT
    # Neurons of one cluster arrive together, and putting them all on their kinks adds up; late,
    # the margins of the support feel it first.
    together = overshoot(step, found, found.arrivals) * max(1, len(found.arrivals)) ** 0.5
    hard_arrival = together > (SOFT_LATE if step.clock.follows else SOFT)
    times = torch.cat([capture_times[hard_capture], found.arrival_times[hard_arrival]])
    share = min([1.0, *times.tolist()])
    share = min(share, _exit_share(step, found, captures), _release_share(step, found, samples))
    within = share * (1 + 1e-9)
    arrivals = found.arrivals[found.arrival_times <= within]
    return Ending(share, arrivals, captures[capture_times <= within])


def _same_unit(pairs: Pairs, units: Pairs) -> Tensor:
    """Which of the pairs belong to one of the units."""
    layers, numbers = pairs.layer[:, None] == units.layer, pairs.unit[:, None] == units.unit
    return (layers & numbers).any(1)


def _first_beyond(values: Tensor, limit: float) -> float:
    """Where the cubics through ``values`` (4, …) at start and stages first exceed ``limit``."""
    grid = torch.linspace(0, 1, 257, dtype=values.dtype, device=values.device)[1:]
    path = radau.evaluate(radau.STATE_BASIS, grid) @ values.reshape(radau.STAGES + 1, -1)
    over = (path > limit).any(1)
    return float(grid[over][0]) if bool(over.any()) else 1.0


def _exit_share(step: Step, found: Stages, captures: Pairs) -> float:
    """Up to where all coefficients are in [0, 1]; 1 if they leave it by little."""
    keep = ~_same_unit(step.mode.slides, captures)
    beyond = (torch.cat([step.coefficients[None], found.coefficients])[:, keep] - 0.5).abs() - 0.5
    if beyond.numel() == 0 or not bool((beyond[-1] > OVERSHOOT).any()):
        return 1.0
    # Aimed at the middle of what is tolerated, the shortened step need not be shortened again.
    return _first_beyond(beyond, 0.5 * OVERSHOOT)


def _release_share(step: Step, found: Stages, samples: Tensor) -> float:
    """Up to where no captured unit is pulled away from zero."""
    values = []
    for layer, unit in _captured(step.mode):
        pulls = [
            capture.pull(step.flow, theta, samples, log_mu.softmax(0), layer, unit)[0]
            for theta, log_mu in zip(found.theta, found.log_mu, strict=True)
        ]
        values.append([min(0.0, 2 * pulls[0] - pulls[1]), *pulls])
    if not any(pulls[-1] > capture.LOOSE for pulls in values):
        return 1.0
    return _first_beyond(step.dual.new_tensor(values).T, 0.0)


def _times_of_zero(step: Step, found: Stages, units: Pairs) -> tuple[Tensor, Tensor]:
    """When the incoming dual weights of ``units``, which move on a line, vanish, if they do."""
    path = torch.cat([step.dual[None], found.dual])
    ends, at = step.dual.new_ones(len(units)), capture.places_of
    units_at = zip(*units.lists(), strict=True)
    rows = [path[:, at(step.flow, layer, unit)] for layer, unit, _ in units_at]
    if not rows:
        return ends, ends > 0
    along = torch.stack([row @ row[0] for row in rows])
    cubic = along @ step.dual.new_tensor(radau.STATE_BASIS)
    falling = torch.zeros_like(ends, dtype=torch.bool)
    return roots(cubic, ends * 0, ends, falling), along[:, -1] <= 0


def _captured(mode: Mode) -> list[tuple[int, int]]:
    return [
        (layer, unit)
        for layer, units in enumerate(mode.captured)
        for unit in torch.nonzero(units)[:, 0].tolist()
    ]


def _distance_to_zero(step: Step, found: Stages, units: Pairs) -> Tensor:
    """Change of the dual that puts the incoming weights at zero, in units of the error scale."""
    size, at = found.dual[-1] / step.scale, capture.places_of
    units_at = zip(*units.lists(), strict=True)
    sizes = [size[at(step.flow, layer, unit)].norm() for layer, unit, _ in units_at]
    return torch.stack(sizes) / len(step.dual) ** 0.5 if sizes else step.dual.new_zeros(0)


def vanishing(run: Run, state: State, point: Point, within: float) -> Pairs:
    """Units (sample −1) at zero to within the tolerance that come to it in less than ``within``.

    On the last stretch to w = 0 a unit passes ever more kinks in ever shorter time. A unit that
    nothing moves stays small while all others grow, until it is within the tolerance; such a one
    must keep its sides, as behind w = 0 the flow would send it where it is pulled most.
    """
    network, scale, found = run.flow.network, run.scale(state.dual), []
    for layer, captured in enumerate(state.mode.captured):
        if network.fan_in[layer] == 0:
            continue
        places = network.incoming(layer, torch.arange(len(captured), device=scale.device))
        size = (state.dual / scale)[places].norm(dim=-1)
        inward = -(state.dual * point.direction)[places].sum(-1)
        small = size < SOFT * len(scale) ** 0.5
        soon = state.dual[places].square().sum(-1) < within * inward
        units = torch.nonzero(small & soon & ~captured)[:, 0]
        found += [(layer, unit, -1) for unit in units.tolist()]
    return Pairs.of(found, scale.device)


def release(
    flow: MirrorFlow, dual: Tensor, mode: Mode, samples: Tensor, share: Tensor, scale: Tensor
) -> tuple[Tensor, Mode, Pairs]:
    """Let go every captured unit that is pulled away from zero."""
    freed = []
    for layer, unit in _captured(mode):
        theta = flow.potential.inverse_gradient(dual)
        value, direction, edges = capture.pull(flow, theta, samples, share, layer, unit)
        if value > -capture.LOOSE:
            size = scale[capture.places_of(flow, layer, unit)].min()
            dual, mode = capture.free(flow, dual, mode, layer, unit, 1e-3 * size * direction)
            along = [(layer, unit, sample) for sample in edges.tolist()]
            dual, mode, _, _ = enter(flow, dual, mode, Pairs.of(along, dual.device))
            freed.append((layer, unit, -1))
    return dual, mode, Pairs.of(freed, dual.device)


def overshoot(step: Step, found: Stages, pairs: Pairs) -> Tensor:
    """Change of the dual that takes each pair back to its kink, in units of the error scale."""
    theta = found.theta[-1]
    pattern = [on[pairs.sample] for on in step.mode.pattern]
    normals = of_pairs(step.flow.network, theta, step.x, pairs, pattern)
    squared = normals.gram(metric(step.flow, theta)).diagonal()
    value = pairs.gather([pre[-1] for pre in found.preactivations])
    return (value / squared).abs() * normals.sizes(step.scale)


def enter(
    flow: MirrorFlow, dual: Tensor, mode: Mode, pairs: Pairs, *, late: bool = False
) -> tuple[Tensor, Mode, Pairs, Tensor]:
    """Begin to slide along ``pairs``.

    A pair whose normal depends on those already slid along is left where it is. ``late`` the
    margins stay what they are, from which the softmax weights of a large log(1/𝓛) follow.

    Returns:
        The dual put on all sliding kinks, the new mode, the pairs that entered, and which they are.
    """
    before, slides, which = mode, mode.slides, torch.ones_like(pairs.sample, dtype=torch.bool)
    if len(pairs):
        candidates = slides + pairs
        off = replace(mode, pattern=candidates.mark(mode.pattern, False))
        theta = flow.potential.inverse_gradient(dual)
        gram = field.normals_of(flow, theta, candidates, off).gram(metric(flow, theta))
        which = _independent(gram, len(slides))
        slides = slides + pairs[which]
        mode = replace(mode, pattern=slides.mark(mode.pattern, False), slides=slides)
    snapped = snap(flow, dual, mode)
    if late:
        snapped = _keep_margins(flow, dual, before, snapped, mode)
    return snapped, mode, pairs[which], which


def _independent(gram: Tensor, known: int) -> Tensor:
    """Which of the normals from number ``known`` on are new to all before them (Cholesky)."""
    size = gram.diagonal().clamp(min=1e-300).rsqrt()
    rest = gram * size[:, None] * size
    kept = []
    for k in range(len(rest)):
        pivot = float(rest[k, k])
        kept.append(k < known or pivot > DEPENDENT)
        if kept[-1]:
            rest = rest - rest[:, k : k + 1] * rest[k] / max(pivot, 1e-14)
    return torch.tensor(kept[known:], dtype=torch.bool, device=gram.device)


def must_cross(flow: MirrorFlow, dual: Tensor, mode: Mode, pairs: Pairs) -> Tensor:
    """Which of the pairs cannot slide: those that switching on pushes further on."""
    theta = flow.potential.inverse_gradient(dual)
    forward = flow.network.forward(theta, flow.dataset.x, mode.pattern)
    _, signals = flow.network.pull(forward, torch.ones_like(flow.dataset.y))
    return flow.dataset.y[pairs.sample] * pairs.gather(signals) >= 0


def cross(mode: Mode, before: Pattern, pairs: Pairs) -> Mode:
    """The mode with the pairs on the other side than in the pattern ``before``."""
    pattern, was_on = mode.pattern, pairs.gather([on.double() for on in before]) > 0
    for value in (False, True):
        pattern = pairs[was_on != value].mark(pattern, value)
    return Mode(pattern, mode.slides, mode.captured)


def snap(flow: MirrorFlow, dual: Tensor, mode: Mode) -> Tensor:
    """The dual moved least in D onto the kinks slid along; keeps the balance to second order."""
    slides, held = mode.slides, captured_places(flow, mode)
    if len(slides) == 0:
        return dual
    x, pattern = flow.dataset.x[slides.sample], [on[slides.sample] for on in mode.pattern]
    own = replace(slides, sample=torch.arange(len(slides), device=dual.device))
    for _ in range(2):
        theta = flow.potential.inverse_gradient(dual)
        pre = own.gather(flow.network.forward(theta, x, pattern).preactivations)
        normals = field.normals_of(flow, theta, slides, mode)
        inverse = metric(flow, theta).index_fill(0, held, 0.0)
        moved = normals.combine(solve_gram(normals.gram(inverse), pre)[None])[0]
        dual = dual - moved.index_fill(0, held, 0.0)
    return dual


def _keep_margins(
    flow: MirrorFlow, dual: Tensor, mode: Mode, snapped: Tensor, after: Mode
) -> Tensor:
    """``snapped`` moved least in D, along the kinks, to where the margins that matter were.

    Margins that depend on each other and on the kinks cannot all be kept: their Gram matrix is
    inverted on its range.
    """
    y, held = flow.dataset.y, captured_places(flow, after)
    samples = torch.arange(len(y), device=dual.device)

    def look(dual: Tensor, mode: Mode) -> tuple[Tensor, Forward]:
        theta = flow.potential.inverse_gradient(dual)
        pattern = [on[samples] for on in mode.pattern]
        return theta, flow.network.forward(theta, flow.dataset.x[samples], pattern)

    q = y * look(dual, mode)[1].output
    samples = torch.nonzero(torch.log_softmax(-q, 0) > -NOTICED)[:, 0]
    y, q, best, least = y[samples], q[samples], snapped, torch.inf
    for _ in range(3):
        theta, at = look(snapped, after)
        lost = q - y * at.output
        if not float(lost.abs().max()) < least:
            break
        best, least = snapped, float(lost.abs().max())
        rows = (y[:, None] * flow.network.backward(at)[0]).index_fill(1, held, 0.0)
        inverse = metric(flow, theta).index_fill(0, held, 0.0)
        if len(after.slides):
            normals = field.normals_of(flow, theta, after.slides, after)
            along = normals.along(rows * inverse)
            added = normals.combine(solve_gram(normals.gram(inverse), along.mT).mT)
            rows = rows - added.index_fill(1, held, 0.0)
        gram = (rows * inverse) @ rows.mT
        size = gram.diagonal().clamp(min=1e-300).rsqrt()
        back = torch.linalg.pinv(gram * size[:, None] * size, rtol=DEPENDENT, hermitian=True)
        snapped = snapped + (size * (back @ (size * lost))) @ rows
    return best


def leave(mode: Mode, coefficients: Tensor, alone: int | None = None) -> tuple[Mode, Pairs, Pairs]:
    """End the sliding of pairs whose coefficient has left [0, 1]; who goes off, who goes on.

    All of them, or only number ``alone`` of those, counted around.
    """
    outside = (coefficients <= -MARGIN) | (coefficients >= 1 + MARGIN)
    if alone is not None:
        which = torch.nonzero(outside)[:, 0]
        outside = torch.zeros_like(outside).index_fill(0, which[alone % len(which)], True)
    off, on = outside & (coefficients < 0), outside & (coefficients > 1)
    switched_on = mode.slides[on]
    pattern = switched_on.mark(mode.pattern, True)
    return Mode(pattern, mode.slides[~outside], mode.captured), mode.slides[off], switched_on
