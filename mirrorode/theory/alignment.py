"""When the Q-margin has become the margin of the horizon: Appendix H and Lemma 4.10."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.problem.potentials import Euclidean, HyperbolicEntropy, SmoothedHomogeneous
from mirrorode.theory.margins import asymptotic_degree, q_potential
from mirrorode.theory.points import Path
from mirrorode.theory.scaling import loss_at_scale
from mirrorode.theory.verdicts import NEVER_LATE, NO_DEGREE, ROUND_OFF, Verdict

ALIGNED = 0.1  # the ε of ε-alignment


def alignment_constants(flow: MirrorFlow) -> tuple[float, float] | None:
    """(a, c) of Assumption H.1, φ ≤ Q̂^{1/α} ≤ cφ + a (Corollaries H.3, H.4).

    None for a potential whose constants are not known.
    """
    potential, n = flow.potential, flow.network.size
    if isinstance(potential, HyperbolicEntropy):
        return n * math.sqrt(potential.lam), 1.0
    if isinstance(potential, Euclidean):
        return 0.0, 1.0
    if isinstance(potential, SmoothedHomogeneous):
        p, lam = potential.p, potential.lam
        if p == 2:  # its horizon has λ in it, and is reached everywhere
            return 0.0, 1.0
        return (p * lam * n / 2) ** (1 / p), ((p - 1 + p * lam / 2) / (p - 1)) ** (1 / p)
    return None


def misaligned(flow: MirrorFlow, theta: Tensor) -> Tensor:
    """(Q̂^{1/α} − φ)/Q̂^{1/α}, (…), in [0, 1]: what of the Q-margin is not that of the horizon.

    Raises:
        InputError: if the potential has no asymptotic degree.
    """
    size = q_potential(flow, theta) ** (1 / asymptotic_degree(flow))
    return 1 - _horizon(flow, theta) / size


def _horizon(flow: MirrorFlow, theta: Tensor) -> Tensor:
    return flow.potential.horizon(theta)


def horizon_bounds(path: Path) -> Verdict:
    """Assumption H.1."""
    name = "Assumption H.1: φ ≤ (αQ)^(1/α) ≤ cφ + a"
    if path.alpha is None:
        return Verdict.not_applicable(name, NO_DEGREE)
    size = path.points.q_hat ** (1 / path.alpha)
    horizon = _horizon(path.flow, path.points.theta)
    below = float((1 - horizon / size).amin())
    known = alignment_constants(path.flow)
    if known is None:
        detail = f"left side {below:.2g}; the constants of the right side are not known"
        return Verdict.judged(name, below + ROUND_OFF, detail)
    a, c = known
    above = float(((c * horizon + a) / size - 1).amin())
    detail = f"relative slack {below:.2g} and {above:.2g}, a = {a:.3g}, c = {c:.4g}"
    return Verdict.judged(name, min(below, above) + ROUND_OFF, detail)


def alignment(path: Path) -> Verdict:
    """Lemma 4.10 as ε-alignment: as stated it is empty, the difference being in [0, 1]."""
    name = f"Lemma 4.10: (αQ)^(1/α) is within {ALIGNED:g} of φ, after Ω(exp(a^L))"
    if path.alpha is None:
        return Verdict.not_applicable(name, NO_DEGREE)
    if len(path.late) == 0:
        return Verdict.not_applicable(name, NEVER_LATE)
    flow, late, loss = path.flow, path.late, path.loss
    gap = misaligned(flow, path.points.theta[late])
    detail = f"relative difference {float(gap[-1]):.2g}{_guaranteed(path)}"
    aligned = torch.nonzero(gap > ALIGNED)[:, 0]
    since = int(aligned[-1]) + 1 if len(aligned) else 0
    if since < len(late):
        log_t = float(path.trajectory.log_time[late[since]])
        detail += f"; aligned from log t = {log_t:.4g} on"
    at = math.nan
    if float(gap[-1]) > ALIGNED:
        end, last = path.points.theta[-1], float(loss[-1])
        at = loss_at_scale(flow, end, last, lambda it: ALIGNED - float(misaligned(flow, it)))
    when = f"expected from log(1/𝓛) ≈ {at:.3g} on"
    return Verdict.eventual(name, ALIGNED - float(gap[-1]), detail, when)


def _guaranteed(path: Path) -> str:
    """From when on Assumption H.1 alone says so: (log t)^{1/L} ≥ a/(κε), if c = 1."""
    known = alignment_constants(path.flow)
    if known is None or known[1] != 1 or known[0] == 0:
        return ""
    assert path.alpha is not None
    log_time = path.trajectory.log_time[path.late].clamp(min=1.0)
    size = path.points.q_hat[path.late] ** (1 / path.alpha)
    slowest = float((size / log_time ** (1 / path.degree)).amin())
    return f", certain from log t = {(known[0] / (slowest * ALIGNED)) ** path.degree:.2g} on"
