"""The early phase of networks whose units do not separate: an explicit pair with located kinks.

While most samples carry weight and kinks come by the thousand, an implicit step over all samples
costs more than the hundred explicit ones it replaces. Steps of the Dormand–Prince pair are taken
in loss time, dz/dσ = G, on the smooth extension of the pattern at their start. Pairs that crossed
their kinks are accounted for at the end (see `switching`); where that is not exact enough the
step is cut, on its dense output, at a kink.

J. R. Dormand and P. J. Prince, *A family of embedded Runge–Kutta formulae*, 1980, as in SciPy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mirrorode.flow import dormand_prince, events, field
from mirrorode.flow.dense import DenseStep
from mirrorode.flow.dormand_prince import Smooth
from mirrorode.flow.ends import End, finish
from mirrorode.flow.landing import land
from mirrorode.flow.state import Run, State
from mirrorode.flow.stopping import StoppingRule
from mirrorode.flow.trajectory import Status

STIFF = 2.0  # h times the largest eigenvalue, of a step that stability limits
CALM = 2.6  # h times the largest eigenvalue, of the step after one
ATTEMPTS = 60  # at one step
SMALLEST = 1e-13  # of the largest step so far; below it the run is blocked


def advance(
    run: Run, state: State, rules: Sequence[StoppingRule]
) -> tuple[State, DenseStep] | Status:
    """One accepted step, beyond none of the ``rules``, or the reason why there is none."""
    state = _release(run, state)
    first = state.field or field.evaluate(run.flow, state.dual, state.mode)
    if not math.isfinite(first.loss) or not math.isfinite(first.speed):
        return Status.NON_FINITE
    if first.speed == 0:
        return Status.STATIONARY
    h = state.h or first_step(first.dual, first.direction)
    scale, rejected = step_scale(run, state.dual), False
    for _ in range(ATTEMPTS):
        smooth = dormand_prince.take(run, state.mode, first, h, scale)
        if not smooth.error <= 1:
            run.stats.rejected += 1
            h, rejected = h * _factor(smooth.error, rejected=True), True
            if h < SMALLEST * run.largest_step:
                break
            continue
        end = _keep(run, state, smooth, scale, rules)
        if end is None:
            run.stats.rejected += 1
            h, rejected = 0.3 * h, True
            continue
        grown = h * _factor(smooth.error, rejected=rejected)
        if end.share < 1 and end.error > 0:
            grown = min(grown, h * max(2 * end.share, 0.5))
        # At the edge of stability the error stays small, but fast modes ring and dissipate.
        grown = min(grown, h * CALM / max(smooth.stiffness, 1e-300))
        stiff = state.stiff + 1 if smooth.stiffness > STIFF else 0
        return replace(accept(run, state, end, grown), stiff=stiff), end.dense
    return Status.BLOCKED


def first_step(dual: Tensor, direction: Tensor) -> float:
    """A step in which the dual moves by a hundredth of its size (Hairer, Nørsett, Wanner II.4)."""
    rms = max(float(dual.square().mean().sqrt()), 1e-3)
    return 0.01 * rms / float(direction.square().mean().sqrt())


def step_scale(run: Run, dual: Tensor) -> Tensor:
    """What an error is measured by: the size of a coordinate, or of all where it is smaller.

    Weights pass through zero all the time, and a scale of their own would then choose the step.
    """
    rms = dual.square().mean().sqrt()
    return run.atol * rms.clamp(min=1.0) + run.rtol * torch.maximum(dual.abs(), rms)


def _factor(error: float, *, rejected: bool) -> float:
    if not math.isfinite(error):
        return 0.15
    return min(1.0 if rejected else 5.0, max(0.15, 0.9 * max(error, 1e-10) ** -0.2))


def _keep(
    run: Run, state: State, smooth: Smooth, scale: Tensor, rules: Sequence[StoppingRule]
) -> End | None:
    """The step up to where its kinks are accounted for and no rule is passed."""
    end = finish(run, state, smooth, scale, 1.0)
    for _ in range(12):
        if end.error <= 1:

            def cut(share: float, whole: End) -> End:
                return finish(run, state, smooth, scale, share, whole.due(share / whole.share))

            return land(end, cut, rules)
        share = _cut(end)
        if share is None:
            return None
        run.stats.rejected += 1
        end = finish(run, state, smooth, scale, end.share * share, end.due(share))
    return None


def _cut(end: End) -> float | None:
    """The last crossing up to which the error, of second order in the time, seems tolerable."""
    times = end.hits.times[end.hits.times < 1 - 1e-9]
    if len(times) == 0:
        return None
    early = times[times <= 0.8 * max(end.error, 1.0) ** -0.5]
    share = float(early.max() if len(early) else times.min())
    return share if share > 1e-9 else None


def accept(run: Run, state: State, end: End, h: float) -> State:
    """The state at the end of an accepted step."""
    at, log_time = end.behind.field, end.dense.log_time_at(1.0)
    for one in end.behind.happenings:
        run.record(one.kind, one.pairs, log_time, end.loss, one.coefficients)
    run.stats.steps += 1
    run.largest_step = max(run.largest_step, end.dense.h)
    return State(at.dual, end.behind.mode, end.loss, log_time=log_time, h=h, field=at)


def _release(run: Run, state: State) -> State:
    """Let go captured units that are pulled away from zero."""
    if not any(bool(units.any()) for units in state.mode.captured):
        return state
    at = state.field or field.evaluate(run.flow, state.dual, state.mode)
    samples = torch.arange(len(run.flow.dataset), device=state.dual.device)
    args = (run.flow, state.dual, state.mode, samples, at.share, run.scale(state.dual))
    dual, mode, freed = events.release(*args)
    run.record("release", freed, state.log_time, at.loss)
    return replace(state, dual=dual, mode=mode, field=None) if len(freed) else state
