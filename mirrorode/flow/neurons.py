"""Neurons of two-layer networks under prescribed sample weights: independent small problems.

Neurons act on each other only through the weights of the samples. Where these are given as
polynomials of the position s in a step, neuron j obeys

    ż_w = h a F_j(s),    ż_a = h w·F_j(s),    F_j(s) quadratic in s for a fixed set of surfaces,

with w = ∇Q(z_w), a = ∇Q(z_a): 1 + d unknowns, whatever the number of samples. While it slides on
surfaces E its force is made tangent to them in the metric D: F − Eᵀ(E D Eᵀ)⁻¹E D F.

Neurons of several networks are taken together. What is computed for one depends on no other, to the
last bit, so that a network does the same alone and in company: sums run over the last dimension, or
are products of a vector and a matrix, or are taken network by network. (The product of two matrices
is not the same row by row: which kernel multiplies them depends on how many rows there are.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import pad

from mirrorode.flow.surfaces import Surfaces
from mirrorode.problem.mirror import Potential

LARGEST_METRIC = 1e90  # where the Hessian vanishes (λ = 0 at a zero weight) D is kept finite


@dataclass(frozen=True)
class Neurons:
    """The state of N neurons.

    Attributes:
        dual: (N, d + 1), incoming weights first, the output weight last.
        on: (N, G), which side of each surface; sliding ones are off.
        slides: (N, G), the surfaces slid along.
        captured: (N,), held at zero incoming weights.
    """

    dual: Tensor
    on: Tensor
    slides: Tensor
    captured: Tensor


@dataclass(frozen=True)
class Drive:
    """What moves the neurons of B networks in one step each: polynomials in s, constants first.

    Attributes:
        potentials: in whose metrics they move, B.
        count: neurons in each network, of B·count in all.
        normal: the kinks, (B, G, d), padded with zeros to one G; known: how many there are, B.
        base: force with every surface off, and behind it Σ_i μ_i, (B, 3, d + 1).
        strength: β, (B, 3, G).
        h: length of the step, (B,).
        moving: 1, or 0 where the output weights are constants.
    """

    potentials: tuple[Potential, ...]
    count: int
    normal: Tensor
    known: tuple[int, ...]
    base: Tensor
    strength: Tensor
    h: Tensor
    moving: float

    @classmethod
    def of(
        cls, potential: Potential, count: int, surfaces: Surfaces, weights: Tensor, total: Tensor,
        h: float, moving: float,
    ) -> Drive:  # fmt: skip
        """That of one network, under weights m_i = c μ_i y_i (3, K) with sum Σ_i μ_i (3,)."""
        base, strength = surfaces.forces(weights)
        base = torch.cat([base, total[:, None]], 1)
        return cls(
            (potential,), count, surfaces.normal[None], (len(surfaces),), base[None],
            strength[None], base.new_tensor([h]), moving,
        )  # fmt: skip

    @classmethod
    def joined(cls, drives: Sequence[Drive]) -> Drive:
        """The networks of several drives with equal ``count`` and ``moving``."""
        if len(drives) == 1:
            return drives[0]
        most = max(drive.normal.shape[1] for drive in drives)
        room = [most - drive.normal.shape[1] for drive in drives]
        together = list(zip(drives, room, strict=True))
        return cls(
            tuple(potential for drive in drives for potential in drive.potentials),
            drives[0].count,
            torch.cat([pad(drive.normal, (0, 0, 0, more)) for drive, more in together]),
            tuple(known for drive in drives for known in drive.known),
            torch.cat([drive.base for drive in drives]),
            torch.cat([pad(drive.strength, (0, more)) for drive, more in together]),
            torch.cat([drive.h for drive in drives]),
            drives[0].moving,
        )

    def part(self, networks: Tensor, most: int) -> Drive:
        """That of some networks, which have ``most`` surfaces at most."""
        numbers = networks.tolist()
        return Drive(
            tuple(self.potentials[b] for b in numbers), self.count, self.normal[networks, :most],
            tuple(self.known[b] for b in numbers), self.base[networks],
            self.strength[networks, :, :most], self.h[networks], self.moving,
        )  # fmt: skip

    @cached_property
    def _pulls(self) -> Tensor:
        """β e of each surface, (B, G, 3(d + 1)); nothing is added to Σμ."""
        pulls = self.strength[..., None] * self.normal[:, None]
        return pad(pulls, (0, 1)).transpose(1, 2).flatten(2)

    def owner(self, rows: Tensor) -> Tensor:
        """The network of each neuron."""
        return rows // self.count

    def known_of(self, rows: Tensor) -> Tensor:
        """How many surfaces each neuron has."""
        if len(self.known) == 1:
            return torch.full_like(rows, self.known[0])
        return rows.new_tensor(self.known)[self.owner(rows)]

    def by_network(self, rows: Tensor) -> list[tuple[int, slice]]:
        """Which of the ascending ``rows`` belong to each network that has any."""
        if len(self.known) == 1:
            return [(0, slice(0, len(rows)))]
        starts = torch.arange(len(self.known) + 1, device=rows.device) * self.count
        edges = torch.searchsorted(rows, starts).tolist()
        parts = ((b, slice(*edges[b : b + 2])) for b in range(len(self.known)))
        return [(b, part) for b, part in parts if part.start < part.stop]

    def force(self, rows: Tensor, on: Tensor) -> Tensor:
        """F, and Σμ, of neurons with surfaces ``on`` (A, G), as polynomials (A, 3, d + 1)."""
        on = on.to(self.base)
        found = self.base.new_empty(len(rows), 3, self.base.shape[-1])
        for b, part in self.by_network(rows):
            known = self.known[b]
            pulled = on[part, :known] @ self._pulls[b, :known]
            found[part] = self.base[b] + pulled.unflatten(1, (3, -1))
        return found

    def along(self, rows: Tensor, weights: Tensor) -> Tensor:
        """w·e for all surfaces (A, G), infinite where padded."""
        if len(self.known) == 1:
            return weights @ self.normal[0].T
        found = weights.new_full((len(rows), self.normal.shape[1]), torch.inf)
        for b, part in self.by_network(rows):
            known = self.known[b]
            found[part, :known] = weights[part] @ self.normal[b, :known].T
        return found

    def normals(self, rows: Tensor, surface: Tensor) -> Tensor:
        """e of surfaces (A, …) of neurons, (A, …, d)."""
        return self.normal[self._owners(rows, surface), surface]

    def beta(self, rows: Tensor, surface: Tensor, s: Tensor) -> Tensor:
        """β of surfaces (A, …) of neurons at positions s (…, A): (…, A, …)."""
        constant, linear, quadratic = (
            self.strength[self._owners(rows, surface), power, surface] for power in range(3)
        )
        s = s.reshape(*s.shape, *[1] * (surface.ndim - 1))
        return constant + s * (linear + s * quadratic)

    def _owners(self, rows: Tensor, surface: Tensor) -> Tensor:
        return self.owner(rows).reshape(-1, *[1] * (surface.ndim - 1))

    def slides(self, rows: Tensor, mask: Tensor) -> Slides:
        """What the neurons slide along where the mask (A, G) says."""
        return Slides.of(mask, self.normal, self.owner(rows))

    def primal(self, rows: Tensor, dual: Tensor) -> Tensor:
        """θ = ∇Q(z) of duals (…, A, D)."""
        parts = self._by_potential(rows)
        if len(parts) == 1:
            return parts[0][0].inverse_gradient(dual)
        found = [potential.inverse_gradient(dual[..., part, :]) for potential, part in parts]
        return torch.cat(found, -2)

    def metric(self, rows: Tensor, theta: Tensor) -> Tensor:
        """The diagonal of D at θ (…, A, D)."""
        parts = self._by_potential(rows)
        if len(parts) == 1:
            return parts[0][0].inverse_hessian(theta).clamp(max=LARGEST_METRIC)
        found = [potential.inverse_hessian(theta[..., part, :]) for potential, part in parts]
        return torch.cat(found, -2).clamp(max=LARGEST_METRIC)

    @cached_property
    def _uniform(self) -> bool:
        return all(potential is self.potentials[0] for potential in self.potentials)

    def _by_potential(self, rows: Tensor) -> list[tuple[Potential, slice]]:
        """Neighbouring networks of one potential are taken together."""
        if self._uniform:
            return [(self.potentials[0], slice(None))]
        parts = []
        for _, group in groupby(self.by_network(rows), lambda it: id(self.potentials[it[0]])):
            (first, begin), *others = group
            _, end = others[-1] if others else (first, begin)
            parts.append((self.potentials[first], slice(begin.start, end.stop)))
        return parts


@dataclass(frozen=True)
class Slides:
    """The surfaces that some of the neurons slide along, padded to one number M.

    Attributes:
        rows: those of A neurons that slide, (B,).
        surface: (B, M), ascending; valid marks what is not padding.
        normal: (B, M, d), zero where padded.
    """

    rows: Tensor
    surface: Tensor
    valid: Tensor
    normal: Tensor

    @classmethod
    def of(cls, slides: Tensor, normal: Tensor, owner: Tensor) -> Slides:
        """From a mask (A, G), and the kinks (B, G, d) of the networks that own the A neurons."""
        count = slides.sum(1)
        sliding = torch.nonzero(count)[:, 0]
        count = count[sliding]
        most = int(count.max()) if len(sliding) else 0
        valid = torch.arange(most, device=slides.device) < count[:, None]
        surface = torch.zeros_like(valid, dtype=torch.long)
        if most:
            surface[valid] = torch.nonzero(slides[sliding])[:, 1]
        here = normal[owner[sliding][:, None], surface] * valid[..., None]
        return cls(sliding, surface, valid, here)

    def multipliers(self, metric: Tensor, force: Tensor) -> Tensor:
        """(E D Eᵀ)⁻¹E D F of the sliding neurons: (…, B, M, C) for forces in columns (…, B, d, C).

        The metric is (…, B, d).
        """
        weighted = self.normal * metric[..., None, :]
        if self.normal.shape[1] == 1:
            return _one(weighted, self.normal, force)
        found = weighted.new_zeros(*weighted.shape[:-1], force.shape[-1])
        count = self.valid.sum(1)
        for m in torch.unique(count).tolist():
            here = torch.nonzero(count == m)[:, 0]
            normal, pull = self.normal[here, :m], force[..., here, :, :]
            first = weighted[..., here, :m, :]
            if m == 1:
                found[..., here, :m, :] = _one(first, normal, pull)
            else:
                found[..., here, :m, :] = torch.linalg.solve_ex(first @ normal.mT, first @ pull)[
                    0
                ]  # not finite where they depend on each other
        return found

    def tangent(self, metric: Tensor, force: Tensor) -> Tensor:
        """The forces made tangent in the metric, (…, B, d, C)."""
        return force - self.normal.mT @ self.multipliers(metric, force)


def _one(weighted: Tensor, normal: Tensor, force: Tensor) -> Tensor:
    return weighted @ force / (weighted * normal).sum(-1, keepdim=True)


def polynomial(coefficients: Tensor, s: Tensor) -> Tensor:
    """Σ_m c_m s^m for coefficients (A, 3, d) and positions s (…, A): (…, A, d)."""
    s = s[..., None]
    constant, linear, quadratic = coefficients.unbind(1)
    return torch.addcmul(constant, s, torch.addcmul(linear, s, quadratic))


def slope(
    drive: Drive, rows: Tensor, force: Tensor, slides: Slides, s: Tensor, state: Tensor
) -> Tensor:
    """d/dt of (z_w, z_a, ∫dissipation) (A, d + 2) at positions s (A,); dt = h ds.

    The last entry is ‖ż‖²_D/Σμ: what the neuron adds to log(1/𝓛).
    """
    theta = drive.primal(rows, state[:, :-1])
    weights, output = theta[:, :-1], theta[:, -1:]
    metric = drive.metric(rows, theta)
    pull, total = polynomial(force, s).tensor_split([force.shape[-1] - 1], dim=1)
    if len(slides.rows):
        held = slides.rows
        tangent = slides.tangent(metric[held, :-1], pull[held, :, None])[..., 0]
        pull = pull.index_copy(0, held, tangent)
    outward = (weights * pull).sum(1, keepdim=True)
    velocity = torch.cat([output * pull, outward if drive.moving else 0 * outward], 1)
    gained = (velocity.square() * metric).sum(1, keepdim=True) / total
    return torch.cat([velocity, gained], 1)


def snap(drive: Drive, rows: Tensor, slides: Slides, dual: Tensor) -> Tensor:
    """The sliding ones of ``rows``: their incoming duals (A, d + 1) moved least in D onto them."""
    if len(slides.rows) == 0:
        return dual
    sliding, incoming = rows[slides.rows], dual[slides.rows, :-1]
    for _ in range(2):
        weights = drive.primal(sliding, incoming)
        metric = drive.metric(sliding, weights)
        # The multipliers of D⁻¹w: what takes w off the surfaces.
        back = slides.multipliers(metric, (weights / metric)[..., None])
        incoming = incoming - (slides.normal.mT @ back)[..., 0]
    moved = dual.clone()
    moved[slides.rows, :-1] = incoming
    return moved
