"""The integrator of networks whose units do not separate, from the start to any loss.

While most samples carry weight its steps are explicit (see `explicit`). Then they are implicit
collocation in the dual: below log(1/𝓛) = 2 in loss time, dσ = 𝓛 dt, where dz/dσ = G is autonomous
and free of overflow; above it in log ℓ, which prescribes the loss and lands on any value exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mirrorode.flow import capture, events, explicit, field
from mirrorode.flow.attempt import Attempt, try_step
from mirrorode.flow.dense import DenseStep
from mirrorode.flow.events import Ending
from mirrorode.flow.field import Field
from mirrorode.flow.kinks import Pairs
from mirrorode.flow.landing import distance, share_to
from mirrorode.flow.state import NEGLIGIBLE, Point, Run, State, look
from mirrorode.flow.state import start as start
from mirrorode.flow.step import Mode, has_kinks
from mirrorode.flow.stopping import StoppingRule
from mirrorode.flow.trajectory import Status
from mirrorode.problem.homogeneous import Pattern

STUCK = 15  # explicit steps in a row that stability limits, after which it is for the implicit ones
FEW = (
    100  # samples that matter, below which implicit steps are cheaper (measured on 100 × 100 units)
)
LATE = 2.0  # log(1/𝓛) from which the loss itself is the clock,
EAGER = 1.0  # and from which it can be, where explicit steps have become dear
CONSISTENT = 1e-8  # step that lets the multipliers settle after the active kinks changed
INSTANT = 1e-11  # of the largest step so far; what happens in so short a step happens at its end
WILD = 1e-3  # share of a step below which an event seen by an unconverged iterate is not believed
TINY = 1e-290  # and so it is below this
ROUND_OFF = 1e-12  # of log t: what is closer in time happens at once
SOON = (
    100  # steps of a length at which none is found: a unit that takes longer to vanish is not why
)
SMALLEST = 1e-13  # of the largest step so far; below it the run is blocked
_GROWTH = [5.0, 5.0, 5.0, 4.0, 3.0, 2.0, 1.5, 1.2, 1.0, 0.8, 0.6, 0.5, 0.5]
"""Largest growth of the step after so many Newton iterations: a diverging attempt costs most."""


def advance(
    run: Run, state: State, rules: Sequence[StoppingRule]
) -> tuple[State, DenseStep] | Status:
    """One accepted step, beyond none of the ``rules``, or the reason why there is none."""
    outcome = _advance(run, state, rules)
    if isinstance(outcome, Status):
        return outcome
    state, dense = outcome
    return state, replace(dense, duals=run.shelf.keep(dense.duals))


def _advance(
    run: Run, state: State, rules: Sequence[StoppingRule]
) -> tuple[State, DenseStep] | Status:
    """Explicit while it is cheaper, and implicit from then on."""
    if not state.late and has_kinks(run.flow):
        at = state.field or field.evaluate(run.flow, state.dual, state.mode)
        if not _hand_over(state, at):
            outcome = explicit.advance(run, replace(state, field=at), rules)
            if outcome is not Status.BLOCKED:
                return outcome
    outcome = _implicit(run, state, rules)
    if outcome is Status.BLOCKED:
        # Newton found no step: once more, with a tenth of the tolerance.
        largest = 1e-3 * run.largest_step
        sharper = replace(run, rtol=max(0.1 * run.rtol, 1e-12), largest_step=largest)
        outcome = _implicit(sharper, replace(state, last=None, h=None), rules)
        run.largest_step = max(run.largest_step, sharper.largest_step)
    if outcome is Status.BLOCKED and state.late and has_kinks(run.flow):
        # Several kinks at one place: an explicit step, which needs no multipliers, leads past them.
        outcome = explicit.advance(run, replace(state, late=False, h=None, last=None), rules)
    return outcome


def _implicit(
    run: Run, state: State, rules: Sequence[StoppingRule]
) -> tuple[State, DenseStep] | Status:
    """One accepted step of the implicit method."""
    state, point = _prepare(run, state)
    run.complete(state.mode.slides, point.coefficients)
    if not math.isfinite(point.loss) or not math.isfinite(point.speed):
        return Status.NON_FINITE
    if point.speed == 0:
        return Status.STATIONARY
    wanted = _first_step(state, point) if state.h is None else state.h
    h = min(wanted, distance(point.loss, rules)) if state.late else wanted
    due: Ending | None = None
    guess, patient, frozen, landings = None, False, False, 0
    for _ in range(100):
        attempt = try_step(run, state, point, h, guess, patient=patient, frozen=frozen)
        if attempt is None or (attempt.stages.converged and not attempt.error <= 1):
            run.stats.rejected += 1
            if attempt is None and state.late and not frozen:
                # Late, a crossing changes the multipliers at once, not only their slopes, and
                # Newton may find no step across it: go up to it, and start again behind it.
                frozen, guess = True, None
                continue
            factor = 0.3 if attempt is None else min(0.8, _step_factor(attempt.error))
            h = wanted = h * factor
            due = guess = None
            held = _captured_at_once(run, state, point, h) if attempt is None else None
            if held is not None:
                return _implicit(run, held, rules)
            if h <= max(SMALLEST * run.largest_step, TINY):
                break
        else:
            end = events.ending(attempt.step, attempt.stages, attempt.point.samples)
            held = _back_at_once(run, state, attempt, h) if state.late else None
            if held is not None:
                return _implicit(run, held, rules)
            landing = share_to(attempt.dense, rules)
            if landing < end.share:
                # The noise of log t in a step is relative to what the step adds to it: from the
                # third try on, a last short step does better than this one.
                landings += 1
                landing *= 0.99 if landings > 2 else 1.0
            if not attempt.stages.converged and not WILD < end.share < 0.95:
                # No event, or one at once that an iterate far from the path may have made up.
                share = 1.0 if end.share >= 0.95 else 0.3
                h, guess, patient = h * share, (attempt, share), True
                continue
            kept = min(end.share, landing) == 1 or (due and end.share > 1 - 1e-6)
            if kept or h < INSTANT * run.largest_step:
                grown = h * min(_step_factor(attempt.error), _GROWTH[attempt.stages.iterations])
                state.h = grown if h >= wanted else max(wanted, grown)
                return accept(run, state, attempt, [due, end] if due else [end]), attempt.dense
            run.stats.rejected += 1
            due = end if end.share <= landing else None
            share = min(end.share, landing)
            h, guess, patient = h * share, (attempt, share), True
            if h <= TINY:
                break
    return Status.BLOCKED


def _hand_over(state: State, at: Field) -> bool:
    """Whether an implicit step over the samples that matter is now cheaper than explicit ones."""
    matter = int((at.share > math.exp(-NEGLIGIBLE) * at.share.max()).sum())
    return matter < FEW and (at.loss >= EAGER or state.stiff >= STUCK)


def _captured_at_once(run: Run, state: State, point: Point, h: float) -> State | None:
    """The state with units held that come to zero where they stand, if there are any."""
    loss_time = h * point.loss / point.speed if state.late else h
    vanishing = events.vanishing(run, state, point, within=SOON * loss_time)
    if len(vanishing) == 0:
        return None
    run.record("capture", vanishing, state.log_time, point.loss)
    dual, mode = capture.hold(run.flow, state.dual, state.mode, vanishing)
    return replace(state, dual=dual, mode=mode, last=None, h=h, settle=state.late)


def _back_at_once(run: Run, state: State, attempt: Attempt, h: float) -> State | None:
    """The state that slides along kinks where it was from the start and is pushed back, if any."""
    arrivals, times = attempt.stages.arrivals, attempt.stages.arrival_times
    back = _globally(arrivals[times * h < INSTANT * run.largest_step], attempt.point.samples)
    if len(back) == 0:
        return None
    dual, mode, entered, _ = events.enter(run.flow, state.dual, state.mode, back, late=True)
    if len(entered) == 0:
        return None
    run.record("slide", entered, state.log_time, attempt.point.loss)
    return replace(state, dual=dual, mode=mode, last=None, h=h, settle=True, stay=True)


def _prepare(run: Run, state: State) -> tuple[State, Point]:
    """The point at the start of a step, in a mode that holds there and with settled weights."""
    point = look(run, state)
    if not state.late and point.loss >= (EAGER if has_kinks(run.flow) else LATE):
        # From loss time to log ℓ: dx = d log ℓ = ‖G‖²_D/ℓ dσ.
        h = None if state.h is None else state.h * point.speed / point.loss
        state, run.largest_step = replace(state, late=True, h=h, last=None), h or 0.0
    state, point = _settle(run, state, point)
    for _ in range(0 if state.stay else len(state.mode.slides)):
        alone = _turn(run, state, point.coefficients)
        mode, off, on = events.leave(state.mode, point.coefficients, alone)
        if len(off) + len(on) == 0:
            break
        sides = [0.0] * len(off) + [1.0] * len(on)
        run.record("exit", off + on, state.log_time, point.loss, sides)
        state = replace(state, mode=mode, last=None, settle=state.late)
        state, point = _settle(run, state, look(run, state))
    if any(bool(units.any()) for units in state.mode.captured):
        share = torch.softmax(point.log_weights[point.samples], 0)
        args = (run.flow, state.dual, state.mode, point.samples, share, run.scale(state.dual))
        dual, mode, freed = events.release(*args)
        if len(freed):
            run.record("release", freed, state.log_time, point.loss)
            state = replace(state, dual=dual, mode=mode, last=None, settle=state.late)
            state, point = _settle(run, state, look(run, state))
    return state, point


def _turn(run: Run, state: State, coefficients: Tensor) -> int | None:
    """Which of the pairs that would leave goes alone, where one has come back at this instant.

    Pairs that leave together can push each other back, for ever. Going one at a time, each time
    another first, they meet the one set of sliding pairs that holds.
    """
    left, back = 0, set()
    for event in reversed(run.events):
        if state.log_time - event.log_time > ROUND_OFF * max(1.0, abs(state.log_time)):
            break
        left += event.kind == "exit"
        if event.kind == "slide":
            back.add((event.layer, event.unit, event.sample))
    outside = ((coefficients - 0.5).abs() - 0.5 >= events.MARGIN).tolist()
    leaving = zip(*state.mode.slides.lists(), strict=True)
    again = any(pair in back for pair, out in zip(leaving, outside, strict=True) if out)
    return left if again else None


def _settle(run: Run, state: State, point: Point) -> tuple[State, Point]:
    """The multipliers behind a change of the active kinks, from a step of no length."""
    if not state.settle:
        return state, point
    attempt = try_step(run, replace(state, last=None), point, CONSISTENT)
    if attempt is not None:
        weights = point.log_weights.clone()
        weights[attempt.point.samples] = attempt.stages.log_mu[2]
        state = replace(state, log_weights=weights, nu=float(attempt.stages.nu[2]))
        point = look(run, state)
    return replace(state, settle=False), point


def _first_step(state: State, point: Point) -> float:
    h = explicit.first_step(state.dual, point.direction)
    return h * point.speed / point.loss if state.late else h


def _step_factor(error: float) -> float:
    if not math.isfinite(error):
        return 0.15
    return min(5.0, max(0.15, 0.9 * max(error, 1e-12) ** -0.25))


def accept(run: Run, state: State, attempt: Attempt, endings: list[Ending]) -> State:
    """The state at the end of an accepted step."""
    found, dense, samples = attempt.stages, attempt.dense, attempt.point.samples
    log_time, loss = dense.log_time_at(1.0), float(dense.log_inverse_loss(1.0))
    run.record("cross", _globally(found.flips, samples), log_time, loss)
    mode = replace(state.mode, pattern=_pattern_after(run, state, attempt))
    dual, mode, changed = _apply(run, attempt, state.mode.pattern, mode, endings, log_time, loss)
    if not state.late and (changed or len(mode.slides)):
        # The dual has been put on the kinks slid along.
        loss = float(run.flow.log_inverse_loss(run.flow.potential.inverse_gradient(dual)))
    weights = dual.new_full((len(run.flow.dataset),), math.nan)
    weights[samples] = found.log_mu[2]
    run.stats.steps += 1
    run.largest_step = max(run.largest_step, attempt.step.h)
    settle = changed and state.late
    last = None if settle else (dense.duals, attempt.step.h)
    return State(
        dual, mode, loss, weights, float(found.nu[2]), log_time, state.h, last, state.late,
        settle, stiff=state.stiff,
    )  # fmt: skip


def _pattern_after(run: Run, state: State, attempt: Attempt) -> Pattern:
    """The true pattern at the end of a step, but for pairs whose kinks are held."""
    network, found, samples = run.flow.network, attempt.stages, attempt.point.samples
    pre = network.forward(found.theta[2], run.flow.dataset.x).preactivations
    run.stats.half_passes += 1
    pattern = [
        torch.where(hold, old, value > 0)
        for hold, old, value in zip(
            state.mode.held(network.fan_in), state.mode.pattern, pre, strict=True
        )
    ]
    # At a kink that was crossed just now the sign is round-off; there the crossing decides.
    crossed = found.flips[events.overshoot(attempt.step, found, found.flips) < 1e-6]
    after = [on[found.rows.at_node[2]] for on in found.rows.pattern]
    decided = crossed.gather([on.to(found.theta) for on in after]) > 0
    for value in (False, True):
        pattern = _globally(crossed[decided == value], samples).mark(pattern, value)
    return pattern


def _apply(
    run: Run,
    attempt: Attempt,
    before: Pattern,
    mode: Mode,
    endings: list[Ending],
    log_time: float,
    loss: float,
) -> tuple[Tensor, Mode, bool]:
    """What happens at the end of a step: the dual, the mode, and whether it has changed."""
    flow, found, samples = run.flow, attempt.stages, attempt.point.samples
    dual = found.dual[2]
    captures = _union([end.captures for end in endings])
    if len(captures):
        dual, mode = capture.hold(flow, dual, mode, captures)
        run.record("capture", captures, log_time, loss)
    arrivals = _union([end.arrivals for end in endings])
    # What an attempt that had not converged saw arrive may not be there.
    arrivals = arrivals[events.overshoot(attempt.step, found, arrivals) <= events.SOFT]
    entered = arrivals[:0]
    arrivals = _globally(arrivals, samples)
    crossing = events.must_cross(flow, dual, mode, arrivals)
    if bool(crossing.any()):
        mode = events.cross(mode, before, arrivals[crossing])
        run.record("cross", arrivals[crossing], log_time, loss)
    if len(mode.slides) or len(arrivals):
        dual, mode, entered, _ = events.enter(
            flow, dual, mode, arrivals[~crossing], late=attempt.step.clock.follows > 0
        )
        run.record("slide", entered, log_time, loss)
    return dual, mode, len(captures) + len(entered) + int(crossing.sum()) > 0


def _globally(pairs: Pairs, samples: Tensor) -> Pairs:
    return replace(pairs, sample=samples[pairs.sample])


def _union(several: list[Pairs]) -> Pairs:
    """The pairs of all without repetition."""
    fields = zip(*(pairs.fields for pairs in several), strict=True)
    return Pairs(*torch.unique(torch.stack([torch.cat(field) for field in fields]), dim=1))
