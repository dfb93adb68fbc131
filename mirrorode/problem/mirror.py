"""Mirror potentials R(θ) in general: a sum of terms, each of its own coordinates.

`SeparablePotential` has a term for each coordinate. One that couples coordinates, such as a
function of the Frobenius norm of a layer, has fewer. What a network conserves needs the terms: a
law Σ_k c_k κ̃_k over coordinates is one over terms, if c_k is the same for all coordinates of each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from mirrorode.problem.errors import InputError

_ITERATIONS = 200  # of Newton's method: ‖θ‖^p from 0 takes one for each factor of (p−1)/(p−2)
_HALVINGS = 40
_CLOSE = 1e-14  # relative, of the gradient


class Potential(ABC):
    """A strictly convex R with a gradient that is onto; θ is (…, n), and R has P terms.

    A potential of one's own gives `value`, in functions that autograd and `torch.func` can
    differentiate twice. The rest follows by dense linear algebra, (n, n) a point: override what
    has a closed form.
    """

    @property
    def separable(self) -> bool:
        """Whether each coordinate has a term of its own, so that D is diagonal."""
        return False

    @property
    def uniform(self) -> bool:
        """Whether R is Σ r(θ_k) with one function r."""
        return False

    @property
    def degree(self) -> float | None:
        """The asymptotic degree α of Q(∇R(·)) (Definition 4.1); None if there is none."""
        return None

    @abstractmethod
    def value(self, theta: Tensor) -> Tensor:
        """The terms of R(θ), (…, n) to (…, P); R is their sum."""

    def parts(self, count: int) -> Tensor:
        """Which term each of ``count`` coordinates belongs to, (n,); by default there is one."""
        return torch.zeros(count, dtype=torch.long)

    def gradient(self, theta: Tensor) -> Tensor:
        """The dual variable z = ∇R(θ), (…, n)."""
        with torch.enable_grad():
            theta = theta.detach().requires_grad_(True)
            return torch.autograd.grad(self.value(theta).sum(), theta)[0]

    def inverse_gradient(self, dual: Tensor) -> Tensor:
        """θ with ∇R(θ) = z, (…, n), by damped Newton steps on R(θ) − z·θ; NaN where it fails.

        They start at what was found for the last duals of this shape: an integrator asks for one
        point after another.
        """
        rows = dual.reshape(-1, dual.shape[-1])
        found: dict[torch.Size, Tensor] = self.__dict__.setdefault("_last_found", {})
        theta = found.get(rows.shape, torch.zeros_like(rows)).to(rows)
        last = torch.full_like(rows[:, 0], torch.inf)
        for _ in range(_ITERATIONS):
            rest = rows - self.gradient(theta)
            size = rest.norm(dim=-1)
            going = (size > _CLOSE * rows.norm(dim=-1)) & (size < last)
            if not bool(going.any()):
                break
            step = self.precondition(theta, rest)
            last = torch.where(size < 1e-6 * rows.norm(dim=-1), size, last)
            theta = torch.where(going[:, None], self._descend(theta, step, rows, rest), theta)
        else:
            theta = torch.where(going[:, None], torch.nan, theta)
        if bool(torch.isfinite(theta).all()):
            found[rows.shape] = theta
        return theta.reshape(dual.shape)

    def forget(self) -> None:
        """Drop what later calls start from: they depend on their arguments alone then."""
        self.__dict__.pop("_last_found", None)

    def _descend(self, theta: Tensor, step: Tensor, dual: Tensor, rest: Tensor) -> Tensor:
        """θ + s·step with the first s = 1, ½, ¼, … by which R − z·θ falls enough."""

        def objective(point: Tensor) -> Tensor:
            return self.value(point).sum(-1) - (dual * point).sum(-1)

        s, before, promised = torch.ones_like(theta[:, :1]), objective(theta), (rest * step).sum(-1)
        for _ in range(_HALVINGS):
            # Near the end the difference is round-off, and the full step is right.
            noise = 1e-12 * (before.abs() + promised)
            short = objective(theta + s * step) > before - 1e-4 * s[:, 0] * promised + noise
            if not bool(short.any()):
                break
            s = torch.where(short[:, None], 0.5 * s, s)
        return theta + s * step

    def precondition(self, theta: Tensor, vector: Tensor) -> Tensor:
        """D v with D = (∇²R(θ))⁻¹, (…, n)."""
        shape = torch.broadcast_shapes(theta.shape, vector.shape)
        rows, right = (it.expand(shape).reshape(-1, shape[-1]) for it in (theta, vector))
        slope = torch.func.grad(lambda one: self.value(one).sum())
        hessian = torch.func.vmap(torch.func.jacrev(slope))(rows)
        return torch.linalg.solve_ex(hessian, right[..., None])[0][..., 0].reshape(shape)

    def hessian_product(self, theta: Tensor, vector: Tensor) -> Tensor:
        """A v with A = ∇²R(θ), (…, n)."""
        with torch.enable_grad():
            theta = theta.detach().expand_as(vector).contiguous().requires_grad_(True)
            (slope,) = torch.autograd.grad(self.value(theta).sum(), theta, create_graph=True)
            return torch.autograd.grad((slope * vector).sum(), theta)[0]

    def inverse_hessian(self, theta: Tensor) -> Tensor:
        """The diagonal of D where it is diagonal, (…, n).

        Raises:
            InputError: if the potential is not separable.
        """
        raise InputError(f"`potential` must be separable for a diagonal of D, but is {self}")

    def balance_term(self, theta: Tensor) -> Tensor:
        """κ̃(θ) = θ·∇R(θ) − R(θ) + R(0) ≥ 0, the terms that Lemma 3.1 conserves, (…, P)."""
        value, none = self.value(theta), self.value(torch.zeros_like(theta))
        product = theta * self.gradient(theta)
        parts = self.parts(theta.shape[-1]).to(theta.device)
        return torch.zeros_like(value).index_add(-1, parts, product) - value + none

    def conjugate(self, dual: Tensor) -> Tensor:
        """The terms of the convex conjugate Q(z) (Definition 2.4), (…, n) to (…, P)."""
        at_zero = self.value(torch.zeros_like(dual))
        return self.balance_term(self.inverse_gradient(dual)) - at_zero

    def horizon(self, theta: Tensor) -> Tensor:
        """φ(θ) = lim η (αQ(∇R(θ/η)))^{1/α} as η → 0 (Theorem 4.7), over the last dimension.

        Raises:
            InputError: unless it is overridden.
        """
        raise InputError(f"`potential` must have a horizon of its own, but {self} has none")

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
