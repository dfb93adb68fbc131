"""The integrator for two-layer networks: steps of `waveform`, from the start to any loss.

Below log(1/𝓛) = 3 the clock is loss time, dσ = 𝓛 dt, where dz/dσ = G; above it is log ℓ, which
prescribes the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mirrorode.flow import meeting, radau, waveform
from mirrorode.flow.dense import DISSIPATION, DenseStep
from mirrorode.flow.integrate import SMALLEST
from mirrorode.flow.landing import distance, share_to
from mirrorode.flow.layout import Layout
from mirrorode.flow.neurons import Neurons
from mirrorode.flow.state import NEGLIGIBLE, Run
from mirrorode.flow.step import Clock
from mirrorode.flow.stopping import StoppingRule
from mirrorode.flow.surfaces import Surfaces
from mirrorode.flow.trajectory import Event, Status
from mirrorode.flow.waveform import Asking

LATE = 3.0  # log(1/𝓛) from which the loss is the clock; before, the weights between nodes are seen
STUCK = 1e-6  # step of log ℓ below which one that fails is not shortened any more …
AGAIN = 1.02  # … but taken in loss time, and all others until ℓ has grown by this factor
NOTICED = 23.0  # a sample left out that grows beyond e⁻²³ of the total is taken in
FIRST = 0.02  # of the dual's size, in the first step
FEW = 1  # events in a step that are landed on
BENT = 0.8  # error of a step from which they are
LANDED = 0.01  # share of a step within which an event is at its end
HARD = 8  # sweeps from which the next step grows little: a failed one costs more
FIELDS = ("neuron", "surface", "kind", "coefficient")


@dataclass
class State:
    """Where the integration stands."""

    layout: Layout
    surfaces: Surfaces
    neurons: Neurons
    loss: float
    log_weights: Tensor  # (K,), NaN for samples that were not in the last step
    nu: float = 0.0
    log_time: float = -math.inf
    h: float | None = None
    last: tuple[Tensor, float] | None = None  # log μ at the nodes (3, K) and h of the last step
    late: bool = False
    late_from: float = LATE

    @property
    def dual(self) -> Tensor:
        """z (n,) in the order of θ."""
        return self.layout.scatter(self.neurons.dual)


@dataclass(frozen=True)
class Point:
    """The flow at the start of a step."""

    loss: float
    q: Tensor
    samples: Tensor
    log_weights: Tensor
    direction: Tensor
    speed: float


@dataclass(frozen=True)
class Attempt:
    """One attempted step: an error above 1 rejects it."""

    samples: Tensor
    surfaces: Tensor
    found: waveform.Solution
    dense: DenseStep
    error: float


def start(run: Run, theta0: Tensor, layout: Layout) -> State:
    """The state at t = 0, on the true pattern; on a kink, and at w = 0, on the off side.

    A kink that attracts takes its neuron at once, and so does one that is only crossed. From one
    that repels, or from w = 0 where nothing pulls, the off side is a choice, and recorded as one.
    """
    flow, x = run.flow, run.flow.dataset.x
    surfaces = Surfaces.of(x, layout.slopes)
    theta = layout.gather(theta0)
    weights = theta[:, :-1]
    along = weights @ surfaces.normal.T
    captured = (weights == 0).all(1) & (weights.shape[1] > 1)
    on = (along > 0) & ~captured[:, None]
    neurons = Neurons(flow.potential.gradient(theta), on, torch.zeros_like(on), captured)
    loss = float(flow.log_inverse_loss(theta0))
    state = State(layout, surfaces, neurons, loss, torch.full_like(flow.dataset.y, math.nan))
    ridge = (along == 0) & ~captured[:, None]
    if bool(ridge.any()):
        _record_ridges(run, state, ridge, flow.weights(theta0))
    return state


def _record_ridges(run: Run, state: State, ridge: Tensor, share: Tensor) -> None:
    """Write down the pairs that start on a kink which repels, whose off side is chosen."""
    flow, surfaces, duals = run.flow, state.surfaces, state.neurons.dual
    base, strength = surfaces.forces(share * flow.dataset.y * state.layout.factor)
    theta = flow.potential.inverse_gradient(duals)
    metric = flow.potential.inverse_hessian(theta)[:, :-1]
    force = base + (state.neurons.on * strength) @ surfaces.normal
    off = theta[:, -1:] * ((force * metric) @ surfaces.normal.T)
    jump = theta[:, -1:] * strength * (metric @ surfaces.normal.square().T)
    repels = ridge & (off < 0) & (off + jump > 0)
    for unit, surface in torch.nonzero(repels).tolist():
        for sample in torch.nonzero(surfaces.group == surface)[:, 0].tolist():
            run.events.append(Event("branch", -math.inf, state.loss, 0, unit, sample, 0.0))
            run.stats.events += 1


def _look(run: Run, state: State) -> Point:
    flow, neurons, surfaces = run.flow, state.neurons, state.surfaces
    problem = _problem(run, state, torch.arange(len(flow.dataset)), 1.0, Clock(0.0, neurons.dual))
    duals = neurons.dual[None]
    q = problem[0].margins(duals)[0]
    u = -q
    if state.late:
        u = torch.where(torch.isnan(state.log_weights), state.nu - q, state.log_weights)
    matters = u > u.max() - NEGLIGIBLE
    matters |= neurons.slides.any(0)[surfaces.group]
    samples = torch.nonzero(matters)[:, 0]
    local, _ = _problem(run, state, samples, 1.0, Clock(0.0, neurons.dual))
    rows, metric = local.rows(duals, neurons.slides[:, torch.unique(surfaces.group[samples])][None])
    share = torch.softmax(u[samples], 0)
    direction = torch.einsum("k,knd->nd", share, rows[0])
    speed = float((metric[0] * direction.square()).sum())
    run.stats.half_passes += 2
    return Point(float(-torch.logsumexp(-q, 0)), q, samples, u, direction, speed)


def _scale(run: Run, dual: Tensor) -> Tensor:
    """What an error in the dual of a neuron is measured by: its own size."""
    rms = dual.square().mean().sqrt().clamp(min=1.0)
    own = dual.square().mean(1, keepdim=True).sqrt()
    return (run.atol * rms + run.rtol * torch.maximum(own, dual.abs())).expand_as(dual)


def _problem(
    run: Run, state: State, samples: Tensor, h: float, clock: Clock
) -> tuple[waveform.Problem, Tensor]:
    flow, neurons = run.flow, state.neurons
    surfaces, kept = state.surfaces.restrict(samples)
    start = Neurons(neurons.dual, neurons.on[:, kept], neurons.slides[:, kept], neurons.captured)
    return waveform.Problem(
        flow.potential, flow.dataset.x[samples], flow.dataset.y[samples], surfaces,
        state.layout.factor, float(state.layout.outgoing is not None), start,
        _scale(run, neurons.dual), run.rtol, clock, h,
    ), kept  # fmt: skip


def advance(
    run: Run, state: State, rules: Sequence[StoppingRule]
) -> Asking[tuple[State, DenseStep] | Status]:
    """One accepted step, beyond none of the ``rules``, or the reason why there is none."""
    point = _look(run, state)
    if not math.isfinite(point.loss) or not math.isfinite(point.speed):
        return Status.NON_FINITE
    if point.speed == 0:
        return Status.STATIONARY
    if not state.late and point.loss >= state.late_from:
        h = None if state.h is None else state.h * point.speed / point.loss
        log_weights = -point.q
        state = replace(state, late=True, h=h, last=None, log_weights=log_weights)
        run.largest_step = 0.0
    state = replace(state, loss=point.loss)
    wanted = _first_step(state, point) if state.h is None else state.h
    h = min(wanted, distance(point.loss, rules)) if state.late else wanted
    for _ in range(60):
        attempt = yield from _try(run, state, point, h)
        at_kink = None if attempt is None else _kink_to_land_on(attempt)
        if attempt is None or at_kink is not None or not attempt.error <= 1:
            run.stats.rejected += 1
            if attempt is None and state.late and h < STUCK:
                return (yield from advance(run, _early_again(run, state, point), rules))
            share = 0.3 if attempt is None else at_kink or min(0.8, _factor(attempt.error))
            h = wanted = h * share
            if h < SMALLEST * run.largest_step:
                break
            continue
        landing = share_to(attempt.dense, rules)
        if landing < 1:
            h *= landing
            continue
        grown = h * min(_factor(attempt.error), 1.5 if attempt.found.sweeps > HARD else 3.0)
        following = grown if h >= wanted else max(wanted, grown)
        return _accept(run, state, attempt, h, following), attempt.dense
    return Status.BLOCKED


def _early_again(run: Run, state: State, point: Point) -> State:
    """The state in loss time, for a little while.

    Where a neuron that meets a kink changes ‖G‖ a lot, the weights that prescribe the loss jump,
    and Newton's method for these finds no way across; those of sum one hardly change.
    """
    run.largest_step = 0.0
    return replace(state, late=False, late_from=AGAIN * point.loss, h=None, last=None)


def _kink_to_land_on(attempt: Attempt) -> float | None:
    """The share of the step up to its first kink, where a few of them, by themselves, bend it.

    Of hundreds in a step each is small and their sum is like noise. A few are better ended at.
    """
    times = sorted(attempt.found.path.events.s.tolist())
    if not 0 < len(times) <= FEW or attempt.found.defect < BENT:
        return None
    inside = [s for s in times if LANDED < s < 1 - LANDED]
    return inside[0] if inside else None


def _factor(error: float) -> float:
    if not math.isfinite(error):
        return 0.15
    return min(3.0, max(0.15, 0.9 * max(error, 1e-12) ** (-1 / 3.5)))


def _first_step(state: State, point: Point) -> float:
    size = max(float(state.neurons.dual.square().mean().sqrt()), 1e-3)
    h = FIRST * size / float(point.direction.square().mean().sqrt())
    return h * point.speed / point.loss if state.late else h


def _try(run: Run, state: State, point: Point, h: float) -> Asking[Attempt | None]:
    """Solve for one step; samples that come to matter in it are taken in."""
    nodes = point.q.new_tensor(radau.NODES)
    weight, clock = 1.0, Clock(0.0, nodes * 0)
    if state.late:
        weight, clock = point.loss / point.speed, Clock(1.0, -point.loss * torch.exp(h * nodes))
    samples, guess = point.samples, None
    while True:
        problem, kept = _problem(run, state, samples, h, clock)
        now = torch.log_softmax(point.log_weights[samples], 0) + math.log(weight)
        if guess is None:
            guess = _guess(state, now, samples, h)
        found = yield from waveform.solve(problem, guess, now)
        if found is None:
            run.stats.half_passes += 20
            return None
        run.stats.half_passes += math.ceil(found.work * len(samples) / len(point.q))
        wider = _samples_that_matter(run, state, samples, found)
        if len(wider) == len(samples):
            break
        guess = _widened(run, state, found, samples, wider)
        samples = wider
    dense = _dense(run, state, point, found, h)
    lost = dense.energy_lost() / (DISSIPATION * run.rtol)
    clock_error = dense.log_time_error() / (run.rtol * max(1.0, abs(dense.log_time_at(1.0))))
    return Attempt(samples, kept, found, dense, max(found.defect, clock_error, lost))


def _guess(state: State, u: Tensor, samples: Tensor, h: float) -> Tensor:
    """log μ at the nodes (3, K): those of the last step, continued."""
    if state.last is not None and h < 3 * state.last[1]:
        earlier, before = state.last
        values = torch.cat([earlier[:, samples]])
        basis = radau.evaluate(radau.SLOPE_BASIS, 1 + h / before * u.new_tensor(radau.NODES))
        ahead = basis @ values
        moved = (ahead - values[-1]).clamp(-2.0, 2.0)
        moved = torch.where(torch.isfinite(moved), moved, 0.0)
        return u + moved
    return u.expand(radau.STAGES, -1).clone()


def _widened(
    run: Run, state: State, found: waveform.Solution, samples: Tensor, wider: Tensor
) -> Tensor:
    """log μ (3, K') of a solution over more samples; the new ones follow their margins."""
    theta = state.layout.scatter(run.flow.potential.inverse_gradient(found.path.duals[1::2]))
    u = found.nu[:, None] - run.flow.margins(theta)
    total = torch.logsumexp(found.log_mu, -1, keepdim=True)
    u = torch.minimum(u, total + math.log(0.02))
    u[:, samples] = found.log_mu
    return u[:, wider]


def _samples_that_matter(
    run: Run, state: State, samples: Tensor, found: waveform.Solution
) -> Tensor:
    data = run.flow.dataset
    if len(samples) == len(data):
        return samples
    run.stats.half_passes += radau.STAGES
    theta = state.layout.scatter(run.flow.potential.inverse_gradient(found.path.duals[1::2]))
    log_mu = found.nu[:, None] - run.flow.margins(theta)
    total = torch.logsumexp(found.log_mu, -1, keepdim=True)
    matters = (log_mu > total - NOTICED).any(0)
    matters[samples] = True
    return torch.nonzero(matters)[:, 0]


def _dense(run: Run, state: State, point: Point, found: waveform.Solution, h: float) -> DenseStep:
    duals = torch.cat([state.neurons.dual[None], found.path.duals[1::2]])
    if state.late:
        loss = point.loss * np.exp(h * np.concatenate([[0.0], radau.NODES]))
        begin = math.log(point.loss / point.speed)
        rate = np.concatenate([[begin], found.nu.cpu().numpy() - loss[1:]])
    else:
        flat = state.layout.scatter(run.flow.potential.inverse_gradient(duals[1:]))
        after = run.flow.log_inverse_loss(flat).cpu().numpy()
        loss, rate = np.concatenate([[point.loss], after]), np.zeros(4)
    gained = float(found.path.gained.sum())
    return DenseStep(state.layout.scatter(duals), h, state.log_time, loss, rate, state.late, gained)


def _accept(run: Run, state: State, attempt: Attempt, h: float, following: float) -> State:
    found, end, kept = attempt.found, attempt.found.path.end, attempt.surfaces
    surfaces = state.surfaces
    theta = run.flow.potential.inverse_gradient(end.dual)
    on = theta[:, :-1] @ surfaces.normal.T > 0
    slides = torch.zeros_like(on)
    on[:, kept], slides[:, kept] = end.on, end.slides
    on[end.captured] = False
    _record(run, state, attempt)
    weights = torch.full_like(run.flow.dataset.y, math.nan)
    weights[attempt.samples] = found.log_mu[2]
    nodes = torch.full((3, len(weights)), math.nan).to(weights)
    nodes[:, attempt.samples] = found.log_mu
    run.stats.steps += 1
    run.largest_step = max(run.largest_step, h)
    neurons = Neurons(end.dual, on, slides, end.captured)
    return State(
        state.layout, surfaces, neurons, float(attempt.dense.log_inverse_loss(1.0)), weights,
        float(found.nu[2]), attempt.dense.log_time_at(1.0), following, (nodes, h), state.late,
        state.late_from,
    )  # fmt: skip


def _record(run: Run, state: State, attempt: Attempt) -> None:
    """Write down the events of an accepted step, in order: one for each sample of the surface."""
    happened, dense = attempt.found.path.events, attempt.dense
    order = torch.argsort(happened.s, stable=True)
    s = happened.s[order].cpu().numpy()
    when, losses = dense.log_times(s).tolist(), dense.log_inverse_loss(s).tolist()
    group, side = state.surfaces.group.tolist(), state.surfaces.along.tolist()
    members: dict[int, list[int]] = {}
    for sample in attempt.samples.tolist():
        members.setdefault(group[sample], []).append(sample)
    numbers = attempt.surfaces.tolist()
    fields = [getattr(happened, name)[order].tolist() for name in FIELDS]
    for log_time, loss, neuron, surface, kind, xi in zip(when, losses, *fields, strict=True):
        name = meeting.KINDS[kind]
        for sample in members[numbers[surface]] if surface >= 0 else [-1]:
            own = 1 - xi if sample >= 0 and side[sample] < 0 else xi
            run.events.append(Event(name, log_time, loss, 0, neuron, sample, own))
            run.stats.events += 1
            run.stats.slides += name == "slide"
