"""One implicit step: Newton on the stage equations while the crossings inside the step settle."""

from __future__ import annotations

import torch
from torch import Tensor

from mirrorode.flow import radau, tracking
from mirrorode.flow.kinks import Pairs, Rows, divide
from mirrorode.flow.step import Step, has_kinks
from mirrorode.flow.system import Iterate, Stages, System
from mirrorode.problem.homogeneous import Forward

MAX_ITERATIONS = 12
IN_SIGHT = 1e5  # Newton update at which an event ahead is believed; the shorter step checks it
BELIEVED = 30.0  # Newton update from which the observed rate of contraction is believed
CROWDED = 4  # crossings a sample in one step, beyond which a guess is wild
REUSE_ABOVE = 60  # samples; below, a fresh Newton matrix is cheaper than a lost digit


def solve(step: Step, dual: Tensor, u: Tensor, *, patient: bool, frozen: bool) -> Stages | None:
    """Newton on the stage equations from a guess (3, n), (3, K); None where it diverges.

    Unless ``patient``, the iteration stops early, unconverged, when a pair is seen to arrive at its
    kink to stay, which will shorten the step anyway. If ``frozen``, no crossing is followed: every
    pair that reaches its kink counts as arriving there.
    """
    it = _guess(step, dual, u, frozen)
    factors, previous, growing = None, float("inf"), 0
    rows, forward = _lay_out(step, it, None)
    for iteration in range(1, MAX_ITERATIONS + 1):
        if len(it.flips) > CROWDED * len(step.x):
            return None
        system = System(step, it, rows, forward)
        if factors is None or len(step.x) <= REUSE_ABOVE:
            factors = system.factorise()
        size, it.dual, it.u, it.nu = system.update(factors)
        growing = growing + 1 if size > 0.9 * previous else 0
        if not size < 1e12 or growing == 3:
            return None
        after = _forward(step, it.dual, rows)
        kinked = tracking.update(step, it, system, after, frozen)
        # What is left after an update is its size times the rate of contraction.
        left = size
        if iteration > 1 and size < min(BELIEVED, previous):
            left = size * size / previous
        if left < 1 and not kinked:
            return system.finish(it, after, iteration, converged=True)
        if not patient and size < IN_SIGHT and bool((it.arrival_times < 0.9).any()):
            return system.finish(it, after, iteration, converged=False)
        if size > 0.3 * previous:
            factors = None
        previous = size
        rows, forward = _lay_out(step, it, (rows, after))
    return None


def _lay_out(step: Step, it: Iterate, known: tuple[Rows, Forward] | None) -> tuple[Rows, Forward]:
    """The rows of the iterate, and the network on them; that of ``known`` where rows are equal."""
    rows = divide(len(step.x), step.mode.pattern, it.flips, it.times)
    if known is not None and rows.same_patterns(known[0]):
        return rows, known[1]
    return rows, _forward(step, it.dual, rows)


def _forward(step: Step, dual: Tensor, rows: Rows) -> Forward:
    theta = step.flow.potential.inverse_gradient(dual)
    step.stats.half_passes += radau.STAGES
    return step.flow.network.forward(theta, step.x[rows.sample], rows.pattern)


def _guess(step: Step, dual: Tensor, u: Tensor, frozen: bool) -> Iterate:
    none, time = Pairs.none(dual.device), dual.new_zeros(0)
    theta = step.flow.potential.inverse_gradient(dual)
    forward = step.flow.network.forward(theta, step.x)
    step.stats.half_passes += radau.STAGES
    q = step.y * forward.output
    nu = (torch.softmax(u, -1) * (u + q)).sum(-1)
    # A sample that carries no weight follows its margin; one about to carry some enters small.
    total = torch.logsumexp(u, -1, keepdim=True)
    follows = torch.minimum(nu[:, None] - q, total + torch.log(u.new_tensor(0.02)))
    u = torch.where(u < total + torch.log(u.new_tensor(0.01)), follows, u)
    flips, times = none, time
    if has_kinks(step.flow) and not frozen:
        flips, times = tracking.find(step, forward.preactivations)
    return Iterate(dual, u, nu, flips, times, none, time)
