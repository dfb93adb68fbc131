"""Separable mirror potentials R(θ) = Σ_k r(θ_k) and everything that duality makes of them.

A potential carries exactly its mathematics. For a coordinate t with dual z = r'(t):

======================  ==========================================================
`value(theta)`          r(t)
`gradient(theta)`       z = r'(t)
`inverse_gradient(z)`   t = (r')⁻¹(z)
`conjugate(z)`          r*(z), so that r(t) + r*(z) = t z (Lemma 2.5)
`inverse_hessian(t)`    1 / r''(t), the diagonal of D = (∇²R)⁻¹
`balance_term(theta)`   κ̃(t) = t r'(t) − r(t) + r(0) = r*(z) − r*(0), never negative
======================  ==========================================================

All are elementwise and keep the shape and dtype of their argument. Those written out below are odd
or even to the last bit: they act on |t| and put the sign back.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mirrorode.problem import numeric
from mirrorode.problem.errors import InputError, require_number
from mirrorode.problem.mirror import Potential

TINY = 1e-300


class SeparablePotential(Potential):
    """A strictly convex r on each coordinate; the base of every potential of the package.

    A potential of one's own gives `value`, in functions that autograd can differentiate twice. The
    rest then follows numerically (`numeric`), and may be overridden where it is known; a
    `MirrorFlow` checks that what is overridden belongs to the value.
    """

    @cached_property
    def _found_degree(self) -> tuple[float, float] | None:
        """The degree and its error, numerically."""
        width = self.value(torch.ones(1, dtype=torch.float64)).numel()
        return numeric.degree(self.value, width)

    @cached_property
    def _horizon_weights(self) -> tuple[Tensor, Tensor] | None:
        """What each |θ_k|^α counts in φ^α, for either sign."""
        if self.degree is None:
            return None
        width = self.value(torch.ones(1, dtype=torch.float64)).numel()
        return numeric.horizon_weights(self.balance_term, self.degree, width)

    @property
    def separable(self) -> bool:
        """True."""
        return True

    @property
    def degree(self) -> float | None:
        """The asymptotic degree α of Q(∇R(·)) (Definition 4.1); None if there is none."""
        return self._found_degree[0] if self._found_degree is not None else None

    @abstractmethod
    def value(self, theta: Tensor) -> Tensor:
        """r(θ), elementwise; R is the sum."""

    def gradient(self, theta: Tensor) -> Tensor:
        """The dual variable z = r'(θ), elementwise."""
        return numeric.derivatives(self.value, theta)[0]

    def inverse_gradient(self, dual: Tensor) -> Tensor:
        """The primal parameter θ with r'(θ) = z, elementwise."""
        if self._tables is None:
            return numeric.inverse_gradient(self.value, dual)
        found, known = self._tables.to(dual.device).primal(dual)
        if bool(known.all()):
            return found
        return torch.where(known, found, numeric.inverse_gradient(self.value, dual))

    def balance_term(self, theta: Tensor) -> Tensor:
        """κ̃(θ) = θ r'(θ) − r(θ) + r(0) ≥ 0, the term that Lemma 3.1 conserves, elementwise."""
        return numeric.balance_term(self.value, theta)

    def inverse_hessian(self, theta: Tensor) -> Tensor:
        """1 / r''(θ), elementwise; +inf where r'' vanishes."""
        if self._tables is None:
            return 1 / numeric.curvature(self.value, theta)
        found, known = self._tables.to(theta.device).inverse_hessian(theta)
        if bool(known.all()):
            return found
        return torch.where(known, found, 1 / numeric.curvature(self.value, theta))

    def precondition(self, theta: Tensor, vector: Tensor) -> Tensor:
        """D v; zero where v is, also where D is infinite."""
        return torch.where(vector == 0, 0.0, self.inverse_hessian(theta) * vector)

    def hessian_product(self, theta: Tensor, vector: Tensor) -> Tensor:
        """A v, with an A that is finite."""
        return vector / self.inverse_hessian(theta).clamp(min=TINY)

    def parts(self, count: int) -> Tensor:
        """Each coordinate is a term, (n,)."""
        return torch.arange(count)

    def horizon(self, theta: Tensor) -> Tensor:
        """φ(θ) = lim η (αQ(∇R(θ/η)))^{1/α} as η → 0 (Theorem 4.7), over the last dimension.

        Raises:
            InputError: if the potential has no asymptotic degree.
        """
        if self._horizon_weights is None or self.degree is None:
            raise InputError(f"`potential` must have a degree for a horizon, but {self} has none")
        up, down = (it.to(theta) for it in self._horizon_weights)
        size = theta.detach().abs().amax(-1, keepdim=True).clamp(min=math.ulp(0.0))
        powers = torch.where(theta > 0, up, down) * (theta / size).abs() ** self.degree
        return size[..., 0] * powers.sum(-1) ** (1 / self.degree)

    @property
    def conjugate_at_zero(self) -> float | Tensor:
        """r*(0) = −r(0), what `balance_term` leaves out of the conjugate of a coordinate."""
        found = -self.value(torch.zeros(1, dtype=torch.float64))
        return found if found.numel() > 1 else float(found)

    @cached_property
    def uniform(self) -> bool:
        """Whether r is one function for all coordinates, not one with parameters (n,)."""
        try:
            shapes = [
                self.value(torch.ones(it, dtype=torch.float64)).shape for it in ((1,), (3, 2))
            ]
        except (RuntimeError, IndexError, ValueError):
            return False
        return shapes == [(1,), (3, 2)]

    @cached_property
    def _tables(self) -> numeric.Tables | None:
        return numeric.Tables.of(self.value) if self.uniform else None

    def conjugate(self, dual: Tensor) -> Tensor:
        """The convex conjugate r*(z) (Definition 2.4), elementwise; Q is the sum."""
        return self.balance_term(self.inverse_gradient(dual)) + self.conjugate_at_zero


@dataclass(frozen=True)
class HyperbolicEntropy(SeparablePotential):
    """r(t) = t asinh(t/√λ) − √(t² + λ): α = 1, horizon ‖θ‖₁ (Table 1).

    Args:
        lam: λ > 0; √λ is the size below which a weight moves as under gradient flow.

    Raises:
        InputError: if ``lam`` is not a positive number.
    """

    lam: float

    def __post_init__(self) -> None:
        require_number(self.lam, "lam", "be positive", 0.0, strict=True)

    @property
    def degree(self) -> float:
        """α = 1."""
        return 1.0

    @property
    def conjugate_at_zero(self) -> float:
        """r*(0) = √λ."""
        return math.sqrt(self.lam)

    def _height(self, theta: Tensor) -> Tensor:
        # hypot neither overflows at 1e200 nor loses λ against t² earlier than rounding must.
        return torch.hypot(theta, theta.new_tensor(math.sqrt(self.lam)))

    def value(self, theta: Tensor) -> Tensor:
        """r(t) = t asinh(t/√λ) − √(t² + λ)."""
        size = theta.abs()
        return size * torch.asinh(size / math.sqrt(self.lam)) - self._height(theta)

    def gradient(self, theta: Tensor) -> Tensor:
        """z = asinh(t/√λ)."""
        return torch.copysign(torch.asinh(theta.abs() / math.sqrt(self.lam)), theta)

    def inverse_gradient(self, dual: Tensor) -> Tensor:
        """t = √λ sinh z."""
        # Not by `torch.sinh`, whose last bit depends on where in a tensor a value is.
        size = dual.abs()
        twice = torch.expm1(size) - torch.expm1(-size)
        return torch.copysign(0.5 * math.sqrt(self.lam) * twice, dual)

    def balance_term(self, theta: Tensor) -> Tensor:
        """κ̃ = t²/(√(t²+λ) + √λ); the difference √(t²+λ) − √λ would lose all digits at small t."""
        return theta * (theta / (self._height(theta) + math.sqrt(self.lam)))

    def inverse_hessian(self, theta: Tensor) -> Tensor:
        """1/r'' = √(t² + λ)."""
        # Not by `torch.hypot`, whose last bit depends on where in a tensor a value is.
        size, root = theta.abs(), theta.new_tensor(math.sqrt(self.lam))
        larger, smaller = torch.maximum(size, root), torch.minimum(size, root)
        return larger * torch.sqrt(1 + (smaller / larger).square())

    def horizon(self, theta: Tensor) -> Tensor:
        """‖θ‖₁."""
        return theta.abs().sum(-1)


@dataclass(frozen=True)
class SmoothedHomogeneous(SeparablePotential):
    """r(t) = |t|^p/p + λt²/2: α = p, horizon (p−1)^{1/p}‖θ‖_p for p > 2 (Table 1).

    Args:
        p: p ≥ 2.
        lam: λ ≥ 0. With λ = 0 and p > 2 the Hessian vanishes at 0 (Assumption 2.3 fails there);
            the dual flow is defined all the same.

    Raises:
        InputError: if ``p`` < 2 or ``lam`` < 0.
    """

    p: float
    lam: float = 0.0

    def __post_init__(self) -> None:
        require_number(self.p, "p", "be at least 2", 2.0, strict=False)
        require_number(self.lam, "lam", "be zero or positive", 0.0, strict=False)

    @property
    def degree(self) -> float:
        """α = p."""
        return float(self.p)

    @property
    def conjugate_at_zero(self) -> float:
        """r*(0) = 0."""
        return 0.0

    def value(self, theta: Tensor) -> Tensor:
        """r(t) = |t|^p/p + λt²/2."""
        return theta.abs() ** self.p / self.p + 0.5 * self.lam * theta**2

    def gradient(self, theta: Tensor) -> Tensor:
        """z = |t|^{p−1} sgn t + λt."""
        size = theta.abs()
        return torch.copysign(size ** (self.p - 1) + self.lam * size, theta)

    def inverse_gradient(self, dual: Tensor) -> Tensor:
        """The root t of |t|^{p−1} sgn t + λt = z: closed for p = 2, 3, 4, else by Newton."""
        target, lam = dual.abs(), self.lam
        if self.p == 2:
            size = target / (1 + lam)
        elif self.p == 3:
            # The stable root of t² + λt = z. Both terms below are zero only where z = λ = 0.
            denominator = lam + torch.sqrt(lam**2 + 4 * target)
            size = torch.where(target > 0, 2 * target / denominator, target)
        elif lam == 0:
            size = target ** (1 / (self.p - 1))
        else:
            size = self._cardano(target) if self.p == 4 else self._newton(target)
            size = self._polish(size, target)
        return torch.copysign(size, dual)

    def _cardano(self, target: Tensor) -> Tensor:
        """t³ + λt = z in its hyperbolic form, which has no cancellation for λ > 0."""
        scale = math.sqrt(self.lam / 3)
        return 2 * scale * torch.sinh(torch.asinh(target / (2 * scale**3)) / 3)

    def _newton(self, target: Tensor) -> Tensor:
        """Newton on y = log t for log(e^{(p−1)y} + λe^y) = log z.

        The left side is convex and increasing in y with slope in [1, p − 1], so that Newton
        converges from every start without a bracket; from an upper bound it is monotone.
        """
        log_target, log_lam = torch.log(target), math.log(self.lam)
        close = max(1e-13, 8 * torch.finfo(target.dtype).eps)
        y = torch.minimum(log_target / (self.p - 1), log_target - log_lam)
        for _ in range(60):
            power, linear = (self.p - 1) * y, y + log_lam
            total = torch.logaddexp(power, linear)
            slope = 1 + (self.p - 2) * torch.exp(power - total)
            step = torch.where(target > 0, (total - log_target) / slope, 0.0)
            y = y - step
            if not bool((step.abs() > close * (1 + y.abs())).any()):
                break
        return torch.where(target > 0, torch.exp(y), 0.0)

    def _polish(self, size: Tensor, target: Tensor) -> Tensor:
        """One Newton step in t itself: log t near ±28 has lost a digit and a half of t."""
        power = size ** (self.p - 2)
        residual = size * (power + self.lam) - target
        return size - residual / ((self.p - 1) * power + self.lam)

    def balance_term(self, theta: Tensor) -> Tensor:
        """κ̃ = (1 − 1/p)|t|^p + λt²/2, which is r*(z) itself."""
        return (1 - 1 / self.p) * theta.abs() ** self.p + 0.5 * self.lam * theta**2

    def inverse_hessian(self, theta: Tensor) -> Tensor:
        """1/r'' = 1/((p−1)|t|^{p−2} + λ)."""
        return 1 / ((self.p - 1) * theta.abs() ** (self.p - 2) + self.lam)

    def horizon(self, theta: Tensor) -> Tensor:
        """(p−1)^{1/p}‖θ‖_p, and √(1+λ)‖θ‖₂ for p = 2, where Table 1 forgets λ."""
        if self.p == 2:
            return math.sqrt(1 + self.lam) * theta.norm(dim=-1)
        return (self.p - 1) ** (1 / self.p) * torch.linalg.vector_norm(theta, ord=self.p, dim=-1)


@dataclass(frozen=True)
class Euclidean(SeparablePotential):
    """r(t) = t²/2: mirror flow is gradient flow, α = 2, horizon ‖θ‖₂."""

    @property
    def degree(self) -> float:
        """α = 2."""
        return 2.0

    @property
    def conjugate_at_zero(self) -> float:
        """r*(0) = 0."""
        return 0.0

    def value(self, theta: Tensor) -> Tensor:
        """r(t) = t²/2."""
        return 0.5 * theta**2

    def gradient(self, theta: Tensor) -> Tensor:
        """z = t."""
        return theta.clone()

    def inverse_gradient(self, dual: Tensor) -> Tensor:
        """t = z."""
        return dual.clone()

    def balance_term(self, theta: Tensor) -> Tensor:
        """κ̃ = t²/2."""
        return 0.5 * theta**2

    def inverse_hessian(self, theta: Tensor) -> Tensor:
        """1/r'' = 1."""
        return torch.ones_like(theta)

    def horizon(self, theta: Tensor) -> Tensor:
        """‖θ‖₂."""
        return theta.norm(dim=-1)
