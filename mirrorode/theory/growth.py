"""Statements that make the Q-margin grow: Lemma 4.3, Theorem 4.5 and what they rest on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mirrorode.problem.layerwise import Layerwise
from mirrorode.problem.networks import MLP, DiagonalLinear
from mirrorode.theory.points import TINY, Path
from mirrorode.theory.verdicts import DRIFT, NEVER_LATE, NO_DEGREE, ROUND_OFF, Verdict


def soft_margin_bounds(path: Path) -> Verdict:
    """Lemma 4.3."""
    size = path.loss.abs() + 1
    above = float(((path.points.q_min - path.loss) / size).amin())
    log_samples = math.log(len(path.flow.dataset))
    below = float(((path.loss - path.points.q_min + log_samples) / size).amin())
    slack = min(above, below) + ROUND_OFF + path.trajectory.rtol
    return Verdict.judged(
        "Lemma 4.3: γ − log K·Q̂^(−L/α) ≤ γ̃ ≤ γ",
        slack,
        f"relative; below {below:.2g}, above {above:.2g}",
    )


def assumption(path: Path) -> Verdict:
    """Assumption 4.4."""
    name, points = "Assumption 4.4: αQ ≥ ‖θ‖²_A", path.points
    if path.alpha is None:
        return Verdict.not_applicable(name, NO_DEGREE)
    least = float(((points.q_hat - points.local) / points.q_hat.clamp(min=TINY)).amin())
    return Verdict.judged(name, least + ROUND_OFF, f"smallest (αQ − ‖θ‖²_A)/αQ is {least:.2g}")


def monotone(path: Path) -> Verdict:
    """Theorem 4.5."""
    name = "Theorem 4.5: the soft Q-margin grows once 𝓛 < 1"
    if path.alpha is None:
        return Verdict.not_applicable(name, NO_DEGREE)
    return _grows(name, path, path.soft_margin, "log γ̃")


def multi_margin(path: Path) -> Verdict:
    """Definition I.4, for f homogeneous in each layer.

    As in Lemma D.1, with N ≥ Σ_j T_j²/M_j, T_j = T/L and M_j ≤ Q̂_j of the layers j:
    d log γ̃/dσ = N/ℓ − Σ_j T_j/Q̂_j ≥ 0.
    """
    name = "Definition I.4: the soft multi-Q-margin grows once 𝓛 < 1"
    if not isinstance(path.flow.network, MLP | DiagonalLinear):
        return Verdict.not_applicable(name, "known to be homogeneous in each layer: MLP, diagonal")
    sizes = _log_sizes(path)
    if sizes is None:
        return Verdict.not_applicable(name, "a layer has no potential of its own, with a degree")
    margin = path.loss[path.late].log() - sizes[path.late]
    return _grows(name, path, margin, "log γ̃")


def _log_sizes(path: Path) -> Tensor | None:
    """Σ_j log(Q̂_j)/α_j over the layers, (T,)."""
    flow, theta = path.flow, path.points.theta
    shapes, potential = flow.network.shapes, flow.potential
    given = potential.potentials if isinstance(potential, Layerwise) else {}
    terms = potential.balance_term(theta) - potential.value(torch.zeros_like(theta[0]))
    counts = [math.prod(shape) for shape in shapes.values()]
    layers = [part.unique() for part in potential.parts(theta.shape[-1]).split(counts)]
    if len(torch.cat(layers).unique()) < sum(map(len, layers)):
        return None  # a term of R has weights of two layers
    total = torch.zeros_like(path.loss)
    for name, layer in zip(shapes, layers, strict=True):
        degree = given.get(name, potential).degree
        if degree is None:
            return None
        size = degree * terms[:, layer.to(terms.device)].sum(-1)
        total = total + size.clamp(min=TINY).log() / degree
    return total


def _grows(name: str, path: Path, log_margin: Tensor, symbol: str) -> Verdict:
    """Whether a logarithm of ℓ over a size, at the late points, never falls."""
    late, rtol = path.late, path.trajectory.rtol
    if len(late) < 2:
        return Verdict.not_applicable(name, NEVER_LATE)
    gain = log_margin.diff()
    residual = (path.residual[late] / path.loss[late])[1:] + rtol
    worst, largest = float(gain.amin()), float(residual.amax())
    # A residual excuses a loss of margin only as long as it is one of the integration.
    slack = min(float((gain + residual).amin()), DRIFT * rtol - largest)
    grown = float(log_margin[-1] - log_margin[0])
    detail = f"smallest gain of {symbol} {worst:.1e}, residual {largest:.1e}, in all {grown:.3g}"
    return Verdict.judged(name, slack, detail)


def margin_rate(path: Path) -> Verdict:
    """Lemma D.1, by its two terms, both of them positive: the difference of its sides would cancel.

    With N = E + T²/M the slack is E (T − Lℓ)/(ℓT) + T (T/(Mℓ) − L/Q̂), here relative to N/ℓ.
    """
    name = "Lemma D.1: d log γ̃/dt ≥ L (d log Q/dt)⁻¹ E_tan ≥ 0"
    if path.alpha is None:
        return Verdict.not_applicable(name, NO_DEGREE)
    if len(path.late) == 0:
        return Verdict.not_applicable(name, NEVER_LATE)
    points, late = path.points, path.late
    loss, growth, speed = path.loss[late], points.growth[late], points.speed[late]
    excess = growth - path.degree * loss
    angular = points.tangential[late] * excess / (growth * speed)
    radial = growth**2 / (points.local[late] * speed)
    radial = radial - path.degree * growth * loss / (points.q_hat[late] * speed)
    least = float((angular + radial).amin())
    falling = float((growth <= 0).sum())
    detail = f"smallest difference of the sides {least:.2g} of d log ℓ/dt"
    return Verdict.judged(name, least + ROUND_OFF + path.trajectory.rtol - falling, detail)
