"""A different potential for each parameter of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mirrorode.problem.errors import InputError, require
from mirrorode.problem.geometries import for_width
from mirrorode.problem.homogeneous import HomogeneousNetwork
from mirrorode.problem.mirror import Potential
from mirrorode.problem.potentials import SeparablePotential


@dataclass(frozen=True)
class Layerwise(Potential):
    """R(θ) = Σ_l R_l(W_l): one potential for each parameter, by its name.

    The names are those of ``network.unflatten``; a `MirrorFlow` checks them, and lays the
    potentials along θ. The balance equation holds layer by layer, and unit by unit where the
    potentials are separable.

    Args:
        potentials: from parameter name to potential.

    Raises:
        InputError: if it is no such mapping.
    """

    potentials: Mapping[str, Potential]
    counts: tuple[int, ...] = field(default=(), init=False, repr=False)
    """Entries of each parameter, in the order of θ; known once there is a network."""

    def __post_init__(self) -> None:
        must = "map parameter names to potentials"
        require(isinstance(self.potentials, Mapping), "potentials", must, repr(self.potentials))
        require(len(self.potentials) > 0, "potentials", must, "empty")
        for name, one in self.potentials.items():
            fine = isinstance(one, Potential) and not isinstance(one, Layerwise)
            require(fine, f"potentials[{name!r}]", "be a potential", repr(one))

    def forget(self) -> None:
        """Drop what later calls start from, of each potential."""
        for one in self.potentials.values():
            one.forget()

    def __hash__(self) -> int:
        return hash((tuple(self.potentials.items()), self.counts))

    @classmethod
    def for_width(
        cls, network: HomogeneousNetwork, potential: SeparablePotential, *, printed: bool = False
    ) -> Layerwise:
        """That of Appendix J.3: `for_width` of each parameter, with the inputs of its units.

        Args:
            network: whose parameters are scaled.
            potential: as for `mirrorode.for_width`.
            printed: whether the power of the width is the one printed in the paper.

        Raises:
            InputError: for a potential that has no such form.
        """
        widths = {name: torch.Size(it[1:]).numel() for name, it in network.shapes.items()}
        scaled = {
            name: for_width(potential, width, printed=printed) for name, width in widths.items()
        }
        return cls(scaled)

    def along(self, network: HomogeneousNetwork) -> Layerwise:
        """The same in the order of the parameters of ``network``.

        Raises:
            InputError: if the names differ.
        """
        shapes = network.shapes
        for name in (*shapes, *self.potentials):
            if name not in self.potentials or name not in shapes:
                names, given = ", ".join(shapes), ", ".join(self.potentials)
                raise InputError(f"`potentials` must name exactly {names}, but names {given}")
        placed = Layerwise({name: self.potentials[name] for name in shapes})
        counts = tuple(torch.Size(shape).numel() for shape in shapes.values())
        object.__setattr__(placed, "counts", counts)
        return placed

    @property
    def separable(self) -> bool:
        """Whether all of them are."""
        return all(one.separable for one in self.potentials.values())

    @property
    def degree(self) -> float | None:
        """The common α; None where the potentials differ in it."""
        degrees = {one.degree for one in self.potentials.values()}
        return degrees.pop() if len(degrees) == 1 else None

    def parts(self, count: int) -> Tensor:
        """Those of the potentials one after the other, (n,)."""
        del count
        found: list[Tensor] = []
        for one, own in zip(self.potentials.values(), self.counts, strict=True):
            found.append(one.parts(own) + (int(found[-1][-1]) + 1 if found else 0))
        return torch.cat(found)

    def value(self, theta: Tensor) -> Tensor:
        """r_l(θ)."""
        return self._each(lambda one, part: one.value(part), theta)

    def gradient(self, theta: Tensor) -> Tensor:
        """z = r_l'(θ)."""
        return self._each(lambda one, part: one.gradient(part), theta)

    def inverse_gradient(self, dual: Tensor) -> Tensor:
        """θ with r_l'(θ) = z."""
        return self._each(lambda one, part: one.inverse_gradient(part), dual)

    def balance_term(self, theta: Tensor) -> Tensor:
        """κ̃_l(θ)."""
        return self._each(lambda one, part: one.balance_term(part), theta)

    def precondition(self, theta: Tensor, vector: Tensor) -> Tensor:
        """D_l v."""
        return self._each(lambda one, *parts: one.precondition(*parts), theta, vector)

    def hessian_product(self, theta: Tensor, vector: Tensor) -> Tensor:
        """A_l v."""
        return self._each(lambda one, *parts: one.hessian_product(*parts), theta, vector)

    def inverse_hessian(self, theta: Tensor) -> Tensor:
        """The diagonal of D_l.

        Raises:
            InputError: if one of them is not separable.
        """
        return self._each(lambda one, part: one.inverse_hessian(part), theta)

    def conjugate(self, dual: Tensor) -> Tensor:
        """r_l*(z)."""
        return self._each(lambda one, part: one.conjugate(part), dual)

    def horizon(self, theta: Tensor) -> Tensor:
        """(Σ φ_l^α)^{1/α}.

        Raises:
            InputError: if the potentials have no common degree.
        """
        alpha = self.degree
        if alpha is None:
            raise InputError("`potential` must have one degree, but its layers differ in theirs")
        pairs = zip(self.potentials.values(), theta.split(self.counts, -1), strict=True)
        return sum((one.horizon(part) ** alpha for one, part in pairs), theta.new_zeros(())) ** (
            1 / alpha
        )

    def _each(self, of: Callable[..., Tensor], *vectors: Tensor) -> Tensor:
        count = sum(self.counts)
        for vector in vectors:
            if count == 0 or vector.shape[-1] != count:
                must = f"be all parameters of the network of a flow, (…, {count})"
                raise InputError(f"`theta` must {must}, but has shape {tuple(vector.shape)}")
        split = zip(*(vector.split(self.counts, -1) for vector in vectors), strict=True)
        pairs = zip(self.potentials.values(), split, strict=True)
        return torch.cat([of(one, *parts) for one, parts in pairs], -1)
