"""More potentials of the field: powers, cosh, factors on the weights, functions of the norm.

Factors make the diagonal preconditioner of gradient flow, and the metrics that the paper trains
vision networks with (Appendix J.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mirrorode.problem.errors import InputError, require, require_finite, require_number
from mirrorode.problem.mirror import Potential
from mirrorode.problem.potentials import (
    Euclidean,
    HyperbolicEntropy,
    SeparablePotential,
    SmoothedHomogeneous,
)


@dataclass(frozen=True)
class Power(SeparablePotential):
    """r(t) = |t|^p/p for p > 1: α = p, horizon (p−1)^{1/p}‖θ‖_p.

    Below 2 the second derivative is infinite at 0, which Assumption 2.3 excludes (Assumption 4.4
    holds with equality); above 2 it vanishes there. The flow of z is defined for every p.

    Args:
        p: p > 1.

    Raises:
        InputError: if ``p`` is not above 1.
    """

    p: float

    def __post_init__(self) -> None:
        require_number(self.p, "p", "be above 1", 1.0, strict=True)

    @property
    def degree(self) -> float:
        """α = p."""
        return float(self.p)

    @property
    def conjugate_at_zero(self) -> float:
        """r*(0) = 0."""
        return 0.0

    def value(self, theta: Tensor) -> Tensor:
        """r(t) = |t|^p/p."""
        return theta.abs() ** self.p / self.p

    def gradient(self, theta: Tensor) -> Tensor:
        """z = |t|^{p−1} sgn t."""
        return torch.copysign(theta.abs() ** (self.p - 1), theta)

    def inverse_gradient(self, dual: Tensor) -> Tensor:
        """t = |z|^{1/(p−1)} sgn z."""
        return torch.copysign(dual.abs() ** (1 / (self.p - 1)), dual)

    def balance_term(self, theta: Tensor) -> Tensor:
        """κ̃ = (1 − 1/p)|t|^p."""
        return (1 - 1 / self.p) * theta.abs() ** self.p

    def inverse_hessian(self, theta: Tensor) -> Tensor:
        """1/r'' = |t|^{2−p}/(p−1)."""
        return theta.abs() ** (2 - self.p) / (self.p - 1)

    def horizon(self, theta: Tensor) -> Tensor:
        """(p−1)^{1/p}‖θ‖_p."""
        return (self.p - 1) ** (1 / self.p) * torch.linalg.vector_norm(theta, ord=self.p, dim=-1)


@dataclass(frozen=True)
class Cosh(SeparablePotential):
    """r(t) = cosh t − 1: large weights barely move, the geometry tends to that of ‖·‖_∞.

    It has no asymptotic degree, so that there is no Q-margin. The dual z = sinh t is a number up
    to |t| = 710; a run that leads beyond ends there.
    """

    @property
    def degree(self) -> None:
        """There is none."""
        return

    @property
    def conjugate_at_zero(self) -> float:
        """r*(0) = 0."""
        return 0.0

    def value(self, theta: Tensor) -> Tensor:
        """r(t) = 2 sinh²(t/2)."""
        return 2 * torch.sinh(0.5 * theta) ** 2

    def gradient(self, theta: Tensor) -> Tensor:
        """z = sinh t."""
        return torch.sinh(theta)

    def inverse_gradient(self, dual: Tensor) -> Tensor:
        """t = asinh z."""
        return torch.copysign(torch.asinh(dual.abs()), dual)

    def balance_term(self, theta: Tensor) -> Tensor:
        """κ̃ = t sinh t − 2 sinh²(t/2), of which at least half is left."""
        return theta * torch.sinh(theta) - 2 * torch.sinh(0.5 * theta) ** 2

    def inverse_hessian(self, theta: Tensor) -> Tensor:
        """1/r'' = 1/cosh t."""
        return 1 / torch.cosh(theta)


@dataclass(frozen=True, eq=False)
class Scaled(SeparablePotential):
    """c_k r(t) for another potential r: D is that of r over c_k.

    Args:
        potential: r.
        factor: c > 0, a number, or one for each weight, (n,): with `Euclidean` the diagonal
            preconditioner D = 1/c.

    Raises:
        InputError: if ``potential`` is not separable, or ``factor`` not positive.
    """

    potential: SeparablePotential
    factor: float | Tensor

    def __post_init__(self) -> None:
        fine = isinstance(self.potential, SeparablePotential)
        require(fine, "potential", "be a separable potential", repr(self.potential))
        if not isinstance(self.factor, Tensor):
            require_number(self.factor, "factor", "be positive", 0.0, strict=True)
            return
        shape = tuple(self.factor.shape)
        require(len(shape) <= 1, "factor", "be a number or have shape (n,)", shape)
        require_finite(self.factor, "factor")
        least = float(self.factor.amin()) if self.factor.numel() else 0.0
        require(least > 0, "factor", "be positive", f"{least:g} at its least")

    def _like(self, other: Tensor) -> Tensor:
        factor = torch.as_tensor(self.factor, dtype=torch.float64).to(other)
        if factor.ndim and factor.shape[-1] not in (1, other.shape[-1]) and other.shape[-1] > 1:
            must = f"have an entry for each of {other.shape[-1]} weights"
            raise InputError(f"`factor` must {must}, but has shape {tuple(factor.shape)}")
        return factor

    @property
    def degree(self) -> float | None:
        """That of r."""
        return self.potential.degree

    @property
    def conjugate_at_zero(self) -> float | Tensor:
        """c r*(0)."""
        return self.potential.conjugate_at_zero * self.factor

    def value(self, theta: Tensor) -> Tensor:
        """c r(t)."""
        return self._like(theta) * self.potential.value(theta)

    def gradient(self, theta: Tensor) -> Tensor:
        """z = c r'(t)."""
        return self._like(theta) * self.potential.gradient(theta)

    def inverse_gradient(self, dual: Tensor) -> Tensor:
        """(r')⁻¹(z/c)."""
        return self.potential.inverse_gradient(dual / self._like(dual))

    def balance_term(self, theta: Tensor) -> Tensor:
        """c κ̃(t)."""
        return self._like(theta) * self.potential.balance_term(theta)

    def inverse_hessian(self, theta: Tensor) -> Tensor:
        """1/(c r'')."""
        return self.potential.inverse_hessian(theta) / self._like(theta)

    def horizon(self, theta: Tensor) -> Tensor:
        """φ(c^{1/α} θ)."""
        alpha = self.degree
        if alpha is None:
            raise InputError(f"`potential` must have a degree for a horizon, but {self} has none")
        return self.potential.horizon(self._like(theta) ** (1 / alpha) * theta)


@dataclass(frozen=True)
class Radial(Potential):
    """R(θ) = r(‖θ‖₂): of a layer W a function of ‖W‖_F, which couples all of its weights.

    With `Layerwise`, one for each layer, the balance equation of layers holds (Lemma 3.1), and that
    of units does not.

    Args:
        profile: r, one even function, such as ``SmoothedHomogeneous(4, 1.0)`` for s⁴/4 + s²/2.

    Raises:
        InputError: if ``profile`` is no separable potential, or not even.
    """

    profile: SeparablePotential

    def __post_init__(self) -> None:
        fine = isinstance(self.profile, SeparablePotential) and self.profile.uniform
        require(fine, "profile", "be one separable function", repr(self.profile))
        up, down = self.profile.gradient(torch.tensor([1.0, -1.0], dtype=torch.float64)).tolist()
        must = f"be odd in its derivative, {-up:g} at -1"
        require(math.isclose(up, -down, rel_tol=1e-9), "profile", must, f"{down:g} there")

    @property
    def degree(self) -> float | None:
        """That of r."""
        return self.profile.degree

    def value(self, theta: Tensor) -> Tensor:
        """r(s) with s = ‖θ‖₂, (…, 1)."""
        return self.profile.value(_norm(theta))

    def gradient(self, theta: Tensor) -> Tensor:
        """z = r'(s) θ/s."""
        return self.profile.gradient(_norm(theta)) * _unit(theta)

    def inverse_gradient(self, dual: Tensor) -> Tensor:
        """(r')⁻¹(‖z‖) z/‖z‖."""
        return self.profile.inverse_gradient(_norm(dual)) * _unit(dual)

    def balance_term(self, theta: Tensor) -> Tensor:
        """κ̃(s), (…, 1)."""
        return self.profile.balance_term(_norm(theta))

    def conjugate(self, dual: Tensor) -> Tensor:
        """r*(‖z‖), (…, 1)."""
        return self.profile.conjugate(_norm(dual))

    def precondition(self, theta: Tensor, vector: Tensor) -> Tensor:
        """D v: along θ it is 1/r''(s), across s/r'(s)."""
        along, across = self._bends(theta)
        radial = (_unit(theta) * vector).sum(-1, keepdim=True) * _unit(theta)
        return across * (vector - radial) + along * radial

    def hessian_product(self, theta: Tensor, vector: Tensor) -> Tensor:
        """A v, with the inverses of both."""
        along, across = self._bends(theta)
        radial = (_unit(theta) * vector).sum(-1, keepdim=True) * _unit(theta)
        return (vector - radial) / across + radial / along

    def _bends(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """1/r''(s) and s/r'(s), which is the same at s = 0."""
        size = _norm(theta)
        along, slope = self.profile.inverse_hessian(size), self.profile.gradient(size)
        return along, torch.where(size > 0, size / slope, along)

    def horizon(self, theta: Tensor) -> Tensor:
        """That of r at s."""
        return self.profile.horizon(_norm(theta))


def _norm(theta: Tensor) -> Tensor:
    """‖θ‖₂, (…, 1), in units of the largest entry: squares of 1e-200 and 1e200 are no numbers."""
    size = _largest(theta)
    return size * torch.linalg.vector_norm(theta / size, dim=-1, keepdim=True)


def _unit(theta: Tensor) -> Tensor:
    """θ/‖θ‖₂; zero of zero."""
    scaled = theta / _largest(theta)
    return scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True).clamp(min=0.5)


def _largest(theta: Tensor) -> Tensor:
    return theta.detach().abs().amax(-1, keepdim=True).clamp(min=torch.finfo(theta.dtype).tiny)


def for_width(
    potential: SeparablePotential, width: float, *, printed: bool = False
) -> SeparablePotential:
    """The potential of Appendix J.3 for weights of size width^(−1/2): D is of order one.

    D = √(width θ² + λ)/√(1 + λ) for the hyperbolic entropy with λ, and λ/(|√width θ|^(p−2) + λ) for
    the smoothed |θ|^p. The paper prints width^((2−p)/2) there, under which D is one to four digits
    for p = 10 and the flow that of gradient descent.

    Args:
        potential: a `HyperbolicEntropy`, a `SmoothedHomogeneous` with λ > 0, or `Euclidean`.
        width: inputs of a unit of the layer.
        printed: whether the power of the width is the one printed.

    Raises:
        InputError: for another potential, λ = 0 or a width that is not positive.
    """
    require_number(width, "width", "be positive", 0.0, strict=True)
    if isinstance(potential, HyperbolicEntropy):
        lam = potential.lam
        return Scaled(HyperbolicEntropy(lam / width), math.sqrt((1 + lam) / width))
    if isinstance(potential, SmoothedHomogeneous) and potential.lam > 0:
        p, lam = potential.p, potential.lam
        power = width ** ((2 - p) / 2 if printed else (p - 2) / 2)
        return Scaled(SmoothedHomogeneous(p, lam * (p - 1) / power), power / (lam * (p - 1)))
    must = "be a HyperbolicEntropy, a SmoothedHomogeneous with lam > 0, or Euclidean"
    require(isinstance(potential, Euclidean), "potential", must, repr(potential))
    return potential
