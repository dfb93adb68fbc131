"""The baseline: a method of torchdiffeq in log time, through kinks.

The clock is σ = log(1 + t/τ), dz/dσ = (t + τ)𝓛·G, log time once t ≫ τ, regular at t = 0. The
flow is as stiff there as the softmax, and its kinks are stepped across: this is what most would
write first, kept to be compared with.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torchdiffeq
from torch import Tensor
from torchdiffeq._impl.odeint import SOLVERS  # the only list of its methods that it has
from torchdiffeq._impl.solvers import AdaptiveStepsizeODESolver

from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.flow.step import speed
from mirrorode.flow.trajectory import Stats, Status
from mirrorode.problem.errors import require

if TYPE_CHECKING:
    from mirrorode.flow.solve import Recorder

CHUNK = 0.25  # units of log time between two looks at the stopping rule
FIXED_STEP = 0.01  # of methods without error control
HUGE = 1e100
STAGES_ALLOWED = 100  # evaluations an accepted step, of methods that do not report their steps
CLOSE = 1e-9  # relative, of the loss that is landed on


class _OutOfSteps(Exception):
    """Raised inside torchdiffeq to end a run that has used up its steps."""


class LogTimeField(torch.nn.Module):
    """The right-hand side in σ, which counts and remembers the last accepted state."""

    def __init__(self, flow: MirrorFlow, theta0: Tensor, stats: Stats, max_steps: int) -> None:
        super().__init__()
        self.flow, self.stats, self.max_steps = flow, stats, max_steps
        dual, direction = flow.potential.gradient(theta0), flow.vector_field(theta0)
        size = max(float(dual.square().mean().sqrt()), 1e-3)
        speed = max(float(direction.square().mean().sqrt()), 1e-300)
        self.log_tau = float(flow.log_inverse_loss(theta0)) + math.log(0.01 * size / speed)
        # The state is the dual, and after it ∫‖dθ/dt‖²_A dt as a change of log(1/𝓛).
        self.last: tuple[float, Tensor] = (0.0, torch.cat([dual, dual.new_zeros(1)]))
        self.told = 0.0
        self.step: float | None = None

    def forward(self, sigma: Tensor, state: Tensor) -> Tensor:
        """dz/dσ = (t + τ)𝓛·G, and (t + τ)𝓛·‖G‖²_D after it, (n + 1,)."""
        self.stats.half_passes += 2
        if self.stats.half_passes > 2 * STAGES_ALLOWED * self.max_steps:
            raise _OutOfSteps
        theta = self.flow.potential.inverse_gradient(state[:-1])
        loss, field = self.flow.log_inverse_loss(theta), self.flow.vector_field(theta)
        lost = speed(self.flow, theta, field)[None]
        slope = torch.exp(self.log_tau + sigma - loss) * torch.cat([field, lost])
        # A step that is far too long overflows the loss; torchdiffeq rejects a huge error and
        # goes on, but a NaN one sets its step to zero and ends the run.
        return torch.nan_to_num(slope, HUGE, HUGE, -HUGE).clamp(-HUGE, HUGE)

    def callback_accept_step(self, sigma: Tensor, dual: Tensor, step: Tensor) -> None:
        """Called by torchdiffeq at the start of each step that it has accepted."""
        self.last, self.step = (float(sigma), dual.clone()), float(step)
        self.stats.steps += 1
        if self.stats.steps >= self.max_steps:
            raise _OutOfSteps

    def callback_reject_step(self, sigma: Tensor, dual: Tensor, step: Tensor) -> None:
        """Called by torchdiffeq when it rejects a step."""
        del sigma, dual, step
        self.stats.rejected += 1

    def log_time(self, sigma: float) -> float:
        """log t = log τ + log(e^σ − 1)."""
        return self.log_tau + sigma + math.log(-math.expm1(-sigma)) if sigma > 0 else -math.inf

    def sigma(self, log_time: float) -> float:
        """The clock at log t."""
        gap = log_time - self.log_tau
        return gap + math.log1p(math.exp(-gap)) if gap > 0 else math.log1p(math.exp(gap))


def integrate(
    flow: MirrorFlow,
    theta0: Tensor,
    method: str,
    rtol: float,
    atol: float,
    recorder: Recorder,
    stats: Stats,
) -> Status:
    """Run ``method`` until the rule of ``recorder`` is met, or it fails.

    Raises:
        InputError: if torchdiffeq has no such method.
    """
    names = ", ".join(sorted(SOLVERS))
    require(method in SOLVERS, "method", f'be "auto" or one of {names}', repr(method))
    field = LogTimeField(flow, theta0, stats, recorder.max_steps)
    adaptive = issubclass(SOLVERS[method], AdaptiveStepsizeODESolver)

    def flow_to(start: float, dual: Tensor, end: float) -> Tensor:
        times = torch.tensor([start, end], dtype=dual.dtype, device=dual.device)
        options: dict[str, float] = {}
        if not adaptive:
            options["step_size"] = min(FIXED_STEP, end - start)
        elif field.step is not None:
            options["first_step"] = min(field.step, end - start)
        with warnings.catch_warnings():
            # Methods without step-size control have no callbacks; their evaluations are counted.
            warnings.simplefilter("ignore")
            found = torchdiffeq.odeint(
                field, dual, times, rtol=rtol, atol=atol, method=method, options=options
            )[1]
        if not bool(torch.isfinite(found).all()):
            raise FloatingPointError("the state is no longer finite")
        return found

    sigma, dual = field.last
    try:
        while True:
            end = min([sigma + CHUNK, *_prescribed(field, recorder, sigma)])
            found = flow_to(sigma, dual, end)
            end, found = _land(flow, recorder, flow_to, (sigma, dual), (end, found))
            sigma, dual = field.last = (end, found)
            over = _report(flow, recorder, field, stats)
            if over is not None:
                return over
    except _OutOfSteps:
        _report(flow, recorder, field, stats)
        return Status.MAX_STEPS
    except Exception as error:  # torchdiffeq asserts; nothing that was computed may be lost
        reason = (str(error) or type(error).__name__).splitlines()[0]
        recorder.message = f"{Status.SOLVER_FAILED.value} ({reason})"
        _report(flow, recorder, field, stats)
        return Status.SOLVER_FAILED


def _report(
    flow: MirrorFlow, recorder: Recorder, field: LogTimeField, stats: Stats
) -> Status | None:
    sigma, state = field.last
    dual, dissipated = state[:-1], float(state[-1])
    loss = float(flow.log_inverse_loss(flow.potential.inverse_gradient(dual)))
    gained, field.told = dissipated - field.told, dissipated
    return recorder.add(field.log_time(sigma), loss, dual, gained, stats)


def _prescribed(field: LogTimeField, recorder: Recorder, sigma: float) -> list[float]:
    """The clock at the log times that must be landed on, where they lie ahead."""
    rules = [rule for rule in recorder.rules if rule.by_time]
    return [end for end in (field.sigma(rule.target) for rule in rules) if end > sigma]


def _land(
    flow: MirrorFlow,
    recorder: Recorder,
    flow_to: Callable[[float, Tensor, float], Tensor],
    start: tuple[float, Tensor],
    end: tuple[float, Tensor],
) -> tuple[float, Tensor]:
    """Shorten a chunk that passed a prescribed loss, by the secant rule inside a bracket."""

    def loss_at(state: Tensor) -> float:
        return float(flow.log_inverse_loss(flow.potential.inverse_gradient(state[:-1])))

    targets = [rule.target for rule in recorder.rules if not rule.by_time]
    targets = [target for target in targets if loss_at(end[1]) > target]
    if not targets:
        return end
    target = min(targets)
    low, high = (start[0], loss_at(start[1])), (end[0], loss_at(end[1]))
    for _ in range(30):
        share = min(max((target - low[1]) / (high[1] - low[1]), 0.02), 0.98)
        sigma = low[0] + share * (high[0] - low[0])
        dual = flow_to(start[0], start[1], sigma)
        loss = loss_at(dual)
        if abs(loss - target) <= CLOSE * max(1.0, abs(target)):
            break
        low, high = ((sigma, loss), high) if loss < target else (low, (sigma, loss))
    return sigma, dual
