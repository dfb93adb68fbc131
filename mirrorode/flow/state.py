"""Where an integration stands, and the flow evaluated there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mirrorode.flow.field import Field
from mirrorode.flow.kinks import Pairs
from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.flow.step import Clock, Mode, Step, metric, push_signals, slide_coefficients
from mirrorode.flow.trajectory import Event, Stats

NEGLIGIBLE = 32.0  # samples lighter than e⁻³² of the heaviest do not enter a step


@dataclass
class State:
    """Where the integration stands: dual, smooth mode, log(1/𝓛), log weights and log t."""

    dual: Tensor
    mode: Mode
    loss: float = math.nan
    log_weights: Tensor | None = None  # NaN for samples that were not in the last step
    nu: float = 0.0
    log_time: float = -math.inf
    h: float | None = None
    last: tuple[Tensor, float] | None = None  # duals (4, n) and h of the previous step
    late: bool = False
    settle: bool = False
    stiff: int = 0  # explicit steps in a row that stability has limited
    stay: bool = False  # no sliding pair leaves at the start of the next step
    field: Field | None = None  # of an explicit step, at its end


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


class Shelf:
    """Keeps the duals of accepted steps, row after row in a few large blocks.

    A step starts where the last one ended, so that three rows of four are new; and large blocks
    leave no holes between them, which small ones did: memory was four times what was kept.
    """

    ROWS = 256

    def __init__(self) -> None:
        self.rows: Tensor | None = None
        self.used = 0

    def keep(self, duals: Tensor) -> Tensor:
        """A view that equals ``duals`` (4, n)."""
        rows, used = self.rows, self.used
        if rows is not None and used and torch.equal(rows[used - 1], duals[0]):
            used -= 1
        if rows is None or used + len(duals) > len(rows):
            rows, used = duals.new_empty(self.ROWS, duals.shape[1]), 0
        rows[used : used + len(duals)] = duals
        self.rows, self.used = rows, used + len(duals)
        return rows[used : used + len(duals)]


@dataclass
class Run:
    """One integration: its flow, tolerances, and what it has counted."""

    flow: MirrorFlow
    rtol: float
    atol: float
    stats: Stats = field(default_factory=Stats)
    events: list[Event] = field(default_factory=list)
    largest_step: float = 0.0
    shelf: Shelf = field(default_factory=Shelf)

    def record(
        self,
        kind: str,
        pairs: Pairs,
        log_time: float,
        loss: float,
        coefficients: Sequence[float] = (),
    ) -> None:
        """Write one event a pair."""
        known = list(coefficients) or [math.nan] * len(pairs)
        self.stats.events += len(pairs)
        self.stats.slides += len(pairs) if kind == "slide" else 0
        for layer, unit, sample, xi in zip(*pairs.lists(), known, strict=True):
            self.events.append(Event(kind, log_time, loss, layer, unit, sample, xi))

    def complete(self, slides: Pairs, coefficients: Tensor) -> None:
        """Write the ξ that pairs slide with to their entries, known only now."""
        known = dict(zip(zip(*slides.lists(), strict=True), coefficients.tolist(), strict=True))
        for place in range(len(self.events) - 1, -1, -1):
            event = self.events[place]
            if event.kind != "slide":
                continue
            if not math.isnan(event.coefficient):
                break
            xi = known.get((event.layer, event.unit, event.sample), math.nan)
            self.events[place] = replace(event, coefficient=xi)
            if math.isnan(xi):
                break

    def scale(self, dual: Tensor) -> Tensor:
        """What an error in the dual is measured by, coordinate by coordinate."""
        rms = dual.square().mean().sqrt().clamp(min=1.0)
        return self.atol * rms + self.rtol * dual.abs()


def start(flow: MirrorFlow, theta0: Tensor) -> State:
    """The state at t = 0, on the true pattern."""
    pattern = flow.network.forward(theta0, flow.dataset.x).pattern
    captured = [torch.zeros(on.shape[1], dtype=torch.bool, device=on.device) for on in pattern]
    mode = Mode(pattern, Pairs.none(theta0.device), captured)
    return State(flow.potential.gradient(theta0), mode)


def look(run: Run, state: State) -> Point:
    """Evaluate the flow at the state, on its mode."""
    flow, data = run.flow, run.flow.dataset
    theta = flow.potential.inverse_gradient(state.dual)
    forward = flow.network.forward(theta, data.x, state.mode.pattern)
    run.stats.half_passes += 2
    q = data.y * forward.output
    u = -q
    if state.log_weights is not None:
        # Samples that were not in the last step follow their margins.
        u = torch.where(torch.isnan(state.log_weights), state.nu - q, state.log_weights)
    matters = u > u.max() - NEGLIGIBLE
    matters[state.mode.slides.sample] = True
    samples = torch.nonzero(matters)[:, 0]
    pre = forward.preactivations
    step = fix_step(run, state, samples, pre, u[:0], 1.0, Clock(0.0, theta.new_zeros(3)))
    share = torch.softmax(u[samples], 0)
    weight = torch.zeros_like(q).index_copy(0, samples, share * data.y[samples])
    free, signals = flow.network.pull(forward, weight)
    direction = step.project(theta, free[None])[0]
    speed = (metric(flow, theta) * direction.square()).sum()
    pushes = push_signals(flow.network, [signal[samples] for signal in signals])
    coefficients = slide_coefficients(step, theta, weight[samples], free, pushes)
    loss, speed = torch.stack([-torch.logsumexp(-q, 0), speed]).tolist()
    return Point(theta, loss, u, samples, direction, speed, coefficients, pre)


def fix_step(
    run: Run,
    state: State,
    samples: Tensor,
    preactivations: list[Tensor],
    coefficients: Tensor,
    h: float,
    clock: Clock,
) -> Step:
    """A step from the state that takes only ``samples`` into account."""
    x, y = run.flow.dataset.x[samples], run.flow.dataset.y[samples]
    local = [value[samples] for value in preactivations]
    tolerance = min(1e-3, max(10 * run.rtol, 1e-7))
    if state.late:
        # A short step prescribes a change h of log ℓ, of which round-off leaves this much.
        tolerance = max(tolerance, 20 * torch.finfo(x.dtype).eps / h)
    return Step(
        run.flow, x, y, state.mode.restrict(samples), clock, h, state.dual, local, coefficients,
        run.scale(state.dual), tolerance, run.stats,
    )  # fmt: skip
