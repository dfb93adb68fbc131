"""One step of a two-layer network: the sample weights as the unknown, the neurons exact.

Given the weights μ at the three Radau IIA nodes, and with them as quadratics over the step, every
neuron is followed on its own through all its kinks (`subflow`). What remains is to find weights
that agree with the margins they lead to, at the nodes:

    log μ_i + q_i(Z_j[μ]) = ν_j for each sample i,        log Σ_i μ_i = follows·ν_j + offset_j,

with dt = e^ν dx in the clock x: loss time, or log ℓ. Newton's matrix is that of collocation,
I + h A ⊗ (H D Hᵀ) diag(μ), which is exact between kinks.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, gmres
from torch import Tensor

from mirrorode.flow import radau
from mirrorode.flow.neurons import Drive, Neurons, Slides
from mirrorode.flow.step import Clock
from mirrorode.flow.surfaces import Surfaces
from mirrorode.flow.system import move_log_weights
from mirrorode.flow.underway import MIDDLES, Path, Request
from mirrorode.problem.mirror import Potential

T = TypeVar("T")
Asking = Generator[Request, Path | None, T]
"""What asks for neurons to be followed, and comes to a result."""

MAX_SWEEPS = 14
LOCAL = 1e-3  # tolerance of the neurons, of that of the step
DIRECT = 60  # samples up to which Newton's matrix is factorised, anew in every sweep
KRYLOV = 60  # iterations at most; a dozen is the rule, as the kernel H D Hᵀ is smooth
SOLVED = 1e-6  # residual of the linear system, by its right-hand side
HOPELESS = 1e15
SAFETY = 8.0  # kinks between the middles make an error that they do not see …
CROWDED = 1e-5  # … and that is all of it above this tolerance; below, shorter steps hold fewer
ROUND_OFF = 1e-11  # of the margins, which they do not resolve at the end of a long run
CLOSE = 0.1  # change of the dual, of the error scale, at which the sweeps end


@dataclass(frozen=True)
class Problem:
    """Everything that is fixed in one attempted step over K samples that matter.

    Attributes:
        x, y: the samples; surfaces: theirs; factor: output scale c.
        moving: 1, or 0 where the output weights are constants.
        start: the neurons; scale: what an error of their duals is measured by, (N, d + 1).
    """

    potential: Potential
    x: Tensor
    y: Tensor
    surfaces: Surfaces
    factor: float
    moving: float
    start: Neurons
    scale: Tensor
    rtol: float
    clock: Clock
    h: float

    @property
    def weight_tolerance(self) -> float:
        """Relative error of the weights that late sweeps end at."""
        tolerance = min(1e-3, max(10 * self.rtol, 1e-7))
        # A short step prescribes a change h of log ℓ, of which round-off leaves this much.
        return max(tolerance, 20 * torch.finfo(self.x.dtype).eps / self.h)

    @property
    def safety(self) -> float:
        """What the estimated defect is multiplied with.

        The errors of kinks, of either sign, cancel the better the more steps there are: measured,
        a hundredth of the tolerance asks for a fifth of the factor.
        """
        return SAFETY * min(1.0, max(1 / SAFETY, (self.rtol / CROWDED) ** 0.35))

    def margins(self, duals: Tensor) -> Tensor:
        """q (…, K) from duals (…, N, d + 1)."""
        theta = self.potential.inverse_gradient(duals)
        pre = theta[..., :-1] @ self.x.T
        off, on = self.surfaces.slopes
        post = torch.where(pre > 0, on * pre, off * pre)
        return self.y * self.factor * (theta[..., -1:].mT @ post)[..., 0, :]

    def rows(self, duals: Tensor, slides: Tensor) -> tuple[Tensor, Tensor]:
        """Margin gradients (P, K, N, d + 1), tangent to slides, and the metric (P, N, d + 1)."""
        theta = self.potential.inverse_gradient(duals)
        metric = self.potential.inverse_hessian(theta).clamp(max=1e90)
        pre = theta[..., :-1] @ self.x.T
        sliding = slides[..., self.surfaces.group]
        off, on = self.surfaces.slopes
        gain = torch.where((pre > 0) & ~sliding, on, off).to(pre)
        sign = (self.y * self.factor)[:, None]
        incoming = sign[..., None] * (theta[..., -1:] * gain).mT[..., None] * self.x[:, None, :]
        outgoing = self.moving * (sign * (gain * pre).mT)[..., None]
        flat = slides.flatten(0, 1)
        owner = torch.zeros(len(flat), dtype=torch.long, device=flat.device)
        padded = Slides.of(flat, self.surfaces.normal[None], owner)
        if len(padded.rows):
            p, unit = padded.rows // len(duals[0]), padded.rows % len(duals[0])
            tangent = padded.tangent(metric[p, unit, :-1], incoming[p, :, unit].mT)
            incoming[p, :, unit] = tangent.mT
        return torch.cat([incoming, outgoing], -1), metric


@dataclass(frozen=True)
class Solution:
    """A converged step.

    Attributes:
        log_mu: u at the nodes, (3, K); nu: (3,); q: margins there, (3, K).
        path: what the neurons did; sweeps: how often they were followed.
        defect: the error that the weights between the nodes make in the duals, relative to scale.
    """

    log_mu: Tensor
    nu: Tensor
    q: Tensor
    path: Path
    sweeps: int
    work: float
    defect: float


def _request(problem: Problem, u: Tensor, even: float) -> Request:
    """The neurons under weights e^u (3, K) at the nodes."""
    coefficients = torch.as_tensor(radau.SLOPE_BASIS).to(u).T @ torch.exp(u)
    weights = coefficients * (problem.y * problem.factor)
    drive = Drive.of(
        problem.potential, len(problem.start.dual), problem.surfaces, weights, coefficients.sum(1),
        problem.h, problem.moving,
    )  # fmt: skip
    return Request(drive, problem.start, LOCAL * problem.rtol, even)


def solve(problem: Problem, u: Tensor, at_start: Tensor) -> Asking[Solution | None]:
    """Find the weights from a guess ``u`` (3, K) of log μ; None where the sweeps diverge.

    ``at_start`` (K,) is log μ at the start; it only enters the error.
    """
    work, previous, newton = 0.0, float("inf"), None
    history: list[tuple[Tensor, Tensor]] = []
    nu, even = None, 0.0
    for sweep in range(1, MAX_SWEEPS + 1):
        path = yield _request(problem, u, even)
        if path is None:
            return None
        if problem.clock.follows and not even:
            even = 1 / math.ceil(1 / path.shortest) if path.shortest > 0.02 else 0.0
        duals, slides = path.duals[1::2], path.slides[1::2]
        q = problem.margins(duals)
        work += path.work + 3
        if nu is None:
            nu = (torch.softmax(u, -1) * (u + q)).sum(-1)
        if newton is None or len(problem.x) <= DIRECT:
            newton = Newton.of(problem, u, duals, slides)
            work += 3
        du, dnu, size = _update(problem, newton, u, q, nu)
        if not size < HOPELESS:
            return None
        if size < 1:
            return Solution(u, nu, q, path, sweep, work + 4.5, _defect(problem, u, at_start, path))
        if sweep > 3 and size > 0.5 * previous:
            if size > 2 * previous or sweep > 8:
                return None
            newton = None
            history.clear()
        previous = size
        u, nu = _mix(history, u, du, nu, dnu)
    return None


@dataclass(frozen=True)
class Newton:
    """Newton's matrix in (u, ν), of size 3(K + 1).

    Attributes:
        follows: of the clock; butcher: h A, (3, 3).
        rows: margin gradients at the nodes, tangent, (3, K, n); left: times the metric.
        factors: LU factors and pivots; None early, where there are many samples.
    """

    follows: float
    butcher: Tensor
    rows: Tensor
    left: Tensor
    factors: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, problem: Problem, u: Tensor, duals: Tensor, slides: Tensor) -> Newton:
        """The matrix at weights e^u (3, K), factorised if that is cheap.

        Late always: weights of all sizes are known there from right-hand sides of one size.
        """
        rows, metric = problem.rows(duals, slides)
        rows = rows.flatten(2)
        butcher = problem.h * torch.as_tensor(radau.BUTCHER).to(u)
        left = rows * metric.flatten(1)[:, None, :]
        found = cls(problem.clock.follows, butcher, rows, left, None)
        if len(problem.x) > DIRECT and not problem.clock.follows:
            return found
        lu, pivots, _ = torch.linalg.lu_factor_ex(found.matrix(u))
        return replace(found, factors=(lu, pivots))

    def matrix(self, u: Tensor) -> Tensor:
        """All of it."""
        s, count = u.shape
        gram = (self.left.flatten(0, 1) @ self.rows.flatten(0, 1).T).reshape(s, count, s, count)
        gram = gram * self.butcher[:, None, :, None] * torch.exp(u)
        matrix = gram.new_zeros(s * (count + 1), s * (count + 1))
        top = s * count
        matrix[:top, :top] = gram.reshape(top, top)
        matrix.diagonal()[:top] += 1.0
        share = torch.softmax(u, -1)
        for j in range(s):
            here = slice(j * count, (j + 1) * count)
            matrix[here, top + j] = -1.0
            matrix[top + j, here] = share[j]
            matrix[top + j, top + j] = -self.follows
        return matrix

    def moved(self, u: Tensor, du: Tensor) -> Tensor:
        """What a change of u does to the duals at the nodes, (3, n)."""
        return self.butcher @ ((torch.exp(u) * du)[:, None, :] @ self.rows)[:, 0]

    def solve(self, u: Tensor, right: Tensor) -> Tensor:
        """The change of (u, ν) for a right-hand side (3(K + 1),)."""
        if self.factors is not None:
            return torch.linalg.lu_solve(*self.factors, right[:, None])[:, 0]
        share, top, size = torch.softmax(u, -1), u.numel(), len(right)

        def product(vector: np.ndarray) -> np.ndarray:
            both = torch.from_numpy(vector.reshape(-1)).to(u)
            du, dnu = both[:top].reshape(u.shape), both[top:]
            margins = (self.moved(u, du)[:, None, :] @ self.left.mT)[:, 0]
            clock = (share * du).sum(-1) - self.follows * dnu
            return torch.cat([(du + margins - dnu[:, None]).reshape(-1), clock]).cpu().numpy()

        system = LinearOperator((size, size), matvec=product, dtype=np.float64)
        found, _ = gmres(system, right.cpu().numpy(), rtol=SOLVED, restart=KRYLOV, maxiter=1)
        return torch.from_numpy(found).to(u)


def _update(
    problem: Problem, newton: Newton, u: Tensor, q: Tensor, nu: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Newton's change of u and ν, and its size where 1 is small enough."""
    clock = torch.logsumexp(u, -1) - problem.clock.follows * nu - problem.clock.offset
    left = nu[:, None] - u - q
    solved = newton.solve(u, torch.cat([left.reshape(-1), -clock]))
    du, dnu = solved[: u.numel()].reshape(u.shape), solved[u.numel() :]
    moved = newton.moved(u, du)
    size = (moved / problem.scale.reshape(-1)).square().mean(1).sqrt().amax() / CLOSE
    if problem.clock.follows:
        # Late the duals hardly tell the weights: a change of q by one is one part in ℓ of them.
        share = torch.softmax(u, -1)
        tolerance = problem.weight_tolerance
        floor = max(tolerance, ROUND_OFF * float(q.abs().amax()))
        moved_weights = (share * torch.expm1(du.clamp(max=30.0)).abs()).sum(-1).amax() / tolerance
        size = torch.maximum(size, moved_weights)
        size = torch.maximum(size, (share * left.abs()).sum(-1).amax() / floor)
    return du, dnu, float(size)


def _mix(
    history: list[tuple[Tensor, Tensor]], u: Tensor, du: Tensor, nu: Tensor, dnu: Tensor
) -> tuple[Tensor, Tensor]:
    """The next iterate: Anderson's combination of the last updates (Walker and Ni 2011)."""
    count = du.numel()
    here, step = torch.cat([u.reshape(-1), nu]), torch.cat([du.reshape(-1), dnu])
    # What counts is the change of the weights, not of their logarithms.
    weigh = torch.cat([torch.softmax(u, -1).reshape(-1), torch.ones_like(nu)])
    history.append((here, step))
    del history[:-5]
    if len(history) > 1 and float(step.abs().max()) < 1.0:
        earlier = torch.stack([old[1] - step for old in history[:-1]], 1)
        places = torch.stack([old[0] - here for old in history[:-1]], 1)
        inverse = torch.linalg.pinv(weigh[:, None] * earlier, rtol=1e-10)
        mixed = inverse @ -(weigh * step)
        if bool(torch.isfinite(mixed).all()) and float(mixed.abs().sum()) < 10:
            step = step + (places + earlier) @ mixed
    moved = move_log_weights(u, step[:count].reshape(u.shape), torch.logsumexp(u, -1, keepdim=True))
    return moved, nu + step[count:]


def _defect(problem: Problem, u: Tensor, at_start: Tensor, path: Path) -> float:
    """The error that the weights between the nodes make in the duals, relative to their scale."""
    if problem.clock.follows:
        return _defect_at_start(problem, u, at_start)
    return _defect_between(problem, u, path.duals[::2], path.slides[::2])


def _defect_between(problem: Problem, u: Tensor, duals: Tensor, slides: Tensor) -> float:
    """Early: the integrated defect of the weights between the nodes, and a share of its parts.

    The weights of the margins at the three middles are compared with the interpolated ones: for
    smooth weights the parts of the sum cancel as far as Radau's quadrature is exact, for kinked
    ones they do not.
    """
    mu = torch.exp(u)
    middles = u.new_tensor(MIDDLES)
    between = radau.evaluate(radau.SLOPE_BASIS, middles) @ mu
    q = problem.margins(duals)
    wrong = torch.softmax(-q, -1) - between
    rows, _ = problem.rows(duals, slides)
    parts = (wrong[:, None, :] @ rows.flatten(2))[:, 0]
    weight = 2.0 / 3.0 * u.new_tensor([0.0, *radau.NODES]).diff()
    whole, part = _norm(problem, weight @ parts), _norm(problem, parts).amax()
    return float(problem.safety * (whole + 0.1 * part))


def _defect_at_start(problem: Problem, u: Tensor, at_start: Tensor) -> float:
    """Late: γ₀h(f₀ − the slopes extrapolated to the start), in the weights.

    Late the weights are multipliers, which the margins between the nodes do not determine.
    """
    extrapolated = u.new_tensor(radau.SLOPE_BASIS[:, 0]) @ torch.exp(u)
    start = problem.start
    rows, _ = problem.rows(start.dual[None], start.slides[None])
    wrong = (torch.exp(at_start) - extrapolated) @ rows[0].flatten(1)
    return float(problem.safety * radau.ERROR_WEIGHT * _norm(problem, wrong))


def _norm(problem: Problem, vector: Tensor) -> Tensor:
    """The size (…) of a change h·vector (…, n) of the duals, relative to the scale."""
    return (problem.h * vector / problem.scale.reshape(-1)).square().mean(-1).sqrt()
