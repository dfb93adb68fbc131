"""The kink surfaces of a neuron: one line of inputs each, all through zero.

For a neuron a σ(w·x) with σ(v) = s₀v + J max(v, 0), samples on one line through zero share one
kink: with unit direction e and x_i = κ_i e,

    σ(w·x_i) = (s₀κ_i + J min(κ_i, 0)) p + J |κ_i| max(p, 0),        p = w·e,

so that parallel samples switch on together, and antipodal ones off as the others go on. Under
weights m_i = c μ_i y_i of the samples the force on the neuron, ż_w = a F, ż_a = w·F, is

    F = Σ_i m_i (s₀κ_i + J min(κ_i, 0)) e  +  Σ_g on_g β_g e_g,      β_g = Σ_{i in g} J |κ_i| m_i.

A zero sample has no kink and no force.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SAME_LINE = 1e-12  # distance of unit directions below which two samples share a kink


@dataclass(frozen=True)
class Surfaces:
    """G surfaces of K samples in d dimensions.

    Attributes:
        normal: e, unit vectors (G, d), along the first sample of each surface.
        group: the surface of each sample, (K,).
        along: κ_i = x_i·e, (K,); 0 for a zero sample.
        slopes: of the activation, off and on.
    """

    normal: Tensor
    group: Tensor
    along: Tensor
    slopes: tuple[float, float]

    @classmethod
    def of(cls, x: Tensor, slopes: tuple[float, float]) -> Surfaces:
        """The surfaces of samples ``x`` (K, d)."""
        size = x.norm(dim=1)
        unit = x / size.clamp(min=torch.finfo(x.dtype).tiny)[:, None]
        lead = unit.gather(1, unit.abs().argmax(1, keepdim=True))[:, 0]
        side = torch.where(lead < 0, -1.0, 1.0).to(x)
        unit = unit * side[:, None]
        # Equal directions are neighbours in the order of any one generic coordinate.
        generic = torch.cos(torch.arange(x.shape[1], dtype=x.dtype, device=x.device) + 1.0)
        order = torch.argsort(unit @ generic)
        apart = (unit[order].diff(dim=0)).norm(dim=1) > SAME_LINE
        number = torch.cat([apart.new_zeros(1).long(), apart.long().cumsum(0)])
        group = torch.empty_like(order)
        group[order] = number
        # Oriented as its first sample is: "off" means that this one is off.
        numbered = torch.arange(len(x), device=x.device)
        first = torch.full_like(order, len(x)).scatter_reduce(0, group, numbered, "amin")
        first = first[: int(number[-1]) + 1]
        along = size * side * side[first][group]
        return cls(unit[first] * side[first, None], group, along, slopes)

    def __len__(self) -> int:
        return len(self.normal)

    def restrict(self, samples: Tensor) -> tuple[Surfaces, Tensor]:
        """The surfaces of a subset of samples, and which ones they are (G',)."""
        kept, group = torch.unique(self.group[samples], return_inverse=True)
        return Surfaces(self.normal[kept], group, self.along[samples], self.slopes), kept

    def forces(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The force with every surface off (…, d), and β (…, G), under weights m (…, K)."""
        off, on = self.slopes
        jump = on - off
        fixed = weights * (off * self.along + jump * self.along.clamp(max=0))
        shape = (*weights.shape[:-1], len(self))
        strength = weights.new_zeros(shape).index_add(
            -1, self.group, weights * jump * self.along.abs()
        )
        base = weights.new_zeros(shape).index_add(-1, self.group, fixed) @ self.normal
        return base, strength

    def pattern(self, on: Tensor) -> Tensor:
        """Which unit is on for which sample, (K, N), from (N, G)."""
        of_sample = on.T[self.group]
        return torch.where(self.along[:, None] > 0, of_sample, ~of_sample) & (
            self.along[:, None] != 0
        )
