"""Statements that are identities: duality, balance, the growth of Q and dissipation."""

from __future__ import annotations

import math

import torch

from mirrorode.flow.trajectory import Trajectory
from mirrorode.theory.balance import Invariants, layer_laws, unit_laws
from mirrorode.theory.points import TINY, Path
from mirrorode.theory.verdicts import DRIFT, ROUND_OFF, Verdict

CORRECTED = 1e-13  # drift, of the sum of terms, that may be left where it is corrected
LOST = 30.0  # multiples of rtol that the dissipation may miss up to ℓ = 10 and a decade beyond


def fenchel_young(path: Path) -> Verdict:
    """Lemma 2.5."""
    trajectory, potential = path.trajectory, path.flow.potential
    theta, dual = trajectory.theta, trajectory.dual
    value, conjugate = potential.value(theta), potential.conjugate(dual)
    parts = potential.parts(theta.shape[-1]).to(theta.device)
    product = torch.zeros_like(value).index_add(-1, parts, theta * dual)
    size = product.abs() + value.abs() + conjugate.abs()
    residual = (product - value - conjugate).abs().sum(-1)
    worst = float((residual / size.sum(-1).clamp(min=TINY)).amax())
    return Verdict.judged(
        "Lemma 2.5: θ·z = R(θ) + Q(z)",
        ROUND_OFF - worst,
        f"largest relative residual {worst:.1e}",
    )


def layer_balance(path: Path) -> Verdict:
    """Lemma 3.1."""
    run = path.trajectory
    laws = layer_laws(run.flow, run.theta)
    return _drift("Lemma 3.1: Q_i − Q_{i+1} is constant", run, laws, slice(-len(laws), None))


def unit_balance(path: Path) -> Verdict:
    """Appendix G.5."""
    run = path.trajectory
    laws = unit_laws(run.flow, run.theta)
    return _drift("App. G.5: the same for every unit", run, laws, slice(len(laws)))


def _drift(name: str, run: Trajectory, laws: Invariants, columns: slice) -> Verdict:
    if len(laws) == 0:
        return Verdict.not_applicable(name, laws.missing)
    now, allowed = float(laws.drift()), DRIFT * run.rtol
    done = now if run.drift is None else float(run.drift[:, columns].amax())
    detail = f"the integrator drifts by {done:.1e} of the sum of terms; {allowed:.0e} allowed"
    if not run.balanced:
        return Verdict.judged(name, allowed - now, detail)
    detail += f"; corrected, {now:.1e} is left"
    if run.stats.balance_left:
        detail += f", as {run.stats.balance_left} units at saved points cannot be put back"
    slack = allowed - done if run.stats.balance_left else min(allowed - done, CORRECTED - now)
    return Verdict.judged(name, slack, detail)


def growth_of_q(path: Path) -> Verdict:
    """Equation (4)."""
    points = path.points
    exact = path.degree * (path.loss + points.entropy)
    size = path.degree * (path.loss.abs() + points.entropy + 1)
    allowed = ROUND_OFF + path.trajectory.rtol
    worst = float(((points.growth - exact).abs() / size).amax())
    slack = float(path.degree * points.entropy.amin())
    return Verdict.judged(
        "Eq. (4): dQ/dt = L Σ e^(−q) q ≥ L 𝓛 log(1/𝓛)",
        min(slack, allowed - worst),
        f"slack is L·S(p); |θ·G − L(ℓ + S)| is {worst:.1e} of its size; {allowed:.0e} allowed",
    )


def dissipation(path: Path) -> Verdict:
    """The energy that the least-norm selection loses."""
    name, run = "Dissipation: ∫‖dθ/dt‖²_A dt = 𝓛(0) − 𝓛(t)", path.trajectory
    if not bool(torch.isfinite(run.dissipated).all()):
        return Verdict.not_applicable(name, "the method does not carry the integral")
    # In the log domain, and summed over the run: what each stretch is wrong by, as a share of its ℓ
    # once the loss is the clock.
    gained, change = run.dissipated.diff(), path.loss.diff()
    wrong = (gained - change) / path.loss[1:].clamp(min=1.0)
    worst = float(wrong.cumsum(0).abs().amax()) if len(wrong) else 0.0
    allowed = LOST * run.rtol * max(1.0, math.log10(max(float(path.loss[-1]), 1.0)))
    detail = f"|∫‖g‖²_D − Δ log(1/𝓛)| at most {worst:.1e}; {allowed:.0e} allowed"
    if run.stats.through_kinks:
        detail += "; kinks were stepped through, which costs this"
    return Verdict.judged(name, allowed - worst, detail)
