"""What happens to the mode of the flow between steps: sliding begins, ends; a unit is captured.

Crossings happen inside steps (see `kinks`). A pair that comes to slide ends its step, unless it
overshoots by less than the error tolerance; so does a sliding coefficient that leaves [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mirrorode.flow import capture, radau
from mirrorode.flow.kinks import Pairs, roots
from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.flow.step import Mode, Step, metric, pair_normals
from mirrorode.flow.system import Stages

SOFT = 0.3  # of the error scale: a kink overshot by less than this does not end a step
OVERSHOOT = 0.03  # of a sliding coefficient beyond [0, 1]
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
    captures = capture.passing(step.mode.slides, found.flips, found.flip_times)
    capture_times = _times_of_zero(step, found, captures)
    hard_capture = _distance_to_zero(step, found, captures) > SOFT
    hard_arrival = overshoot(step, found, found.arrivals) > SOFT
    times = torch.cat([capture_times[hard_capture], found.arrival_times[hard_arrival]])
    share = min([1.0, *times.tolist()])
    share = min(share, _exit_share(step, found, captures), _release_share(step, found, samples))
    within = share * (1 + 1e-9)
    return Ending(
        share,
        found.arrivals[found.arrival_times <= within],
        captures[capture_times <= within],
    )


def _first_beyond(values: Tensor, limit: float) -> float:
    """Where the cubics through ``values`` (4, …) at start and stages first exceed ``limit``."""
    grid = torch.linspace(0, 1, 257, dtype=values.dtype, device=values.device)[1:]
    path = radau.evaluate(radau.STATE_BASIS, grid) @ values.reshape(radau.STAGES + 1, -1)
    over = (path > limit).any(1)
    return float(grid[over][0]) if bool(over.any()) else 1.0


def _exit_share(step: Step, found: Stages, captures: Pairs) -> float:
    """Up to where all coefficients are in [0, 1]; 1 if they leave it by little."""
    going = {(layer, unit) for layer, unit, _ in zip(*captures.lists(), strict=True)}
    slides = enumerate(zip(*step.mode.slides.lists(), strict=True))
    keep = [k for k, (layer, unit, _) in slides if (layer, unit) not in going]
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


def _times_of_zero(step: Step, found: Stages, units: Pairs) -> Tensor:
    """When the incoming dual weights of ``units`` vanish on the path they take up to there."""
    butcher = step.dual.new_tensor(radau.BUTCHER)
    path = torch.cat([step.dual[None], step.dual + step.h * butcher @ found.extrapolated])
    blocks = list(step.flow.network.unflatten(path).values())
    ends = step.dual.new_ones(len(units))
    rows = [blocks[layer][:, unit] for layer, unit, _ in zip(*units.lists(), strict=True)]
    if not rows:
        return ends
    along = torch.stack([row @ row[0] for row in rows])
    cubic = along @ step.dual.new_tensor(radau.STATE_BASIS)
    return roots(cubic, ends * 0, ends, torch.zeros_like(ends, dtype=torch.bool))


def _captured(mode: Mode) -> list[tuple[int, int]]:
    return [
        (layer, unit)
        for layer, units in enumerate(mode.captured)
        for unit in torch.nonzero(units)[:, 0].tolist()
    ]


def _distance_to_zero(step: Step, found: Stages, units: Pairs) -> Tensor:
    """Change of the dual that puts the incoming weights at zero, in units of the error scale."""
    blocks = list(step.flow.network.unflatten(found.dual[-1] / step.scale).values())
    sizes = [blocks[layer][unit].norm() for layer, unit, _ in zip(*units.lists(), strict=True)]
    return torch.stack(sizes) / len(step.dual) ** 0.5 if sizes else step.dual.new_zeros(0)


def release(
    flow: MirrorFlow, dual: Tensor, mode: Mode, samples: Tensor, share: Tensor, scale: Tensor
) -> tuple[Tensor, Mode, Pairs]:
    """Let go every captured unit that is pulled away from zero."""
    freed = []
    for layer, unit in _captured(mode):
        theta = flow.potential.inverse_gradient(dual)
        value, direction, edges = capture.pull(flow, theta, samples, share, layer, unit)
        if value > -capture.LOOSE:
            size = list(flow.network.unflatten(scale).values())[layer][unit].min()
            dual, mode = capture.free(flow, dual, mode, layer, unit, 1e-3 * size * direction)
            along = [(layer, unit, sample) for sample in edges.tolist()]
            dual, mode, _ = enter(flow, dual, mode, Pairs.of(along, dual.device))
            freed.append((layer, unit, -1))
    return dual, mode, Pairs.of(freed, dual.device)


def overshoot(step: Step, found: Stages, pairs: Pairs) -> Tensor:
    """Change of the dual that takes each pair back to its kink, in units of the error scale."""
    theta = found.theta[-1]
    pattern = [on[pairs.sample] for on in step.mode.pattern]
    normals = pair_normals(step.flow, theta, step.x, pairs, pattern)
    squared = (normals.square() * metric(step.flow, theta)).sum(-1)
    value = pairs.gather([pre[-1] for pre in found.preactivations])
    size = (normals / step.scale).square().mean(-1).sqrt()
    return (value / squared).abs() * size


def enter(flow: MirrorFlow, dual: Tensor, mode: Mode, pairs: Pairs) -> tuple[Tensor, Mode, Pairs]:
    """Begin to slide along ``pairs``: the new mode, the dual put on all sliding kinks, who entered.

    A pair whose normal depends on those already slid along is left where it is.
    """
    entered = pairs[:0]
    x, theta = flow.dataset.x, flow.potential.inverse_gradient(dual)
    slides = mode.slides
    for k in range(len(pairs)):
        candidate = slides + pairs[k : k + 1]
        pattern = [on[candidate.sample] for on in candidate.mark(mode.pattern, False)]
        normals = pair_normals(flow, theta, x, candidate, pattern)
        gram = (normals * metric(flow, theta)) @ normals.T
        new = gram[-1, -1]
        if len(slides):
            new = new - gram[-1, :-1] @ torch.linalg.solve(gram[:-1, :-1], gram[:-1, -1])
        if float(new) > DEPENDENT * float(gram[-1, -1]):
            slides, entered = candidate, entered + pairs[k : k + 1]
    mode = Mode(slides.mark(mode.pattern, False), slides, mode.captured)
    return snap(flow, dual, mode), mode, entered


def snap(flow: MirrorFlow, dual: Tensor, mode: Mode) -> Tensor:
    """The dual moved least in D onto the kinks slid along; keeps the balance to second order."""
    if len(mode.slides) == 0:
        return dual
    for _ in range(2):
        theta = flow.potential.inverse_gradient(dual)
        x, slides = flow.dataset.x, mode.slides
        pattern = [on[slides.sample] for on in mode.pattern]
        normals = pair_normals(flow, theta, x, slides, pattern)
        pre = slides.gather(flow.network.forward(theta, x, mode.pattern).preactivations)
        gram = (normals * metric(flow, theta)) @ normals.T
        dual = dual - torch.linalg.solve(gram, pre) @ normals
    return dual


def leave(mode: Mode, coefficients: Tensor) -> tuple[Mode, Pairs, Pairs]:
    """End the sliding of pairs whose coefficient has left [0, 1]; who goes off, who goes on."""
    off, on = coefficients <= 0, coefficients >= 1
    switched_on = mode.slides[on]
    pattern = switched_on.mark(mode.pattern, True)
    return Mode(pattern, mode.slides[~(off | on)], mode.captured), mode.slides[off], switched_on
