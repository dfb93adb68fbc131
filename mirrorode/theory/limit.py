"""Statements about where the direction tends to: Theorems 4.7 and 4.9, Corollaries 4.8 and I.1."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.problem.errors import InputError, require
from mirrorode.problem.networks import MLP
from mirrorode.problem.potentials import Euclidean
from mirrorode.theory.circle import global_margin
from mirrorode.theory.convex import frozen_feature_max_margin
from mirrorode.theory.kkt import KKT, kkt
from mirrorode.theory.margins import norm_margin
from mirrorode.theory.points import Path
from mirrorode.theory.verdicts import NEVER_LATE, NO_DEGREE, Verdict

NEAR = 1e-2  # relative distance from a limit that counts as being there
DECADES = (1.0, 10.0, 1e2, 1e3, 1e5, 1e7, 1e9)  # of log(1/𝓛) at which certificates are made
INACTIVE = 1e-3  # share of the largest weight below which one counts as zero


@dataclass(frozen=True)
class Certificates:
    """KKT certificates along a trajectory: at ``points`` of it, or why there are none."""

    points: tuple[int, ...]
    found: tuple[KKT, ...]
    missing: str = ""

    @classmethod
    def along(cls, path: Path) -> Certificates:
        """At the saved points nearest to the decades of log(1/𝓛), and at the last one."""
        if path.alpha is None:
            return cls((), (), NO_DEGREE)
        if len(path.late) == 0:
            return cls((), (), NEVER_LATE)
        loss = path.loss[path.late].log()
        near = [int((loss - math.log(it)).abs().argmin()) for it in DECADES]
        points = tuple(path.late[sorted({*near, len(path.late) - 1})].tolist())
        try:
            found = tuple(kkt(path.flow, path.points.theta[point]) for point in points)
        except InputError as error:
            return cls((), (), str(error))
        return cls(points, found)


def stationarity(path: Path, certificates: Certificates) -> Verdict:
    """Theorem 4.7 and Corollary 4.8."""
    name = "Thm 4.7, Cor. 4.8: the direction tends to a KKT point of min ½φ², q_i ≥ 1"
    if certificates.missing:
        return Verdict.not_applicable(name, certificates.missing)
    loss = path.loss[list(certificates.points)].tolist()
    residual = [it.residual for it in certificates.found]
    shown = ", ".join(f"{r:.1e} at {v:.1g}" for r, v in zip(residual, loss, strict=True))
    detail = f"relative residual {shown}{_of_the_global(path)}"
    rate, at = decay(loss, residual)
    if residual[-1] > NEAR and len(residual) > 2 and loss[-1] > 1e3 and not rate < 0:
        return Verdict.judged(name, NEAR - residual[-1], detail + "; it does not fall")
    return Verdict.eventual(name, NEAR - residual[-1], detail, _when(rate, at))


def _of_the_global(path: Path) -> str:
    """How much of the globally largest L₂-margin is reached, where that is known."""
    if not isinstance(path.flow.potential, Euclidean):
        return ""
    try:
        best = global_margin(path.flow).margin
    except InputError:
        return ""
    own = float(norm_margin(path.flow, path.points.theta[-1], 2))
    return f"; {own / best:.6f} of the globally largest L₂-margin"


def decay(loss: list[float], value: list[float]) -> tuple[float, float]:
    """The power of ℓ with which the last three values fall, and the ℓ at which it makes 1e-2."""
    if len(loss) < 2:
        return math.nan, math.inf
    x, y = np.log(loss[-3:]), np.log(np.maximum(value[-3:], 1e-300))
    rate = float(np.polyfit(x, y, 1)[0])
    if not rate < 0:
        return rate, math.inf
    power = x[-1] + (math.log(NEAR) - y[-1]) / rate
    return rate, math.exp(power) if power < 700 else math.inf


def _when(rate: float, at: float) -> str:
    """When a value that falls with this power of ℓ is small."""
    if not math.isfinite(at):
        return f"when it is {NEAR:g} cannot be told yet, as it does not fall at the last points"
    return f"{NEAR:g} expected at log(1/𝓛) ≈ {at:.1g}, as it falls like log(1/𝓛)^({rate:.2f})"


def inactive(path: Path, certificates: Certificates) -> Verdict:
    """What Corollary 4.8 needs of Σ λ_i h_i where θ vanishes, and its proof does not give.

    With g = Σ λ_i h_i and c = ⟨θ, g⟩/‖θ‖₁, |g_k| ≤ c on the coordinates that vanish in the limit.
    """
    name = "Cor. 4.8, open: |g_k| ≤ c where θ_k vanishes"
    if certificates.missing:
        return Verdict.not_applicable(name, certificates.missing)
    if path.alpha != 1:
        return Verdict.not_applicable(name, "∂½φ² is a gradient for α > 1")
    last = certificates.points[-1]
    theta = path.points.theta[last].double().cpu()
    zero = theta.abs() <= INACTIVE * theta.abs().amax()
    if not bool(zero.any()):
        return Verdict.eventual(name, -1.0, "no weight is below 1e-3 of the largest", "later")
    ratios = {
        "best multipliers": _ratio(theta, certificates.found[-1].image, zero),
        "z": _ratio(theta, path.trajectory.dual[last].double().cpu(), zero),
    }
    shown = ", ".join(f"{value:.4f} ({name})" for name, value in ratios.items())
    detail = f"largest |g_k|/c over {int(zero.sum())} of {len(theta)} coordinates: {shown}"
    slack = 1 + NEAR - ratios["best multipliers"]
    return Verdict.eventual(name, slack, detail, "the direction is not near its limit")


def _ratio(theta: Tensor, image: Tensor, zero: Tensor) -> float:
    """max |g_k| over the coordinates ``zero``, over c."""
    return float(image[zero].abs().amax() * theta.abs().sum() / (theta @ image))


def frozen_features(path: Path, certificates: Certificates) -> Verdict:
    """Corollary I.1 and Lemma I.3: φ(θ/L) against the optimum, both for a smallest margin of 1."""
    name = "Cor. I.1: θ/L is optimal for the features frozen at the limit"
    if certificates.missing:
        return Verdict.not_applicable(name, certificates.missing)
    assert path.alpha is not None
    gaps = []
    points = certificates.points[-3:]
    for point in points:
        theta = path.points.theta[point].double().cpu()
        try:
            best = frozen_feature_max_margin(path.flow, theta).margin
        except InputError as error:
            return Verdict.not_applicable(name, str(error))
        size = torch.linalg.vector_norm(theta, ord=path.alpha)
        own = path.degree * float(path.points.q_min[point] ** (1 / path.degree) / size)
        # The frozen margin is for gradients at θ scaled to a smallest margin of 1.
        gaps.append(best / own - 1)
    loss = path.loss[list(points)].tolist()
    detail = f"relative gap of the margins {gaps[-1]:.1e}"
    rate, at = decay(loss, [max(gap, 0.0) for gap in gaps])
    return Verdict.eventual(name, NEAR - gaps[-1], detail, _when(rate, at))


@dataclass(frozen=True)
class Features:
    """The neurons of a two-layer network at a direction, as Theorem 4.9 sees them.

    Attributes:
        objective: 2 Σ |ã_j|^{α/2} over ‖θ‖_α^α; 1 where every neuron is balanced.
        unbalanced: the largest ||a_j|^α − ‖w_j‖_α^α| over the largest of |a_j|^α + ‖w_j‖_α^α.
        active: participation ratio (Σ s_j)²/Σ s_j² of the sizes s_j = |a_j|‖w_j‖₂.
        counted: how many sizes are above 1e-3 of the largest.
    """

    objective: float
    unbalanced: float
    active: float
    counted: int


def features(flow: MirrorFlow, theta: Tensor) -> Features:
    """The balance and the number of active neurons of an `MLP` with one hidden layer at θ (n,).

    Raises:
        InputError: for another network, or a potential that is not separable or has no degree.
    """
    layers = flow.network.widths if isinstance(flow.network, MLP) else ()
    alpha = flow.potential.degree
    if len(layers) != 3 or layers[-1] != 1:
        raise InputError(f"`network` must be an MLP with one hidden layer, but is {flow.network}")
    if alpha is None:
        raise InputError(f"`potential` must have a degree, but {flow.potential} has none")
    require(flow.potential.separable, "potential", "be separable", flow.potential)
    weights = list(flow.network.unflatten(theta / theta.abs().amax()).values())
    w, a = weights[0], weights[1][0].abs()
    incoming = torch.linalg.vector_norm(w, ord=alpha, dim=-1)
    both = a**alpha + incoming**alpha
    size = a * w.norm(dim=-1)
    return Features(
        float(2 * ((a * incoming) ** (alpha / 2)).sum() / both.sum()),
        float((a**alpha - incoming**alpha).abs().amax() / both.amax()),
        float(size.sum() ** 2 / size.square().sum()),
        int((size > INACTIVE * size.amax()).sum()),
    )


def reformulation(path: Path) -> Verdict:
    """Theorem 4.9."""
    name = "Theorem 4.9: φ^α = 2Σ|ã_j|^(α/2) in the limit, as |a_j| = ‖w_j‖_α"
    if len(path.late) == 0:
        return Verdict.not_applicable(name, NEVER_LATE)
    few = path.few(8)
    try:
        found = [features(path.flow, path.points.theta[point]) for point in few]
    except InputError:
        needs = "needs an MLP with one hidden layer and a separable potential with a degree"
        return Verdict.not_applicable(name, needs)
    gap = [1 - it.objective for it in found]
    last = found[-1]
    detail = (
        f"1 − 2Σ|ã|^(α/2)/‖θ‖_α^α = {gap[-1]:.1e}, largest imbalance {last.unbalanced:.1e}; "
        f"{last.active:.1f} active neurons by participation, {last.counted} above "
        f"{INACTIVE:g} of the largest"
    )
    rate, at = decay(path.loss[few].tolist(), gap)
    return Verdict.eventual(name, NEAR - max(gap[-1], last.unbalanced), detail, _when(rate, at))
