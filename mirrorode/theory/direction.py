"""Statements on the way to a KKT point: Appendices E and G."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.problem.potentials import SmoothedHomogeneous
from mirrorode.theory.approximate import half_square_gradient, of_points
from mirrorode.theory.margins import asymptotic_degree, q_potential
from mirrorode.theory.points import Path, Points
from mirrorode.theory.scaling import loss_at_scale
from mirrorode.theory.verdicts import DRIFT, NEVER_LATE, NO_DEGREE, ROUND_OFF, Verdict

SEVERAL = 64  # points at which the gradients of all samples are looked at
WEIGHTS = 1e-9  # of ℓ: how exactly margins, and so the weights of a stored state, are known
BIG = (1e4, 1e5, 1e6)  # multiples of θ at which Assumption G.1 is looked at
DECAY = 0.05  # accuracy asked of an exponent that is a limit


def dual_speed(path: Path) -> Verdict:
    """Lemma E.1, with B₁ and C₂ the supremum and the infimum over the points looked at."""
    name = "Lemma E.1: ‖d(z/‖z‖)/dt‖ ≤ 2B₁ θ·ż/(L γ̃ C₂ ‖θ‖‖z‖)"
    if path.alpha is None:
        return Verdict.not_applicable(name, NO_DEGREE)
    if len(path.late) == 0:
        return Verdict.not_applicable(name, NEVER_LATE)
    few, points, flow = path.few(SEVERAL), path.points, path.flow
    field, theta, dual = points.field[few], points.theta[few], path.trajectory.dual[few]
    q_hat, loss = points.q_hat[few], path.loss[few]
    largest = torch.stack([flow.margin_gradients(one).norm(dim=-1).amax() for one in theta])
    # A sample's gradient under the least-norm selection may be longer than on its off side.
    largest = torch.maximum(largest, field.norm(dim=-1))
    steep = float((largest / q_hat ** ((path.degree - 1) / path.alpha)).amax())
    thick = float((q_hat ** (1 / path.alpha) / theta.norm(dim=-1)).amin())
    size = dual.norm(dim=-1)
    unit = dual / size[:, None]
    turned = field - (unit * field).sum(-1, keepdim=True) * unit
    soft = loss / q_hat ** (path.degree / path.alpha)
    bound = 2 * steep * points.growth[few] / (path.degree * soft * thick * theta.norm(dim=-1))
    least = float((1 - turned.norm(dim=-1) / bound).amin())
    detail = f"smallest relative slack {least:.3g}; B₁ = {steep:.3g}, C₂ = {thick:.3g}"
    return Verdict.judged(name, least, detail)


def growth_of_log_q(path: Path) -> Verdict:
    """Lemma E.2: ‖θ‖‖z‖ ≥ Q from some time on, at the latest when R > 0."""
    name = "Lemma E.2: d log Q/dt ≥ θ·ż/(‖θ‖‖z‖) from some t₁ on"
    late, flow, potential = path.late, path.flow, path.flow.potential
    if len(late) == 0:
        return Verdict.not_applicable(name, NEVER_LATE)
    theta, dual = path.points.theta[late], path.trajectory.dual[late]
    value = potential.value(theta).sum(-1)
    q = potential.conjugate(dual).sum(-1)
    if not bool((q > 0).all()):
        return Verdict.not_applicable(
            name, "Q is not positive: r(0) lowers it, and may be left out"
        )
    slack = theta.norm(dim=-1) * dual.norm(dim=-1) / q - 1
    bad = torch.nonzero(slack < -ROUND_OFF)[:, 0]
    detail = f"(‖θ‖‖z‖ − Q)/Q is {float(slack[-1]):.3g} at the end"
    if len(bad) and float(value[bad].amax()) > 0:
        return Verdict.judged(name, float(slack.amin()), detail + "; it is violated where R > 0")
    if len(bad) == 0:
        first = float(path.loss[late[0]])
        return Verdict.judged(
            name, float(slack.amin()) + ROUND_OFF, f"{detail}; from {first:.3g} on"
        )

    def holds(point: Tensor) -> float:
        pull = potential.gradient(point)
        q = potential.conjugate(pull).sum()
        return float(point.norm() * pull.norm() - q)

    if int(bad[-1]) + 1 < len(late):
        since = float(path.loss[late[int(bad[-1]) + 1]])
        return Verdict.judged(name, float(slack[-1]), f"{detail}; from log(1/𝓛) = {since:.4g} on")
    at = loss_at_scale(flow, theta[-1], float(path.loss[-1]), holds)
    positive = loss_at_scale(
        flow, theta[-1], float(path.loss[-1]), lambda point: float(potential.value(point).sum())
    )
    when = f"expected from log(1/𝓛) ≈ {at:.3g} on, R > 0 from {positive:.3g} on"
    return Verdict.eventual(name, float(slack[-1]), detail, when)


def approximate_kkt(path: Path) -> Verdict:
    """Lemma G.6, by the paper's own multipliers."""
    name = "Lemma G.6: an (ε, δ)-KKT point, ε = C₁√(1−β), δ = C₂/log(1/𝓛)"
    if path.alpha is None or path.alpha < 2:
        return Verdict.not_applicable(name, NO_DEGREE if path.alpha is None else "needs α ≥ 2")
    if len(path.late) == 0:
        return Verdict.not_applicable(name, NEVER_LATE)
    if not path.flow.potential.separable:
        return Verdict.not_applicable(name, "the bound C₁ is known for separable potentials")
    found = of_points(_some(path.points, path.late))
    # What is compared late in training are differences of vectors of length one.
    first = 1 - (found.epsilon - ROUND_OFF * found.size) / found.epsilon_bound
    second = 1 - (found.delta / found.delta_bound)
    slack = min(float(first.amin()), float(second.amin()))
    size = found.size[-1]
    detail = (
        f"relative to ‖∂½φ²‖ at the end ε {float(found.epsilon[-1] / size):.2g} ≤ "
        f"{float(found.epsilon_bound[-1] / size):.2g} ({float(found.distance[-1] / size):.2g} from "
        f"∂½φ²), δ {float(found.delta[-1]):.2g} ≤ {float(found.delta_bound[-1]):.2g}"
    )
    return Verdict.judged(name, slack, detail)


def _some(points: Points, which: Tensor) -> Points:
    """The points ``which``."""
    own = {name: value for name, value in vars(points).items() if isinstance(value, Tensor)}
    return Points(points.flow, **{name: value[which] for name, value in own.items()})


def angle_integral(path: Path) -> Verdict:
    """Lemma G.7, with β⁻² d log Q = M/(TQ) dw, w = ∫‖dθ/dt‖²_A dt/𝓛 as the integrator has it.

    So the integrand is continuous along kinks, where β is not.
    """
    name = "Lemma G.7: ∫(β⁻² − 1) d log Q ≤ (α/L) Δ log γ̃"
    if path.alpha is None:
        return Verdict.not_applicable(name, NO_DEGREE)
    if len(path.late) < 3:
        return Verdict.not_applicable(name, NEVER_LATE)
    late, points, rtol = path.late, path.points, path.trajectory.rtol
    loss, q_hat = path.loss[late], points.q_hat[late]
    lost = path.trajectory.dissipated[late].diff() / loss.diff()
    lost = torch.where(torch.isfinite(lost), lost, 1.0)
    factor = path.alpha * points.local[late] * loss / (points.growth[late] * q_hat)
    scale = loss.log().diff()
    parts = 0.5 * (factor[1:] + factor[:-1]) * lost * scale
    grown = q_hat.log().diff()
    left = parts.sum() - grown.sum()
    right = path.alpha / path.degree * (path.soft_margin[-1] - path.soft_margin[0])
    # The trapezoids over pairs of intervals tell how wrong those over single ones are.
    wide = 0.5 * (factor[2::2] + factor[:-2:2]) * (scale[:-1:2] + scale[1::2])
    single = parts[: 2 * len(wide)].sum()
    error = float((wide.sum() - single).abs()) / 3 + DRIFT * rtol
    detail = f"{float(left):.4g} ≤ {float(right):.4g}, quadrature to {error:.1g}"
    return Verdict.judged(name, float(right - left) + error, detail)


def angle(path: Path) -> Verdict:
    """Corollary G.8, over each decade of log(1/𝓛)."""
    name = "Corollary G.8: somewhere in between β⁻² − 1 ≤ (α/L) Δ log γ̃/Δ log Q"
    if path.alpha is None:
        return Verdict.not_applicable(name, NO_DEGREE)
    late, points = path.late, path.points
    decade = path.loss[late].log10().floor()
    slack, judged, worst = math.inf, 0, ""
    for number in decade.unique().tolist():
        inside = torch.nonzero(decade == number)[:, 0]
        if len(inside) < 3:
            continue
        here = late[inside]
        gained = path.soft_margin[inside[-1]] - path.soft_margin[inside[0]]
        grown = (points.q_hat[here[-1]] / points.q_hat[here[0]]).log()
        bound = float(path.alpha / path.degree * gained / grown)
        loss, rtol = path.loss[here], path.trajectory.rtol
        # The tangential part is a square: an error of the weights enters it squared.
        noise = (WEIGHTS * loss).square().clamp(max=1.0) + DRIFT * rtol / float(grown)
        left = float((points.misalignment[here] - noise).amin()) - bound
        judged += 1
        if -left < slack:
            slack, worst = -left, f"1e{number:g}: bound {bound:.2g}"
    if not judged:
        return Verdict.not_applicable(name, "no decade of log(1/𝓛) has three saved points")
    known = late[path.loss[late] * WEIGHTS < 1e-2]
    detail = f"{judged} decades, least at {worst}"
    if len(known):
        detail += f"; β⁻² − 1 falls to {float(points.misalignment[known[-1]]):.2g}"
    return Verdict.judged(name, slack, detail)


def horizon_gradient(path: Path) -> Verdict:
    """Assumption G.1 with C = 1 (Lemma G.10), far out along the last direction."""
    name = "Lemma G.10: Assumption G.1, ∂½φ² ≈ Q̂^(2/α−1) Aθ"
    flow, alpha = path.flow, path.alpha
    if alpha is None:
        return Verdict.not_applicable(name, NO_DEGREE)
    theta = path.points.theta[-1] / path.points.theta[-1].abs().amax()
    relative = torch.stack([_gap(flow, size * theta) for size in BIG])
    shown = f"relative difference {float(relative[-1]):.1e} at ‖θ‖_∞ = {BIG[-1]:.0e}"
    if alpha < 2:
        return Verdict.not_applicable(name, f"α < 2, and it does not hold: {shown}")
    if float(relative[-1]) < 1e-13:
        return Verdict.judged(name, ROUND_OFF - float(relative[-1]), shown)
    rate = float((relative[-1] / relative[-2]).log10() / math.log10(BIG[-1] / BIG[-2]))
    detail = f"{shown}, which falls like ‖θ‖^({rate:.2f})"
    if isinstance(flow.potential, SmoothedHomogeneous):
        return Verdict.judged(name, DECAY - abs(rate - (2 - alpha)), detail)
    return Verdict.judged(name, -rate - DECAY, detail)


def _gap(flow: MirrorFlow, theta: Tensor) -> Tensor:
    """‖∂½φ² − Q̂^{2/α−1} Aθ‖/‖∂½φ²‖ at one θ."""
    slope = half_square_gradient(flow, theta[None])[0]
    power = 2 / asymptotic_degree(flow) - 1
    own = q_potential(flow, theta) ** power * flow.potential.hessian_product(theta, theta)
    return (slope - own).norm() / slope.norm()
