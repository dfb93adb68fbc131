"""The integrator of the project: implicit collocation in the dual, from the start to any loss.

One method serves all phases; only the clock changes. Below log(1/𝓛) = 2 a step is taken in loss
time, dσ = 𝓛 dt, where dz/dσ = G is autonomous and free of overflow; above it in log ℓ, which
prescribes the loss and lands on any value of it exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from mirrorode.flow import capture, events, radau, stages
from mirrorode.flow.dense import DenseStep
from mirrorode.flow.events import Ending
from mirrorode.flow.kinks import Pairs
from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.flow.step import Clock, Mode, Step, metric, slide_coefficients
from mirrorode.flow.stopping import LogInverseLoss, StoppingRule
from mirrorode.flow.system import Stages
from mirrorode.flow.trajectory import Event, Stats, Status

LATE = 2.0  # log(1/𝓛) from which the loss itself is the clock
NEGLIGIBLE = 32.0  # samples lighter than e⁻³² of the heaviest do not enter a step
CONSISTENT = 1e-8  # step that lets the multipliers settle after the active kinks changed
SMALLEST = 1e-13  # of the largest step so far; below it the run is blocked
FAR = (
    4.0  # step ratio beyond which the last collocation polynomial is a worse guess than its tangent
)
_GROWTH = [5.0, 5.0, 5.0, 4.0, 3.0, 2.0, 1.5, 1.2, 1.0, 0.8, 0.6, 0.5, 0.5]
"""Largest growth of the step after so many Newton iterations: a diverging attempt costs most."""


@dataclass
class State:
    """Where the integration stands: the dual, the smooth mode, the log weights and log t."""

    dual: Tensor
    mode: Mode
    log_weights: Tensor | None = None
    known: Tensor | None = None
    nu: float = 0.0
    log_time: float = -math.inf
    h: float | None = None
    last: tuple[Tensor, float] | None = None  # duals (4, n) and h of the previous step
    late: bool = False
    settle: bool = False


@dataclass(frozen=True)
class Point:
    """The flow at the start of a step."""

    theta: Tensor
    loss: float
    log_weights: Tensor
    samples: Tensor
    direction: Tensor
    speed: float
    coefficients: Tensor
    preactivations: list[Tensor]


@dataclass
class Run:
    """One integration: its flow, tolerances, and what it has counted."""

    flow: MirrorFlow
    rtol: float
    atol: float
    stats: Stats = field(default_factory=Stats)
    events: list[Event] = field(default_factory=list)
    largest_step: float = 0.0

    def record(self, kind: str, pairs: Pairs, log_time: float, loss: float) -> None:
        """Write one event a pair."""
        self.stats.events += len(pairs)
        self.stats.slides += len(pairs) if kind == "slide" else 0
        for layer, unit, sample in zip(*pairs.lists(), strict=True):
            self.events.append(Event(kind, log_time, loss, layer, unit, sample))

    def scale(self, dual: Tensor) -> Tensor:
        """What an error in the dual is measured by, coordinate by coordinate."""
        rms = dual.square().mean().sqrt().clamp(min=1.0)
        return self.atol * rms + self.rtol * dual.abs()


@dataclass(frozen=True)
class Attempt:
    """One attempted step with its verdict: an error above 1 rejects it."""

    step: Step
    point: Point
    stages: Stages
    dense: DenseStep
    error: float


def start(flow: MirrorFlow, theta0: Tensor) -> State:
    """The state at t = 0, on the true pattern."""
    pattern = flow.network.forward(theta0, flow.dataset.x).pattern
    captured = [torch.zeros(on.shape[1], dtype=torch.bool, device=on.device) for on in pattern]
    mode = Mode(pattern, Pairs.none(theta0.device), captured)
    return State(flow.potential.gradient(theta0), mode)


def advance(
    run: Run, state: State, rules: Sequence[StoppingRule]
) -> tuple[State, DenseStep] | Status:
    """One accepted step, beyond none of the ``rules``, or the reason why there is none."""
    state, point = _prepare(run, state)
    if not math.isfinite(point.loss) or not math.isfinite(point.speed):
        return Status.NON_FINITE
    if point.speed == 0:
        return Status.STATIONARY
    wanted = _first_step(state, point) if state.h is None else state.h
    h = min(wanted, _distance(state, point, rules))
    due: Ending | None = None
    guess, patient = None, False
    for _ in range(100):
        attempt = try_step(run, state, point, h, guess, patient=patient)
        if attempt is None or (attempt.stages.converged and not attempt.error <= 1):
            run.stats.rejected += 1
            factor = 0.3 if attempt is None else min(0.8, _step_factor(attempt.error))
            h = wanted = h * factor
            due = guess = None
            if h < SMALLEST * run.largest_step:
                break
        else:
            end = events.ending(attempt.step, attempt.stages, point.samples)
            landing = _share_to(attempt.dense, rules)
            if not attempt.stages.converged and end.share > 0.95:
                patient, guess = True, (attempt, 1.0)
                continue
            if min(end.share, landing) == 1 or (due and end.share > 1 - 1e-6):
                grown = h * min(_step_factor(attempt.error), _GROWTH[attempt.stages.iterations])
                state.h = grown if h >= wanted else max(wanted, grown)
                return accept(run, state, attempt, [due, end] if due else [end]), attempt.dense
            run.stats.rejected += 1
            due = end if end.share <= landing else None
            share = min(end.share, landing)
            h, guess, patient = h * share, (attempt, share), True
    return Status.BLOCKED


def _prepare(run: Run, state: State) -> tuple[State, Point]:
    """The point at the start of a step, in a mode that holds there and with settled weights."""
    point = look(run, state)
    if not state.late and point.loss >= LATE:
        # From loss time to log ℓ: dx = d log ℓ = ‖G‖²_D/ℓ dσ.
        h = None if state.h is None else state.h * point.speed / point.loss
        state = replace(state, late=True, h=h, last=None)
    for _ in range(len(state.mode.slides)):
        mode, off, on = events.leave(state.mode, point.coefficients)
        if len(off) + len(on) == 0:
            break
        run.record("exit", off + on, state.log_time, point.loss)
        state = replace(state, mode=mode, last=None, settle=state.late)
        point = look(run, state)
    if any(bool(units.any()) for units in state.mode.captured):
        share = torch.softmax(point.log_weights[point.samples], 0)
        args = (run.flow, state.dual, state.mode, point.samples, share, run.scale(state.dual))
        dual, mode, freed = events.release(*args)
        if len(freed):
            run.record("release", freed, state.log_time, point.loss)
            state = replace(state, dual=dual, mode=mode, last=None, settle=state.late)
            point = look(run, state)
    if state.settle:
        attempt = try_step(run, replace(state, last=None), point, CONSISTENT)
        if attempt is not None:
            weights = point.log_weights.clone()
            weights[point.samples] = attempt.stages.log_mu[2]
            state = replace(state, log_weights=weights, nu=float(attempt.stages.nu[2]))
            point = look(run, state)
        state = replace(state, settle=False)
    return state, point


def look(run: Run, state: State) -> Point:
    """Evaluate the flow at the state, on its mode."""
    flow, data = run.flow, run.flow.dataset
    theta = flow.potential.inverse_gradient(state.dual)
    forward = flow.network.forward(theta, data.x, state.mode.pattern)
    gradient, signals = flow.network.backward(forward)
    run.stats.half_passes += 2
    q = data.y * forward.output
    u = (
        -q
        if state.log_weights is None
        else torch.where(state.known, state.log_weights, state.nu - q)
    )
    matters = u > u.max() - NEGLIGIBLE
    matters[state.mode.slides.sample] = True
    samples = torch.nonzero(matters)[:, 0]
    rows = data.y[samples, None] * gradient[samples]
    pre = [value[samples] for value in forward.preactivations]
    step = _fixed(run, state, samples, pre, u[:0], 1.0, Clock(0.0, theta.new_zeros(3)))
    share = torch.softmax(u[samples], 0)
    free = share @ rows
    direction = step.project(theta, free[None])[0]
    speed = (metric(flow, theta) * direction.square()).sum()
    local = [signal[samples] for signal in signals]
    coefficients = slide_coefficients(step, theta, share, free, local)
    loss, speed = torch.stack([-torch.logsumexp(-q, 0), speed]).tolist()
    return Point(theta, loss, u, samples, direction, speed, coefficients, pre)


def _fixed(
    run: Run,
    state: State,
    samples: Tensor,
    pre: list[Tensor],
    coefficients: Tensor,
    h: float,
    clock: Clock,
) -> Step:
    data = run.flow.dataset
    return Step(
        run.flow, data.x[samples], data.y[samples], state.mode.restrict(samples), clock, h,
        state.dual, pre, coefficients, run.scale(state.dual),
        min(1e-3, max(10 * run.rtol, 1e-7)), run.stats,
    )  # fmt: skip


def _first_step(state: State, point: Point) -> float:
    """A step in which the dual moves by a hundredth of its size (Hairer, Nørsett, Wanner II.4)."""
    rms = float(state.dual.square().mean().sqrt())
    h = 0.01 * max(rms, 1e-3) / float(point.direction.square().mean().sqrt())
    return h * point.speed / point.loss if state.late else h


def _distance(state: State, point: Point, rules: Sequence[StoppingRule]) -> float:
    """How far the clock may run: up to the nearest prescribed loss."""
    targets = [rule.target for rule in rules if isinstance(rule, LogInverseLoss) and state.late]
    ahead = [math.log(target / point.loss) for target in targets if target > point.loss]
    return min(ahead, default=math.inf)


def _share_to(dense: DenseStep, rules: Sequence[StoppingRule]) -> float:
    """The share of the step at which the first rule is met; 1 where none is, or at the very end."""
    log_time, loss = dense.log_time_at(1.0), float(dense.log_inverse_loss(1.0))
    passed = [rule for rule in rules if rule.met(log_time, loss) and not rule.at(log_time, loss)]
    by_time = [not isinstance(rule, LogInverseLoss) for rule in passed]
    pairs = zip(passed, by_time, strict=True)
    return min((dense.locate(rule.target, by_time=kind) for rule, kind in pairs), default=1.0)


def _step_factor(error: float) -> float:
    if not math.isfinite(error):
        return 0.15
    return min(5.0, max(0.15, 0.9 * max(error, 1e-12) ** -0.25))


def try_step(
    run: Run,
    state: State,
    point: Point,
    h: float,
    longer: tuple[Attempt, float] | None = None,
    *,
    patient: bool = True,
) -> Attempt | None:
    """Solve the stage equations for a step h; None where Newton fails.

    The guess is the collocation polynomial of the attempt of which this step is a share, or of
    the step before, or the tangent.
    """
    nodes = point.direction.new_tensor(radau.NODES)
    weight, clock = 1.0, Clock(0.0, nodes * 0)
    if state.late:
        weight, clock = point.loss / point.speed, Clock(1.0, -point.loss * torch.exp(h * nodes))
    step = _fixed(run, state, point.samples, point.preactivations, point.coefficients, h, clock)
    u = torch.log_softmax(point.log_weights[point.samples], 0) + math.log(weight)
    guess = state.dual + h * weight * nodes[:, None] * point.direction
    if longer is not None:
        guess = torch.stack([longer[0].dense.dual(longer[1] * c) for c in radau.NODES])
    elif state.last is not None and h < FAR * state.last[1]:
        duals, before = state.last
        guess = torch.stack([radau.interpolate(duals, 1 + h / before * c) for c in radau.NODES])
    found = stages.solve(step, guess, u.expand(radau.STAGES, -1), patient=patient)
    if found is None:
        return None
    at_start = nodes.new_tensor(radau.SLOPE_BASIS[:, 0])
    defect = weight * point.direction - at_start @ found.extrapolated
    scale = torch.maximum(step.scale, run.scale(found.dual[2]))
    error = (radau.ERROR_WEIGHT * h * defect / scale).square().mean().sqrt()
    dense = _dense(run, state, point, found, h)
    clock_error = dense.log_time_error() / (run.rtol * max(1.0, abs(dense.log_time_at(1.0))))
    return Attempt(step, point, found, dense, max(float(error), clock_error))


def _dense(run: Run, state: State, point: Point, found: Stages, h: float) -> DenseStep:
    duals = torch.cat([state.dual[None], found.dual])
    if state.late:
        loss = point.loss * np.exp(h * np.concatenate([[0.0], radau.NODES]))
        start = math.log(point.loss / point.speed)
        rate = np.concatenate([[start], found.nu.cpu().numpy() - loss[1:]])
    else:
        late = run.flow.log_inverse_loss(found.theta).cpu().numpy()
        loss, rate = np.concatenate([[point.loss], late]), np.zeros(4)
    return DenseStep(duals, h, state.log_time, loss, rate, state.late)


def accept(run: Run, state: State, attempt: Attempt, endings: list[Ending]) -> State:
    """The state at the end of an accepted step; events are recorded."""
    flow, found, step, samples = run.flow, attempt.stages, attempt.step, attempt.point.samples
    dual, theta, dense = found.dual[2], found.theta[2], attempt.dense
    pre = flow.network.forward(theta, flow.dataset.x).preactivations
    run.stats.half_passes += 1
    held = state.mode.held()
    pattern = [
        torch.where(hold, old, value > 0)
        for hold, old, value in zip(held, state.mode.pattern, pre, strict=True)
    ]
    mode = replace(state.mode, pattern=pattern)
    log_time, loss = dense.log_time_at(1.0), float(dense.log_inverse_loss(1.0))
    run.record("cross", _globally(found.flips, samples), log_time, loss)
    captures = _union([end.captures for end in endings])
    if len(captures):
        dual, mode = capture.hold(flow, dual, mode, captures)
        run.record("capture", captures, log_time, loss)
    entering = _globally(_union([end.arrivals for end in endings]), samples)
    settle = state.late and len(captures) > 0
    if len(mode.slides) or len(entering):
        dual, mode, entered = events.enter(flow, dual, mode, entering)
        run.record("slide", entered, log_time, loss)
        settle = settle or (state.late and len(entered) > 0)
    weights = dual.new_full((len(flow.dataset),), 0.0)
    weights[samples] = found.log_mu[2]
    known = torch.zeros_like(weights, dtype=torch.bool)
    known[samples] = True
    run.stats.steps += 1
    run.largest_step = max(run.largest_step, step.h)
    last = None if settle else (dense.duals, step.h)
    return State(
        dual, mode, weights, known, float(found.nu[2]), log_time, state.h, last, state.late, settle
    )


def _globally(pairs: Pairs, samples: Tensor) -> Pairs:
    return replace(pairs, sample=samples[pairs.sample])


def _union(several: list[Pairs]) -> Pairs:
    """The pairs of all without repetition."""
    fields = zip(*(pairs.fields for pairs in several), strict=True)
    return Pairs(*torch.unique(torch.stack([torch.cat(field) for field in fields]), dim=1))
