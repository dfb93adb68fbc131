"""`verify`: the statements of the paper along one trajectory, each with its slack.

A statement about points is judged to round-off; one about increments, or conserved quantities,
against the tolerance of the integration.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mirrorode.flow.trajectory import Trajectory
from mirrorode.theory.balance import Invariants, layer_laws, unit_laws
from mirrorode.theory.margins import asymptotic_degree, q_potential

ROUND_OFF = 1e-11
DRIFT = 100.0  # multiples of rtol that a conserved quantity may drift over a whole run
CORRECTED = 1e-13  # drift, of the sum of terms, that may be left where it is corrected
LOST = 30.0  # multiples of rtol that the dissipation may miss over a whole run
CHUNK = 64  # points whose gradients are held at once


@dataclass(frozen=True)
class Verdict:
    """One statement along one trajectory.

    Attributes:
        statement: its number in the paper and what it says.
        passed: None where it does not apply, for the reason in ``detail``.
        slack: by how much it holds at least, negative where it fails; NaN if not applicable.
        detail: what was measured.
    """

    statement: str
    passed: bool | None
    slack: float
    detail: str


class Verdicts(list[Verdict]):
    """Verdicts that print as a table."""

    @property
    def passed(self) -> bool:
        """Whether none failed."""
        return all(verdict.passed is not False for verdict in self)

    def table(self) -> Table:
        """As a rich table."""
        table = Table(title="Statements along the trajectory", box=box.SIMPLE_HEAD)
        for column in ("statement", "verdict", "slack", "measured"):
            table.add_column(column, overflow="fold")
        words = {
            True: "[green]holds[/]",
            False: "[bold red]fails[/]",
            None: "[dim]not applicable[/]",
        }
        for row in self:
            slack = "" if math.isnan(row.slack) else f"{row.slack:.3g}"
            table.add_row(row.statement, words[row.passed], slack, row.detail)
        return table

    def __str__(self) -> str:
        buffer = io.StringIO()
        Console(file=buffer, width=110).print(self.table())
        return buffer.getvalue()

    def to_json(self) -> str:
        """As a JSON list; a slack that is not a number is null."""
        rows = [asdict(verdict) for verdict in self]
        for row in rows:
            row["slack"] = None if math.isnan(row["slack"]) else row["slack"]
        return json.dumps(rows, indent=1)


@dataclass(frozen=True)
class _Path:
    """What the statements are made of, at each saved point (T,)."""

    trajectory: Trajectory
    loss: Tensor  # ℓ as the integrator has it
    log_samples: float
    q_min: Tensor
    entropy: Tensor  # S(p)
    growth: Tensor  # θ·G
    q_hat: Tensor | None  # Q̂
    local: Tensor  # ‖θ‖²_A
    residual: Tensor  # |ℓ as integrated − ℓ(θ)|


def verify(trajectory: Trajectory) -> Verdicts:
    """Check every statement that is implemented along ``trajectory``.

    Returns:
        A list of `Verdict` that prints as a table.
    """
    path = _measure(trajectory)
    checks: tuple[Callable[[_Path], Verdict], ...] = (
        _fenchel_young, _layers, _neurons, _growth, _dissipation, _soft_margin_bounds, _assumption,
        _monotone,
    )  # fmt: skip
    return Verdicts(check(path) for check in checks)


def _measure(trajectory: Trajectory) -> _Path:
    flow, parts = trajectory.flow, []
    for theta in trajectory.theta.split(CHUNK):
        q = flow.margins(theta)
        log_p = torch.log_softmax(-q, -1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        growth = (theta * flow.vector_field(theta)).sum(-1)
        # A weight at zero has no local size, even where the Hessian is infinite or vanishes.
        local = (theta.square() / flow.potential.inverse_hessian(theta).clamp(min=1e-300)).sum(-1)
        parts.append([q.amin(-1), entropy, growth, local, flow.log_inverse_loss(theta)])
    q_min, entropy, growth, local, loss = (torch.cat(part) for part in zip(*parts, strict=True))
    q_hat = None if flow.potential.degree is None else q_potential(flow, trajectory.theta)
    stored = trajectory.log_inverse_loss
    return _Path(
        trajectory, stored, math.log(len(flow.dataset)), q_min, entropy, growth, q_hat, local,
        (stored - loss).abs(),
    )  # fmt: skip


def _fenchel_young(path: _Path) -> Verdict:
    trajectory, potential = path.trajectory, path.trajectory.flow.potential
    theta, dual = trajectory.theta, trajectory.dual
    product, value, conjugate = theta * dual, potential.value(theta), potential.conjugate(dual)
    size = product.abs() + value.abs() + conjugate.abs()
    residual = (product - value - conjugate).abs().sum(-1)
    worst = float((residual / size.sum(-1).clamp(min=1e-300)).amax())
    return Verdict(
        "Lemma 2.5: θ·z = R(θ) + Q(z)", worst <= ROUND_OFF, ROUND_OFF - worst,
        f"largest relative residual {worst:.1e}",
    )  # fmt: skip


def _drift(name: str, run: Trajectory, laws: Invariants, columns: slice) -> Verdict:
    if len(laws) == 0:
        return Verdict(name, None, math.nan, laws.missing)
    now, allowed = float(laws.drift()), DRIFT * run.rtol
    done = now if run.drift is None else float(run.drift[:, columns].amax())
    detail = f"the integrator drifts by {done:.1e} of the sum of terms; {allowed:.0e} allowed"
    if not run.balanced:
        return Verdict(name, now <= allowed, allowed - now, detail)
    detail += f"; corrected, {now:.1e} is left"
    if run.stats.balance_left:
        detail += f", as {run.stats.balance_left} units at saved points cannot be put back"
    slack = allowed - done if run.stats.balance_left else min(allowed - done, CORRECTED - now)
    return Verdict(name, slack >= 0, slack, detail)


def _layers(path: _Path) -> Verdict:
    run = path.trajectory
    laws = layer_laws(run.flow, run.theta)
    return _drift("Lemma 3.1: Q_i − Q_{i+1} is constant", run, laws, slice(-len(laws), None))


def _neurons(path: _Path) -> Verdict:
    run = path.trajectory
    laws = unit_laws(run.flow, run.theta)
    return _drift("App. G.5: the same for every unit", run, laws, slice(len(laws)))


def _growth(path: _Path) -> Verdict:
    name = "Eq. (4): dQ/dt ≥ L 𝓛 log(1/𝓛)"
    degree = path.trajectory.flow.network.degree
    exact = degree * (path.loss + path.entropy)
    residual = (path.growth - exact).abs() / (degree * (path.loss.abs() + path.entropy + 1))
    allowed = ROUND_OFF + path.trajectory.rtol
    worst, slack = float(residual.amax()), float(degree * path.entropy.amin())
    detail = f"slack is L·S(p); |θ·G − L(ℓ + S)| is {worst:.1e} of its size; {allowed:.0e} allowed"
    return Verdict(name, worst <= allowed and slack >= 0, min(slack, allowed - worst), detail)


def _soft_margin_bounds(path: _Path) -> Verdict:
    size = path.loss.abs() + 1
    above = ((path.q_min - path.loss) / size).amin()
    below = ((path.loss - path.q_min + path.log_samples) / size).amin()
    allowed = ROUND_OFF + path.trajectory.rtol
    slack = min(float(above), float(below))
    return Verdict(
        "Lemma 4.3: γ − log K·Q̂^(−L/α) ≤ γ̃ ≤ γ", slack >= -allowed, slack,
        f"relative; below {float(below):.2g}, above {float(above):.2g}",
    )  # fmt: skip


def _assumption(path: _Path) -> Verdict:
    name = "Assumption 4.4: αQ ≥ ‖θ‖²_A"
    if path.q_hat is None:
        return Verdict(name, None, math.nan, "the potential has no asymptotic degree")
    slack = float(((path.q_hat - path.local) / path.q_hat.clamp(min=1e-300)).amin())
    detail = f"smallest (αQ − ‖θ‖²_A)/αQ is {slack:.2g}"
    return Verdict(name, slack >= -ROUND_OFF, slack, detail)


def _monotone(path: _Path) -> Verdict:
    name = "Theorem 4.5: the soft Q-margin grows once 𝓛 < 1"
    if path.q_hat is None:
        return Verdict(name, None, math.nan, "the potential has no asymptotic degree")
    late = path.loss > 0
    if int(late.sum()) < 2:
        return Verdict(name, None, math.nan, "the loss is never below 1 at two saved points")
    flow = path.trajectory.flow
    power = flow.network.degree / asymptotic_degree(flow)
    loss = path.loss[late]
    log_margin = torch.log(loss) - power * torch.log(path.q_hat[late])
    gain = log_margin.diff()
    residual = (path.residual[late] / loss)[1:] + path.trajectory.rtol
    slack, worst = float((gain + residual).amin()), float(gain.amin())
    grown, largest = float(log_margin[-1] - log_margin[0]), float(residual.amax())
    # A residual excuses a loss of margin only as long as it is one of the integration.
    slack = min(slack, DRIFT * path.trajectory.rtol - largest)
    detail = f"smallest gain of log γ̃ {worst:.1e}, residual {largest:.1e}, in all {grown:.3g}"
    return Verdict(name, slack >= 0, slack, detail)


def _dissipation(path: _Path) -> Verdict:
    name = "Dissipation: ∫‖dθ/dt‖²_A dt = 𝓛(0) − 𝓛(t)"
    run = path.trajectory
    if not bool(torch.isfinite(run.dissipated).all()):
        return Verdict(name, None, math.nan, "the method does not carry the integral")
    # In the log domain, and summed over the run: what each stretch is wrong by, as a share of its ℓ
    # once the loss is the clock.
    gained, change = run.dissipated.diff(), path.loss.diff()
    wrong = (gained - change) / path.loss[1:].clamp(min=1.0)
    worst, allowed = float(wrong.cumsum(0).abs().amax()), LOST * run.rtol
    detail = f"|∫‖g‖²_D − Δ log(1/𝓛)| at most {worst:.1e}; {allowed:.0e} allowed"
    if run.stats.through_kinks:
        detail += "; kinks were stepped through, which costs this"
    return Verdict(name, worst <= allowed, allowed - worst, detail)
