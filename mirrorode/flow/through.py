"""Networks with too many kinks to locate, and potentials whose D is not diagonal: through kinks.

One kink of millions changes the velocity by little, and a step across thousands sees their mean.
Nothing is located and nothing is slid along: where pairs slide, the sign-based field chatters, in
steps as short as the tolerance asks for, and the dissipation is wrong by what that costs. All that
is kept of the network is ℓ and G, from one pass up and one down.

The method is that of `chebyshev` in loss time, dz/dσ = G: the flow is stiff from the start where
samples are many, and a Dormand–Prince pair was held by its stability to steps a hundred times
shorter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mirrorode.flow import chebyshev, radau
from mirrorode.flow.dense import DenseStep
from mirrorode.flow.explicit import ATTEMPTS, SMALLEST, first_step, step_scale
from mirrorode.flow.landing import land
from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.flow.state import Run
from mirrorode.flow.step import speed
from mirrorode.flow.stopping import StoppingRule
from mirrorode.flow.trajectory import Status

MANY = 1_000_000  # kinks from which they are stepped through
PROBE = 0.1  # of a step: how far the Jacobian is probed, so that kinks enter it as their mean
SAFETY = 1.2  # of the spectral radius
LOST = 0.1  # of rtol: what a step may add to the error of the dissipation, as a share of ℓ
ITERATIONS = 10  # of the power method at the first step; one a step from then on


@dataclass(frozen=True)
class Point:
    """The flow at a dual (n,), on true signs: log(1/𝓛), G (n,) and ‖G‖²_D."""

    dual: Tensor
    loss: float
    direction: Tensor
    speed: float


@dataclass(frozen=True)
class State:
    """Where it stands, with the step to try next (0 at first) and the stiffest direction known."""

    at: Point
    log_time: float = -math.inf
    h: float = 0.0
    stiffest: Tensor | None = None
    rho: float = 0.0

    @property
    def dual(self) -> Tensor:
        """The dual, (n,)."""
        return self.at.dual

    @property
    def loss(self) -> float:
        """log(1/𝓛)."""
        return self.at.loss


@dataclass(frozen=True)
class Step:
    """One step, whole: both its ends, and ∫‖G‖²_D dσ."""

    first: Point
    last: Point
    h: float
    dissipated: float

    def dual(self, share: float) -> Tensor:
        """The dual (n,) at a share of it, by cubic Hermite interpolation."""
        a, b, c, d = _hermite(share)
        ends = a * self.first.dual + b * self.last.dual
        return ends + self.h * (c * self.first.direction + d * self.last.direction)


@dataclass(frozen=True)
class End:
    """A step kept up to ``share``."""

    share: float
    dense: DenseStep
    at: Point

    @property
    def loss(self) -> float:
        """log(1/𝓛) at the end."""
        return self.at.loss


def why(flow: MirrorFlow) -> str:
    """Why kinks are not located."""
    if flow.pairs < MANY:
        return "kinks were stepped through: the potential is not separable"
    return f"kinks were stepped through: {flow.pairs:,} pairs of a sample and a unit are too many"


def start(run: Run, theta0: Tensor) -> State:
    """The state at t = 0."""
    return State(_evaluate(run, run.flow.potential.gradient(theta0)))


def _evaluate(run: Run, dual: Tensor) -> Point:
    """The flow at ``dual``: one evaluation."""
    run.stats.half_passes += 2
    theta = run.flow.potential.inverse_gradient(dual)
    loss, direction = run.flow.loss_and_field(theta)
    return Point(dual, float(loss), direction, float(speed(run.flow, theta, direction)))


def advance(
    run: Run, state: State, rules: Sequence[StoppingRule]
) -> tuple[State, DenseStep] | Status:
    """One accepted step, beyond none of the ``rules``, or the reason why there is none."""
    first = state.at
    if not math.isfinite(first.loss) or not math.isfinite(first.speed):
        return Status.NON_FINITE
    if first.speed == 0:
        return Status.STATIONARY
    scale, rejected = step_scale(run, first.dual), False
    state = replace(state, h=state.h or first_step(first.dual, first.direction))
    for _ in range(ATTEMPTS):
        state = _probe(run, state)
        h = min(state.h, chebyshev.longest(state.rho))
        step = _take(run, first, h, chebyshev.stages(h * state.rho))
        error = _error(run, step, scale)
        if error <= 1:
            break
        run.stats.rejected += 1
        rejected = True
        state = replace(state, h=h * _factor(error, rejected=True))
        if state.h < SMALLEST * run.largest_step:
            return Status.BLOCKED
    else:
        return Status.BLOCKED
    end = land(_keep(state, step, 1.0, step.last), partial(_cut, run, state, step), rules)
    run.stats.steps += 1
    run.stats.through_kinks += run.flow.pairs > 0
    run.largest_step = max(run.largest_step, end.dense.h)
    grown = h * _factor(error, rejected=rejected)
    log_time = end.dense.log_time_at(1.0)
    return replace(state, at=end.at, log_time=log_time, h=grown), end.dense


def _probe(run: Run, state: State) -> State:
    """The spectral radius for a step of size h, by the power method on differences of G."""
    at = state.at
    size = PROBE * state.h * float(at.direction.norm())
    vector, rho = state.stiffest, 0.0
    for _ in range(ITERATIONS if vector is None else 1):
        vector = at.direction if vector is None else vector
        ahead = _evaluate(run, at.dual + size / vector.norm() * vector).direction
        vector = ahead - at.direction
        rho = float(vector.norm()) / size
    return replace(state, stiffest=vector, rho=max(SAFETY * rho, 0.9 * state.rho))


def _take(run: Run, first: Point, h: float, s: int) -> Step:
    """One step of size h with s stages; the dissipation is integrated beside the dual."""
    rule = chebyshev.coefficients(s)
    before, at = first, first
    passed_before, passed = 0.0, 0.0
    for j in range(1, s + 1):
        mu, nu, kappa, gamma = rule.mu[j], rule.nu[j], h * rule.kappa[j], h * rule.gamma[j]
        dual = (1 - mu - nu) * first.dual + mu * at.dual + nu * before.dual
        dual += kappa * at.direction + gamma * first.direction
        passes = mu * passed + nu * passed_before + kappa * at.speed + gamma * first.speed
        passed_before, passed = passed, passes
        before, at = at, _evaluate(run, dual)
    return Step(first, at, h, passed)


def _error(run: Run, step: Step, scale: Tensor) -> float:
    """That of the dual, by its third derivative, and of the dissipation, in their scales."""
    first, last, h = step.first, step.last, step.h
    moved = 0.8 * (first.dual - last.dual) + 0.4 * h * (first.direction + last.direction)
    lost = -0.8 * step.dissipated + 0.4 * h * (first.speed + last.speed)
    lost = abs(lost) / (LOST * run.rtol * max(1.0, abs(last.loss)))
    size = float((moved / scale).square().mean().sqrt())
    return max(size, lost) if math.isfinite(size) and math.isfinite(lost) else math.inf


def _factor(error: float, *, rejected: bool) -> float:
    if not math.isfinite(error):
        return 0.15
    return min(1.0 if rejected else 5.0, max(0.15, 0.8 * max(error, 1e-6) ** (-1 / 3)))


def _cut(run: Run, state: State, step: Step, share: float, _: End) -> End:
    """The step up to ``share``, on its dense output."""
    return _keep(state, step, share, _evaluate(run, step.dual(share)))


def _keep(state: State, step: Step, share: float, last: Point) -> End:
    """Dense output up to ``share``, where the flow is ``last``; cubic, as the step's."""
    first, h = step.first, share * step.h
    kept = Step(first, last, h, 0.0)
    duals = torch.stack([first.dual, *(kept.dual(node) for node in radau.NODES)])
    loss = [first.loss]
    for node in radau.NODES:
        a, b, c, d = _hermite(node)
        loss.append(a * first.loss + b * last.loss + h * (c * first.speed + d * last.speed))
    _, whole, c, d = _hermite(share)
    passed = whole * step.dissipated + step.h * (c * first.speed + d * step.last.speed)
    dense = DenseStep(duals, h, state.log_time, np.array(loss), np.zeros(4), False, passed)
    return End(share, dense, last)


def _hermite(share: float) -> tuple[float, float, float, float]:
    """Weights of the values at start and end, and of h times the slopes there."""
    rest = 1 - share
    value = share * share * (1 + 2 * rest)
    return 1 - value, value, share * rest * rest, -share * share * rest
