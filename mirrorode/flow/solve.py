"""`solve`: integrate a mirror flow until a stopping rule, and always return what was computed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mirrorode.flow import balance, baseline, integrate, through, two_layer
from mirrorode.flow.checkpoint import Checkpoint
from mirrorode.flow.dense import DenseStep
from mirrorode.flow.ensemble import spread, together
from mirrorode.flow.layout import Layout
from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.flow.observe import Function, Observable, observers, split
from mirrorode.flow.state import Run
from mirrorode.flow.stopping import StoppingRule
from mirrorode.flow.trajectory import Stats, Status, Trajectory
from mirrorode.flow.waveform import Asking
from mirrorode.problem.errors import require, require_number, require_rtol

Progress = Callable[[float, float, Stats], None]
"""Called with log t, log(1/𝓛) and the counts after every accepted step."""

PATIENCE = 500  # steps without progress, after which a run is blocked
CRAWL = 1e-9  # gain of log(1/𝓛) that is progress, if log t has not gained one either
PAUSE = 300  # steps in which …
GAIN = 1e-6  # … log(1/𝓛) gains at least this, if it is to arrive …
TIME = 1e-3  # … while log t gains this; else it is the integrator that does not go on
LARGE = 1e150  # weights and duals whose squares are no numbers


def solve(
    flow: MirrorFlow | Sequence[MirrorFlow],
    theta0: Tensor,
    *,
    until: StoppingRule,
    method: str = "auto",
    rtol: float = 1e-6,
    atol: float = 1e-9,
    saveat: Sequence[StoppingRule | Observable | Function] | None = None,
    max_steps: int = 100_000,
    correct_balance: bool = True,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> Trajectory | list[Trajectory]:
    """Integrate the mirror flow of ``flow`` from ``theta0``.

    A batch is integrated side by side, each row with its own steps, clock, events and status, and
    comes out as each row alone would. Neurons of two-layer networks are followed all at once. On a
    CPU the rows are spread over as many processes as torch may use threads, unless ``progress`` or
    a function in ``saveat`` watches.

    Args:
        flow: network, samples and potential; or B of them, for one start each.
        theta0: the start (n,), or a batch of starts (B, n).
        until: where to stop; met exactly (to 1e-10 relative), not at the next step.
        method: "auto", the integrator of the project: implicit collocation of order 5 with kinks
            crossed inside steps and sliding followed; with a million kinks or more, and where the
            potential is not separable, an explicit method steps through them, and status,
            statistics and verdicts say so. Or any method of torchdiffeq, such as "dopri5", in log
            time and through kinks: a baseline.
        rtol: relative tolerance of the dual variable, and of log t.
        atol: absolute tolerance of the dual variable, for a dual of size one.
        saveat: stopping rules that are met exactly and saved, beside start and end; nothing else
            is kept, and there is no dense output between. If None every accepted step is saved,
            with its dense output. Functions of (log t, θ) among the rules are called at every
            accepted step, and an `Observable` where it says: `Trajectory.observed` has the values.
        max_steps: accepted steps before the run ends with `Status.MAX_STEPS`.
        correct_balance: whether what is saved, and what `Trajectory.at` returns, is put back on the
            balance manifold of the start, along the rescaling orbit, which leaves the network
            function alone. The integration is the same either way; how far it had drifted is in
            `Trajectory.drift`.
        checkpoint: a file from which the integration goes on if it is there, and which it writes
            now and then: after an interruption of any kind the same call ends with the same bits.
            It stays when all is done, for the caller to delete. Row k of a batch has a file of
            its own, with ``.k`` appended. Only of method "auto".
        progress: called after every accepted step.

    Returns:
        One `Trajectory` for one flow and a start (n,), else a list of B. A numerical failure never
        raises: it is a status, with the trajectory up to it.

    Raises:
        InputError: on bad input.
    """
    flows, starts = _rows(flow, theta0)
    _require(until, method, rtol, atol, saveat, max_steps, correct_balance, checkpoint)
    single = isinstance(flow, MirrorFlow) and np.ndim(theta0) == 1
    rest = (until, method, rtol, atol, saveat, max_steps, correct_balance, progress)
    integrations = []
    for row, (one, start) in enumerate(zip(flows, starts, strict=True)):
        file = None
        if checkpoint is not None:
            path = checkpoint if single else f"{checkpoint}.{row}"
            file = Checkpoint.at(path, one, start, until, rtol, atol, *_described(saveat))
        integrations.append(_solve_one(one, start, *rest, file))
    watched = progress is not None or len(split(saveat)[1])
    found = together(integrations) if watched else spread(integrations, flows)
    return found[0] if single else found


def _require(
    until: StoppingRule, method: str, rtol: float, atol: float, saveat: Sequence[Any] | None,
    max_steps: int, correct_balance: bool, checkpoint: str | Path | None,
) -> None:  # fmt: skip
    """Raise `InputError` unless the arguments of `solve` beside flow and start are good."""
    require(isinstance(until, StoppingRule), "until", "be Time, LogTime or LogInverseLoss", until)
    split(saveat)
    require_rtol(rtol)
    require_number(atol, "atol", "be positive", 0.0, strict=True)
    require_number(max_steps, "max_steps", "be at least 1", 1, strict=False)
    fine = isinstance(correct_balance, bool)
    require(fine, "correct_balance", "be True or False", repr(correct_balance))
    fine = checkpoint is None or method == "auto"
    require(fine, "method", "be 'auto' with a checkpoint", repr(method))


def _rows(
    flow: MirrorFlow | Sequence[MirrorFlow], theta0: Tensor
) -> tuple[Sequence[MirrorFlow], Sequence[Tensor]]:
    """A flow and a start for each trajectory."""
    flows = [flow] if isinstance(flow, MirrorFlow) else flow
    fine = isinstance(flows, Sequence) and all(isinstance(one, MirrorFlow) for one in flows)
    require(fine and len(flows) > 0, "flow", "be a MirrorFlow or a list of them", repr(flow))
    starts = [one.check_start(theta0) for one in flows]
    if starts[0].ndim == 1:
        return flows, starts
    if isinstance(flow, MirrorFlow):
        return [flow] * len(starts[0]), list(starts[0])
    require(len(starts[0]) == len(flows), "theta0", f"have {len(flows)} rows", len(starts[0]))
    return flows, [start[row] for row, start in enumerate(starts)]


def _solve_one(
    flow: MirrorFlow,
    theta0: Tensor,
    until: StoppingRule,
    method: str,
    rtol: float,
    atol: float,
    saveat: Sequence[Any] | None,
    max_steps: int,
    correct_balance: bool,
    progress: Progress | None,
    checkpoint: Checkpoint | None,
) -> Asking[Trajectory]:
    begun = time.perf_counter()
    recorder = Recorder(flow, theta0, until, saveat, max_steps, progress)
    if method == "auto":
        run = Run(flow, rtol, atol)
        status = yield from _integrate(run, recorder, theta0, checkpoint)
        stats, events = run.stats, tuple(run.events)
    else:
        stats, events = Stats(), ()
        status = baseline.integrate(flow, theta0, method, rtol, atol, recorder, stats)
    log_time, loss, dual, dissipated = recorder.saved()
    theta = flow.potential.inverse_gradient(dual)
    theta[0] = theta0
    drift = None
    # Layers alone, where the potential couples the weights of units, are left as integrated.
    correct_balance &= flow.potential.separable
    if len(flow.symmetries):
        drift = balance.drifts(flow.symmetries, flow.potential, theta)
        if correct_balance and len(theta) > 1:
            found = balance.corrected(flow, theta)
            theta, stats.balance_iterations = found.theta, found.iterations
            stats.balance_left = sum(found.left.values())
            dual = torch.cat([dual[:1], flow.potential.gradient(theta[1:])])
    stats.wall_seconds = time.perf_counter() - begun
    message = recorder.message or status.value
    if method == "auto" and stats.through_kinks:
        message += f"; {through.why(flow)}"
    if checkpoint is not None and checkpoint.failed:
        message += f"; {checkpoint.failed}"
    for observer in recorder.observers:
        message += f"; {observer.failed}" if observer.failed else ""
    observed = {one.observable.name: one.observed(log_time) for one in recorder.observers}
    return Trajectory(
        flow, log_time, loss, theta, dual, tuple(recorder.steps), events, stats, status,
        message, method, rtol, dissipated, drift, correct_balance, observed,
    )  # fmt: skip


class Recorder:
    """What is kept of a run while it goes on, and when it is over."""

    def __init__(
        self,
        flow: MirrorFlow,
        theta0: Tensor,
        until: StoppingRule,
        saveat: Sequence[Any] | None,
        max_steps: int,
        progress: Progress | None,
    ) -> None:
        self.until, self.max_steps, self.progress = until, max_steps, progress
        rules, observables = split(saveat)
        self.save_all, self.potential = rules is None, flow.potential
        self.points: list[tuple[float, float, Tensor, float]] = []
        self.steps: list[DenseStep] = []
        self.message = ""
        loss = float(flow.log_inverse_loss(theta0))
        self.pending = [rule for rule in rules or () if not rule.met(-torch.inf, loss)]
        self.observers = observers(observables, loss)
        self.history: list[tuple[float, float]] = []
        self._last = (-torch.inf, loss, flow.potential.gradient(theta0), 0.0)
        self.points.append(self._last)
        self._observe(lambda: theta0)

    @property
    def rules(self) -> list[StoppingRule]:
        """Where the next step must not go beyond."""
        observed = [rule for one in self.observers for rule in one.pending or ()]
        return [self.until, *self.pending, *observed]

    def add(
        self, log_time: float, loss: float, dual: Tensor, dissipated: float, stats: Stats
    ) -> Status | None:
        """Take an accepted step and what it has ``dissipated``; the status if the run is over."""
        self._last = (log_time, loss, dual, self._last[3] + dissipated)
        due = [rule for rule in self.pending if rule.met(log_time, loss)]
        self.pending = [rule for rule in self.pending if rule not in due]
        over = self._over(log_time, loss, stats)
        if self.save_all or due or over:
            self.points.append(self._last)
        self._observe(cache(lambda: self.potential.inverse_gradient(dual)))
        if self.progress is not None:
            self.progress(log_time, loss, stats)
        return over

    def _observe(self, theta: Callable[[], Tensor]) -> None:
        for observer in self.observers:
            observer.see(*self._last[:2], theta)

    def kept(self) -> tuple[Any, ...]:
        """All that changes."""
        saved = self.points[-1] is self._last
        seen = [(one.pending, one.seen, one.failed) for one in self.observers]
        return self.points, self.steps, self.pending, self.history, self._last, saved, seen

    def restore(self, kept: tuple[Any, ...]) -> None:
        """Make it what it was."""
        self.points, self.steps, self.pending, self.history, self._last, saved, seen = kept
        if saved:
            self._last = self.points[-1]
        for observer, (pending, values, failed) in zip(self.observers, seen, strict=True):
            observer.pending, observer.seen, observer.failed = pending, values, failed

    def _over(self, log_time: float, loss: float, stats: Stats) -> Status | None:
        if self.until.met(log_time, loss):
            return Status.REACHED
        if stats.steps >= self.max_steps:
            return Status.MAX_STEPS
        self.history.append((log_time, loss))
        if len(self.history) > PAUSE and not self.until.by_time:
            time_before, loss_before = self.history[-1 - PAUSE]
            if loss - loss_before < GAIN and log_time - time_before > TIME:
                return Status.STAGNANT
        if len(self.history) > PATIENCE:
            time_before, loss_before = self.history[-1 - PATIENCE]
            crawls = loss - loss_before < CRAWL * max(1.0, abs(loss))
            if crawls and log_time - time_before < 1.0:
                return Status.BLOCKED
        return None

    def saved(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log t, log(1/𝓛), dual and dissipation at the saved points, the last included.

        They are given away: of a long run two copies are more than is needed.
        """
        if self.points[-1] is not self._last:
            self.points.append(self._last)
        points, self.points = self.points, []
        log_time, loss, dual, dissipated = zip(*points, strict=True)
        new = dual[0].new_tensor
        return new(log_time), new(loss), torch.stack(dual), new(dissipated)


def _method(run: Run, theta0: Tensor) -> tuple[Any, Callable[..., Any]]:
    """How to integrate: a state, of which dual, loss and log t are read, and what advances it."""
    if run.flow.pairs >= through.MANY or not run.flow.potential.separable:
        return through.start(run, theta0), through.advance
    layout = Layout.of(run.flow.network, theta0)
    if layout is None or not run.flow.potential.uniform:
        return integrate.start(run.flow, theta0), integrate.advance
    return two_layer.start(run, theta0, layout), two_layer.advance


def _integrate(
    run: Run, recorder: Recorder, theta0: Tensor, checkpoint: Checkpoint | None
) -> Asking[Status]:
    state, advance = _method(run, theta0)
    loss = float(run.flow.log_inverse_loss(theta0))
    if recorder.until.met(-torch.inf, loss):
        return Status.REACHED
    if checkpoint is not None and (kept := checkpoint.read()) is not None:
        state = _go_on(run, recorder, kept)
    while True:
        try:
            outcome = advance(run, state, recorder.rules)
            if isinstance(outcome, Generator):  # one that asks for its neurons to be followed
                outcome = yield from outcome
        except torch.linalg.LinAlgError as error:  # kinks slid along that depend on each other
            recorder.message = f"{Status.BLOCKED.value} ({str(error).splitlines()[0]})"
            return Status.BLOCKED
        if isinstance(outcome, Status):
            return _told(outcome, run.flow, state.dual)
        ahead, dense = outcome
        if not math.isfinite(ahead.loss) or math.isnan(ahead.log_time):
            return _told(Status.NON_FINITE, run.flow, state.dual)
        state = ahead
        if recorder.save_all:
            recorder.steps.append(dense)
        over = recorder.add(state.log_time, state.loss, state.dual, dense.dissipated, run.stats)
        if over is not None:
            return _told(over, run.flow, state.dual)
        if checkpoint is not None and run.stats.steps >= checkpoint.due:
            if isinstance(state, integrate.State):
                state.field = None  # is what it is of the dual, and large
            whole = (state, run.stats, run.events, run.largest_step, recorder.kept())
            state = _go_on(run, recorder, checkpoint.keep(run.stats.steps, whole))


def _told(status: Status, flow: MirrorFlow, dual: Tensor) -> Status:
    """The status with which nothing moves, or is a number, any more, told more closely."""
    theta = flow.potential.inverse_gradient(dual)
    if status is Status.BLOCKED:
        # Steps towards a dual where the potential gives NaN are shortened without end.
        away = torch.logspace(-12, -1, 23).to(dual)
        near = torch.cat([1 + away, 1 - away])[:, None] * dual
        fine = torch.isfinite(flow.potential.inverse_gradient(near)) | ~torch.isfinite(near)
        return status if bool(fine.all()) else Status.NON_FINITE
    if status is Status.NON_FINITE:
        size = torch.maximum(theta.abs().amax(), dual.abs().amax())
        return Status.OVERFLOW if float(size) > LARGE else status
    if status is not Status.STATIONARY or not bool(theta.any()):
        return status
    preactivations = flow.network.forward(theta, flow.dataset.x).preactivations
    dead = any(bool((layer <= 0).all()) for layer in preactivations)
    return Status.DEAD if dead else status


def _go_on(run: Run, recorder: Recorder, kept: Any) -> Any:
    """The state of a run, which is made what was ``kept`` of it."""
    state, run.stats, run.events, run.largest_step, recorded = kept
    recorder.restore(recorded)
    run.flow.potential.forget()
    return state


def _described(saveat: Sequence[Any] | None) -> tuple[object, ...]:
    """What is saved, as what prints in full."""
    rules, observables = split(saveat)
    return (rules, [(one.name, one.at) for one in observables])
