"""One attempted step: solved on the samples that matter, with its error and its dense output."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mirrorode.flow import radau, stages
from mirrorode.flow.dense import DISSIPATION, DenseStep
from mirrorode.flow.state import Point, Run, State, fix_step
from mirrorode.flow.step import Clock, Step
from mirrorode.flow.system import Stages

FAR = 4.0  # step ratio beyond which the last polynomial is a worse guess than its tangent
NOTICED = 23.0  # a sample left out that grows beyond e⁻²³ of the total is taken in


@dataclass(frozen=True)
class Attempt:
    """One attempted step with its verdict: an error above 1 rejects it."""

    step: Step
    point: Point
    stages: Stages
    dense: DenseStep
    error: float


def try_step(
    run: Run,
    state: State,
    point: Point,
    h: float,
    longer: tuple[Attempt, float] | None = None,
    *,
    patient: bool = True,
    frozen: bool = False,
) -> Attempt | None:
    """Solve the stage equations for a step h; None where Newton fails.

    ``longer`` is an attempt of which this step is a share; ``frozen`` stops at every crossing.
    Samples that were left out and come to matter inside the step are taken in, and the step is
    solved again.
    """
    nodes = point.direction.new_tensor(radau.NODES)
    weight, clock = 1.0, Clock(0.0, nodes * 0)
    if state.late:
        weight, clock = point.loss / point.speed, Clock(1.0, -point.loss * torch.exp(h * nodes))
    guess = _guess(state, h, weight * point.direction, longer)
    while True:
        pre, coefficients = point.preactivations, point.coefficients
        step = fix_step(run, state, point.samples, pre, coefficients, h, clock)
        u = torch.log_softmax(point.log_weights[point.samples], 0) + math.log(weight)
        try:
            found = stages.solve(
                step, guess, u.expand(radau.STAGES, -1), patient=patient, frozen=frozen
            )
        except torch.linalg.LinAlgError:  # an iterate went where the kinks slid along coincide
            return None
        if found is None:
            return None
        wider = _samples_that_matter(run, point, found) if found.converged else point.samples
        if len(wider) == len(point.samples):
            break
        point, guess = replace(point, samples=wider), found.dual
    dense = _dense(run, state, point, found, h)
    error = _error(run, step, weight * point.direction, found)
    clock_error = dense.log_time_error() / (run.rtol * max(1.0, abs(dense.log_time_at(1.0))))
    lost = dense.energy_lost() / (DISSIPATION * run.rtol) if found.converged else 0.0
    return Attempt(step, point, found, dense, max(error, clock_error, lost))


def _guess(
    state: State, h: float, velocity: Tensor, longer: tuple[Attempt, float] | None
) -> Tensor:
    """The dual at the stages: on the polynomial of a longer attempt or the last step, or a line."""
    if longer is not None:
        return torch.stack([longer[0].dense.dual(longer[1] * c) for c in radau.NODES])
    if state.last is not None and h < FAR * state.last[1]:
        duals, before = state.last
        return torch.stack([radau.interpolate(duals, 1 + h / before * c) for c in radau.NODES])
    return state.dual + h * velocity.new_tensor(radau.NODES)[:, None] * velocity


def _samples_that_matter(run: Run, point: Point, found: Stages) -> Tensor:
    """The samples of the step, and those left out that have come to carry weight at its nodes."""
    data = run.flow.dataset
    if len(point.samples) == len(data):
        return point.samples
    run.stats.half_passes += radau.STAGES
    log_mu = found.nu[:, None] - run.flow.margins(found.theta)
    total = torch.logsumexp(found.log_mu, -1, keepdim=True)
    matters = (log_mu > total - NOTICED).any(0)
    matters[point.samples] = True
    return torch.nonzero(matters)[:, 0]


def _error(run: Run, step: Step, velocity: Tensor, found: Stages) -> float:
    """γ₀h(f₀ − the slope polynomial extrapolated to the start), all on the start pattern."""
    at_start = velocity.new_tensor(radau.SLOPE_BASIS[:, 0])
    defect = velocity - at_start @ found.extrapolated
    scale = torch.maximum(step.scale, run.scale(found.dual[2]))
    return float((radau.ERROR_WEIGHT * step.h * defect / scale).square().mean().sqrt())


def _dense(run: Run, state: State, point: Point, found: Stages, h: float) -> DenseStep:
    duals = torch.cat([state.dual[None], found.dual])
    if state.late:
        loss = point.loss * np.exp(h * np.concatenate([[0.0], radau.NODES]))
        start = math.log(point.loss / point.speed)
        rate = np.concatenate([[start], found.nu.cpu().numpy() - loss[1:]])
    else:
        late = run.flow.log_inverse_loss(found.theta).cpu().numpy()
        loss, rate = np.concatenate([[point.loss], late]), np.zeros(4)
    return DenseStep(duals, h, state.log_time, loss, rate, state.late, found.dissipated)
