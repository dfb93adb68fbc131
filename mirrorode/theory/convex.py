"""Max-margin problems of linear models, as convex references: min ½‖w‖_p² s.t. y_i⟨w, x_i⟩ ≥ 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linprog, minimize, nnls, root
from torch import Tensor

from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.problem.errors import InputError, require, require_number
from mirrorode.theory.kkt import kkt
from mirrorode.theory.margins import asymptotic_degree
from mirrorode.theory.subdifferential import Clarke

Array = NDArray[np.float64]

EXACT = 1e-10  # the tightest tolerance that HiGHS takes
SEPARABLE = 1e-9  # margin of unit features below which there is none
SEPARATED = "be separated by a hyperplane through the origin"
SUPPORT = 1e-9  # share of the largest multiplier that belongs to a support vector
TIGHT = 1e-9  # relative duality gap that is none
FEW = 500  # samples and features together, up to which quadratic programs are affordable


@dataclass(frozen=True, eq=False)
class MaxMargin:
    """The largest margin of a linear model, and what proves it.

    Attributes:
        direction: w, (n,), of norm 1.
        margin: min_i y_i⟨w, x_i⟩.
        duals: μ ≥ 0, (K,), with Σ μ_i y_i x_i ∈ ∂½‖·‖² at w/margin, which solves the problem.
        gap: the relative duality gap that is left; below 1e-9 but for p far above 4, where the dual
            problem is hardly smooth.
        norm: p.
    """

    direction: Tensor
    margin: float
    duals: Tensor
    gap: float
    norm: float

    def __repr__(self) -> str:
        support = int((self.duals > SUPPORT * self.duals.amax()).sum())
        return (
            f"MaxMargin(norm {self.norm:g}, margin {self.margin:.10g}, "
            f"{support} support vectors, relative gap {self.gap:.1e})"
        )


def max_margin(features: ArrayLike | Tensor, labels: ArrayLike | Tensor, norm: float) -> MaxMargin:
    """The maximum of min_i y_i⟨w, x_i⟩ over ‖w‖_p ≤ 1, from duality.

    It is the distance of the origin from the convex hull of the rows y_i x_i in the dual norm. For
    p = 1 and ∞ a linear program; for p = 2 non-negative least squares; for other p the smooth dual
    problem, polished by Newton's method on the equations of the support vectors, and sequential
    quadratic programming where that leaves a gap.

    Args:
        features: (K, n).
        labels: (K,), ±1.
        norm: p ≥ 1, or infinity.

    Raises:
        InputError: on wrong shapes, labels or norms, or if no hyperplane through the origin
            separates the labels.

    Reference:
        C. L. Lawson, R. J. Hanson, Solving Least Squares Problems (1974), chapter 23, for p = 2.
    """
    rows, p = _checked(features, labels, norm)
    sizes = np.abs(rows).max(1)
    scale = float(sizes.max())
    require(scale > 0, "features", "have a row that is not zero", "all zero")
    unit = rows / scale
    if p in (1.0, math.inf):
        weight, direction = _linear(unit, p)
    elif p == 2:
        weight = _least_squares(unit)
        direction = _aligned(unit.T @ weight, p)
    else:
        weight, direction = _smooth(unit, p)
    # Σμ_i = 1 and v = Σμ_i y_i x_i: ‖v‖_q bounds every margin from above.
    weight = np.maximum(weight, 0)
    require(weight.sum() > 0, "labels", SEPARATED, "not")
    weight = weight / weight.sum()
    image = unit.T @ weight
    bound = float(np.linalg.norm(image, ord=_conjugate(p)))
    require(bound > SEPARABLE, "labels", SEPARATED, "not")
    margin = float((unit @ direction).min())
    require(margin > 0, "labels", SEPARATED, "not")
    duals = torch.from_numpy(weight / (margin**2 * scale**2))
    found = torch.from_numpy(direction)
    return MaxMargin(found, margin * scale, duals, bound / margin - 1, float(p))


def _checked(
    features: ArrayLike | Tensor, labels: ArrayLike | Tensor, norm: float
) -> tuple[Array, float]:
    """The rows y_i x_i, and p."""
    try:
        x = np.asarray(torch.as_tensor(features).detach().cpu(), dtype=float)
        y = np.asarray(torch.as_tensor(labels).detach().cpu(), dtype=float)
    except (TypeError, ValueError, RuntimeError):
        raise InputError("`features` and `labels` must be arrays of numbers, but are not") from None
    fine = x.ndim == 2 and min(x.shape) > 0
    require(fine, "features", "have shape (K, n)", x.shape)
    require(y.shape == x.shape[:1], "labels", f"have shape ({len(x)},)", y.shape)
    require(bool(np.isfinite(x).all()), "features", "be finite", "not")
    require(bool((np.abs(y) == 1).all()), "labels", "be 1 or -1", "not")
    if norm != math.inf:
        require_number(norm, "norm", "be at least 1", 1.0, strict=False)
    return y[:, None] * x, float(norm)


def _conjugate(p: float) -> float:
    return math.inf if p == 1 else 1.0 if p == math.inf else p / (p - 1)


def _aligned(image: Array, p: float) -> Array:
    """The w of norm 1 with ⟨w, v⟩ = ‖v‖_q, 1 < p < ∞."""
    size = np.abs(image) / np.abs(image).max()
    w = np.copysign(size ** (1 / (p - 1)), image)
    return w / np.linalg.norm(w, ord=p)


def _linear(rows: Array, p: float) -> tuple[Array, Array]:
    """μ and w of: max m s.t. rows·w ≥ m, ‖w‖_p ≤ 1, for p = 1 or ∞."""
    samples, count = rows.shape
    ones = np.ones((samples, 1))
    bounds: list[tuple[float | None, float | None]]
    if p == 1:
        matrix = np.block([[-rows, rows, ones], [np.ones((1, 2 * count)), np.zeros((1, 1))]])
        limits = np.append(np.zeros(samples), 1.0)
        bounds = [(0, None)] * (2 * count)
    else:
        matrix, limits = np.block([[-rows, ones]]), np.zeros(samples)
        bounds = [(-1, 1)] * count
    cost = np.zeros(matrix.shape[1])
    cost[-1] = -1.0
    found = linprog(
        cost, matrix, limits, bounds=[*bounds, (None, None)], method="highs",
        options={"primal_feasibility_tolerance": EXACT, "dual_feasibility_tolerance": EXACT},
    )  # fmt: skip
    w = found.x[:count] - found.x[count : 2 * count] if p == 1 else found.x[:count]
    size = float(np.linalg.norm(w, ord=p))
    return -found.ineqlin.marginals[:samples], w / size if size > 0 else w


def _least_squares(rows: Array) -> Array:
    """μ ≥ 0 with Σμ = 1 that minimises ‖Σ μ_i rows_i‖₂, through the least-distance problem."""
    columns = np.vstack([rows.T, np.ones(len(rows))])
    target = np.append(np.zeros(rows.shape[1]), 1.0)
    return nnls(columns, target, maxiter=100 * len(rows))[0]


def _smooth(rows: Array, p: float) -> tuple[Array, Array]:
    """μ and w for 1 < p < ∞, p ≠ 2: the dual, and where that does not close the gap the primal."""
    start = _least_squares(rows)
    # The direction of p = 2 separates if any does.
    found = [(start, _unit(rows.T @ start, p))]
    for method in (_dual, _primal):
        found += method(rows, p, start)
        gaps = [_gap(rows, mu, w, p) for mu, w in found]
        if min(gaps) <= TIGHT:
            break
    return found[int(np.argmin(gaps))]


def _unit(w: Array, p: float) -> Array:
    """w with ‖w‖_p = 1."""
    size = float(np.linalg.norm(w / max(np.abs(w).max(), 1e-300), ord=p))
    return w / max(np.abs(w).max(), 1e-300) / max(size, 1e-300)


def _dual(rows: Array, p: float, start: Array) -> list[tuple[Array, Array]]:
    """μ ≥ 0 that minimises ½‖rowsᵀμ‖_q² − Σμ, then by Newton's method on its support."""
    q = p / (p - 1)

    def dual(mu: Array) -> tuple[float, Array]:
        image = rows.T @ mu
        size = float(np.linalg.norm(image, ord=q))
        if size == 0:
            return 0.0, -np.ones_like(mu)
        slope = size * np.copysign((np.abs(image) / size) ** (q - 1), image)
        return 0.5 * size**2 - float(mu.sum()), rows @ slope - 1

    size = float(np.linalg.norm(rows.T @ start, ord=q))
    start = start / max(size**2, 1e-300) * start.sum() if size > 0 else start
    options = {"maxiter": 20000, "maxfun": 40000, "ftol": 1e-16, "gtol": 1e-13, "maxcor": 30}
    bounds = [(0, None)] * len(rows)
    found = minimize(dual, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    support = found > 1e-7 * found.max()

    def equations(mu: Array) -> Array:
        whole = np.zeros_like(found)
        whole[support] = mu
        return dual(whole)[1][support]

    better = root(equations, found[support], method="hybr", options={"xtol": 1e-14})
    polished = np.zeros_like(found)
    polished[support] = np.maximum(better.x, 0)
    images = [(mu, rows.T @ mu) for mu in (found, polished)]
    return [(mu, _aligned(it, p)) for mu, it in images if np.abs(it).max() > 0]


def _primal(rows: Array, p: float, start: Array) -> list[tuple[Array, Array]]:
    """max m s.t. rows·w ≥ m, ‖w‖_p ≤ 1 by sequential quadratic programming, and its μ."""
    if sum(rows.shape) > FEW:
        return []
    w = _unit(rows.T @ start, p)
    point = np.append(w, (rows @ w).min())

    def length(at: Array) -> float:
        return 1 - float(np.sum(np.abs(at[:-1]) ** p))

    def slope(at: Array) -> Array:
        return np.append(-p * np.copysign(np.abs(at[:-1]) ** (p - 1), at[:-1]), 0.0)

    margins = np.hstack([rows, -np.ones((len(rows), 1))])
    up = np.append(np.zeros(len(w)), -1.0)
    found = minimize(
        lambda at: -at[-1], point, jac=lambda _: up, method="SLSQP",
        constraints=[
            {"type": "ineq", "fun": lambda at: margins @ at, "jac": lambda _: margins},
            {"type": "ineq", "fun": length, "jac": slope},
        ],
        options={"maxiter": 2000, "ftol": 1e-16},
    ).x  # fmt: skip
    w = _unit(found[:-1], p)
    margin = rows @ w
    pairs = []
    for near in (1e-9, 1e-7, 1e-5):
        active = margin <= margin.min() + near * np.abs(margin).max()
        mu = np.zeros(len(rows))
        pull = np.copysign(np.abs(w) ** (p - 1), w)
        mu[active] = nnls(rows[active].T, pull, maxiter=100 * len(rows))[0]
        pairs.append((mu, w))
    return pairs


def _gap(rows: Array, mu: Array, w: Array, p: float) -> float:
    """The relative duality gap of multipliers and a direction, infinite where it has no margin."""
    if not np.isfinite(mu).all() or mu.sum() <= 0:
        return math.inf
    margin = float((rows @ w).min())
    bound = float(np.linalg.norm(rows.T @ mu / mu.sum(), ord=_conjugate(p)))
    return bound / margin - 1 if margin > 0 else math.inf


def frozen_feature_max_margin(flow: MirrorFlow, theta: Tensor) -> MaxMargin:
    """The problem of Corollary I.1 at θ: the network replaced by its gradients h_i there.

    On kinks h_i ∈ ∂°q_i is the one of the best KKT certificate. At a KKT point scaled to a smallest
    margin of 1, θ/L is optimal (Lemma I.3), so that the margin is L/φ in the norm of the horizon.

    Args:
        flow: the flow, whose horizon is a multiple of a norm.
        theta: (n,), with positive margins; its length does not matter.

    Raises:
        InputError: as `kkt`.
    """
    found = kkt(flow, theta)
    theta = torch.as_tensor(theta).detach().double().cpu()
    theta = theta / float(flow.margins(theta.to(flow.dataset.x)).amin()) ** (
        1 / flow.network.degree
    )
    sets = Clarke.at(flow, theta, torch.arange(len(flow.dataset)))
    chosen = dict(zip(zip(*found.kinks.lists(), strict=True), found.kink_coefficients, strict=True))
    pairs = zip(*sets.kinks.lists(), strict=True)
    xi = theta.new_tensor([float(chosen.get(pair, 0.0)) for pair in pairs])
    elements = sets.elements(xi)
    return max_margin(elements, torch.ones(len(elements)), asymptotic_degree(flow))
