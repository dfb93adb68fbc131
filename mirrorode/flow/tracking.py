"""Which kinks an iterate of the stage equations crosses, and which it reaches to stay."""

from __future__ import annotations

import torch
from torch import Tensor

from mirrorode.flow import radau
from mirrorode.flow.kinks import Pairs, crossings
from mirrorode.flow.normals import of_pairs, solve_gram
from mirrorode.flow.step import Step, has_kinks, jumps
from mirrorode.flow.system import Iterate, System, at_nodes
from mirrorode.problem.homogeneous import Forward, Pattern

STEADY = 0.01  # of a step: crossing times that move less do not keep Newton going


def find(step: Step, pre: list[Tensor]) -> tuple[Pairs, Tensor]:
    """The crossings of pre-activations ``pre`` (3, K, units) at the nodes, and their times."""
    values = [torch.cat([a[None], b]) for a, b in zip(step.preactivations, pre, strict=True)]
    return crossings(step.mode.pattern, values, step.mode.held(step.flow.network.fan_in))


def update(step: Step, it: Iterate, system: System, after: Forward, frozen: bool) -> bool:
    """Bring the crossings of the updated iterate up to date; True if they have changed."""
    if not has_kinks(step.flow):
        return False
    pre = [at_nodes(value, system.rows) for value in after.preactivations]
    at_end = [value[-1].clone() for value in pre]
    _extend(step, it, system, pre)
    found, times = find(step, pre)
    staying = torch.ones_like(times, dtype=torch.bool)
    if not frozen:
        staying = _staying(step, system, found, times, at_end)
    old, old_times = it.flips, it.times
    changed = len(it.arrivals) != int(staying.sum())
    it.flips, it.times = found[~staying], times[~staying]
    it.arrivals, it.arrival_times = found[staying], times[staying]
    if changed or len(old) != len(it.flips):
        return True
    same = all(bool((a == b).all()) for a, b in zip(old.fields, it.flips.fields, strict=True))
    return not (same and bool(((old_times - it.times).abs() < STEADY).all()))


def _extend(step: Step, it: Iterate, system: System, pre: list[Tensor]) -> None:
    """Take out of each crossing pair's own pre-activation, in place, what its crossing has added.

    What is left is smooth across the crossing, so that its root does not depend on the time
    assumed for it; without this the times of slow crossings oscillate from sweep to sweep.
    """
    if len(it.flips) == 0:
        return
    push = step.y[it.flips.sample] * it.flips.gather(system.signals)
    jump, _, _ = _sides(step, system, it.flips, push)
    nodes = torch.as_tensor(radau.NODES, dtype=it.times.dtype, device=it.times.device)[:, None]
    inside = radau.evaluate(radau.SLOPE_INTEGRAL, torch.maximum(nodes, it.times))
    inside = inside - radau.evaluate(radau.SLOPE_INTEGRAL, it.times)
    sign = torch.where(it.flips.gather([on.to(it.u) for on in step.mode.pattern]) > 0, -1.0, 1.0)
    added = step.h * sign * torch.einsum("jfk,kf->jf", inside, jump)
    code = torch.stack(it.flips.fields)
    _, inverse, count = torch.unique(code, dim=1, return_inverse=True, return_counts=True)
    once = count[inverse] == 1
    for layer, value in enumerate(pre):
        here = (it.flips.layer == layer) & once
        value[:, it.flips.sample[here], it.flips.unit[here]] -= added[:, here]


def _staying(
    step: Step, system: System, pairs: Pairs, times: Tensor, at_end: list[Tensor]
) -> Tensor:
    """Which of the pairs reach a kink that attracts from both sides: r_off > 0 > r_on there.

    A pair that has crossed and is back at the end of the step, by its pre-activation ``at_end``,
    is one of them too.
    """
    stays = torch.zeros(len(pairs), dtype=torch.bool, device=times.device)
    push = step.y[pairs.sample] * pairs.gather(system.signals)
    convex = (push < 0).all(0)
    if not bool(convex.any()):
        return stays
    index = torch.nonzero(convex)[:, 0]
    off, on = normal_velocities(step, system, pairs[index], push[:, index])
    basis = radau.evaluate(radau.SLOPE_BASIS, times[index]).T
    attracts = ((basis * off).sum(0) > 0) & ((basis * on).sum(0) < 0)
    started_on = pairs[index].gather([on.to(times) for on in step.mode.pattern]) > 0
    stays[index] = attracts | ((pairs[index].gather(at_end) > 0) == started_on)
    return stays


def normal_velocities(
    step: Step, system: System, pairs: Pairs, push: Tensor
) -> tuple[Tensor, Tensor]:
    """r_off and r_on of the pairs at the three nodes, each (3, F).

    ``push`` is y_i times the signal; switching the pair on adds μ_i·push·jump times its normal
    to the velocity of the dual.
    """
    theta = system.theta
    jump, pattern, is_on = _sides(step, system, pairs, push)
    velocity = system.inverse * system.velocity()
    current = pairs.gather(step.flow.network.rates(theta, velocity, step.x, pattern))
    return current - is_on * jump, current + (1 - is_on) * jump


def _sides(
    step: Step, system: System, pairs: Pairs, push: Tensor
) -> tuple[Tensor, Pattern, Tensor]:
    """r_on − r_off of the pairs at the nodes (3, F), the pattern there, and which pairs are on."""
    theta = system.theta
    pattern = [at_nodes(on.expand(3, *on.shape), system.rows) for on in system.rows.pattern]
    both = pairs + step.mode.slides
    at_pairs = [on[:, both.sample] for on in pattern]
    found = of_pairs(step.flow.network, theta, step.x, both, at_pairs)
    gram, count = found.gram(system.inverse), len(pairs)
    squared = gram.diagonal(dim1=-2, dim2=-1)[..., :count]
    if len(both) > count:
        # Less what the sliding kinks take of it.
        mixed = gram[..., count:, :count]
        tied = solve_gram(gram[..., count:, count:], mixed)
        squared = squared - (mixed * tied).sum(-2)
    jump = torch.exp(system.u[:, pairs.sample]) * push * jumps(step.flow, pairs) * squared
    return jump, pattern, pairs.gather([on.to(theta) for on in pattern])
