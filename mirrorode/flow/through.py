"""Networks with too many kinks to locate: an explicit pair that steps through them.

Where a step meets one kink of millions its error estimate grows by what that kink changes, which
is little, and the step stays as long as the tolerance allows. Nothing is located and nothing is
slid along: where pairs slide, the sign-based field chatters, in steps as short as the tolerance
asks for, and the dissipation is wrong by what that costs. All that is kept of the network is ℓ and
G, from one pass up and one down.

The pair is that of Dormand and Prince in loss time, dz/dσ = G.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mirrorode.flow import dormand_prince, radau
from mirrorode.flow.dense import DenseStep
from mirrorode.flow.dormand_prince import Smooth
from mirrorode.flow.explicit import ATTEMPTS, CALM, SMALLEST, factor, first_step, step_scale
from mirrorode.flow.landing import land
from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.flow.state import Run
from mirrorode.flow.step import metric
from mirrorode.flow.stopping import StoppingRule
from mirrorode.flow.trajectory import Status

MANY = 1_000_000  # kinks from which they are stepped through
NOTE = "kinks were stepped through: {:,} pairs of a sample and a unit are too many to locate"


@dataclass(frozen=True)
class Point:
    """The flow at a dual (n,), on true signs: log(1/𝓛), G (n,) and ‖G‖²_D."""

    dual: Tensor
    loss: float
    direction: Tensor
    speed: float


@dataclass(frozen=True)
class State:
    """Where the integration stands, with the step to try next."""

    at: Point
    log_time: float = -math.inf
    h: float | None = None

    @property
    def dual(self) -> Tensor:
        """The dual, (n,)."""
        return self.at.dual

    @property
    def loss(self) -> float:
        """log(1/𝓛)."""
        return self.at.loss


@dataclass(frozen=True)
class End:
    """A step kept up to ``share`` of the smooth one."""

    share: float
    dense: DenseStep
    at: Point

    @property
    def loss(self) -> float:
        """log(1/𝓛) at the end."""
        return self.at.loss


def start(run: Run, theta0: Tensor) -> State:
    """The state at t = 0."""
    return State(evaluate(run.flow, run.flow.potential.gradient(theta0)))


def evaluate(flow: MirrorFlow, dual: Tensor) -> Point:
    """The flow at ``dual``: one evaluation."""
    theta = flow.potential.inverse_gradient(dual)
    loss, direction = flow.loss_and_field(theta)
    speed = (metric(flow, theta) * direction.square()).sum()
    return Point(dual, float(loss), direction, float(speed))


def advance(
    run: Run, state: State, rules: Sequence[StoppingRule]
) -> tuple[State, DenseStep] | Status:
    """One accepted step, beyond none of the ``rules``, or the reason why there is none."""
    first = state.at
    if not math.isfinite(first.loss) or not math.isfinite(first.speed):
        return Status.NON_FINITE
    if first.speed == 0:
        return Status.STATIONARY
    h, scale, rejected = state.h or first_step(first), step_scale(run, first.dual), False
    at = partial(evaluate, run.flow)
    for _ in range(ATTEMPTS):
        smooth = dormand_prince.take(run, at, first, h, scale)
        if smooth.error <= 1:
            break
        run.stats.rejected += 1
        h, rejected = h * factor(smooth.error, rejected=True), True
        if h < SMALLEST * run.largest_step:
            return Status.BLOCKED
    else:
        return Status.BLOCKED
    end = land(_whole(state, smooth), partial(_cut, run, state, smooth), rules)
    # A kink between the last two stages looks like stiffness, but makes no step shorter.
    calm = max(h, h * CALM / max(smooth.stiffness, 1e-300))
    grown = min(calm, h * factor(smooth.error, rejected=rejected))
    run.stats.steps += 1
    run.stats.through_kinks += 1
    run.largest_step = max(run.largest_step, end.dense.h)
    return State(end.at, end.dense.log_time_at(1.0), grown), end.dense


def _whole(state: State, smooth: Smooth[Point]) -> End:
    return End(1.0, _dense(state, smooth, 1.0, smooth.last), smooth.last)


def _cut(run: Run, state: State, smooth: Smooth[Point], share: float, _: End) -> End:
    """The step up to ``share``, on its dense output."""
    run.stats.half_passes += 2
    at = evaluate(run.flow, smooth.dual(np.array([share]))[0])
    return End(share, _dense(state, smooth, share, at), at)


def _dense(state: State, smooth: Smooth[Point], share: float, last: Point) -> DenseStep:
    """Dense output up to ``share``; what ∫‖G‖²_D misses of Δℓ is spread over the step."""
    shares = np.concatenate([[0.0], radau.NODES])
    duals = smooth.dual(share * shares)
    duals[-1] = last.dual
    passed = smooth.dissipated(share * shares)
    missed = last.loss - smooth.first.loss - passed[-1]
    loss = smooth.first.loss + passed + missed * shares
    loss[-1] = last.loss
    h, dissipated = share * smooth.h, float(passed[-1])
    return DenseStep(duals, h, state.log_time, loss, np.zeros(4), False, dissipated)
