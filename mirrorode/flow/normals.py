"""Normals of kinks: gradients of pre-activations, kept as factors where the network has them.

A pair (unit j of layer l, sample i) has its normal in the weight matrices up to layer l, and each
block of it is an outer product δ ⊗ a of a signal and of what enters the matrix. Dense normals of
a hundred sliding pairs take most of the time of a run; with the factors their Gram matrix in D
costs no more than one pass over the samples.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from mirrorode.flow.kinks import Pairs
from mirrorode.problem.homogeneous import HomogeneousNetwork, Pattern
from mirrorode.problem.networks import MLP


class Normals(ABC):
    """S normals (…, S, n), as what is asked of them."""

    @abstractmethod
    def gram(self, inverse: Tensor) -> Tensor:
        """N D Nᵀ (…, S, S), D the diagonal ``inverse`` (…, n)."""

    @abstractmethod
    def along(self, rows: Tensor) -> Tensor:
        """rows Nᵀ: (…, R, n) to (…, R, S)."""

    @abstractmethod
    def combine(self, coefficients: Tensor) -> Tensor:
        """coefficients N: (…, R, S) to (…, R, n)."""

    @abstractmethod
    def sizes(self, scale: Tensor) -> Tensor:
        """Root mean squares (…, S) of the normals divided by ``scale`` (…, n)."""


def of_pairs(
    network: HomogeneousNetwork, theta: Tensor, x: Tensor, pairs: Pairs, pattern: Pattern
) -> Normals:
    """The normals of ``pairs`` at ``theta`` (…, n) on one pattern row (…, S, units) a pair."""
    if isinstance(network, MLP):
        return _factored(network, theta, x, pairs, pattern)
    return DenseNormals(pair_normals(network, theta, x, pairs, pattern))


def pair_normals(
    network: HomogeneousNetwork, theta: Tensor, x: Tensor, pairs: Pairs, pattern: Pattern
) -> Tensor:
    """The normals of `of_pairs` as rows (…, S, n)."""
    rows = theta.new_zeros(*theta.shape[:-1], len(pairs), network.size)
    for layer in range(len(pattern)):
        here = torch.nonzero(pairs.layer == layer)[:, 0]
        if len(here):
            below = [on[..., here, :] for on in pattern]
            inputs = x[pairs.sample[here]]
            rows[..., here, :] = network.normals(theta, inputs, below, layer, pairs.unit[here])
    return rows


@dataclass(frozen=True)
class DenseNormals(Normals):
    """The normals as rows (…, S, n)."""

    rows: Tensor

    def gram(self, inverse: Tensor) -> Tensor:
        """N D Nᵀ."""
        return (self.rows * inverse[..., None, :]) @ self.rows.mT

    def along(self, rows: Tensor) -> Tensor:
        """rows Nᵀ."""
        return rows @ self.rows.mT

    def combine(self, coefficients: Tensor) -> Tensor:
        """coefficients N."""
        return coefficients @ self.rows

    def sizes(self, scale: Tensor) -> Tensor:
        """Root mean squares."""
        return (self.rows / scale[..., None, :]).square().mean(-1).sqrt()


@dataclass(frozen=True)
class Block:
    """The normals in one weight matrix.

    Attributes:
        low, high: where the matrix lies in θ; its shape is (rows, columns).
        top: pairs of the layer straight above the matrix, whose δ is the unit vector ``unit``.
        entering_top: a of those, (…, T, columns).
        lower: pairs of higher layers, with δ (…, U, rows) and a (…, U, columns).
    """

    low: int
    high: int
    shape: tuple[int, int]
    top: Tensor
    unit: Tensor
    entering_top: Tensor
    lower: Tensor
    delta: Tensor
    entering: Tensor

    def gram(self, total: Tensor, inverse: Tensor) -> None:
        """Add N D Nᵀ of this block to ``total`` (…, S, S)."""
        metric = inverse[..., self.low : self.high].unflatten(-1, self.shape)
        top, lower = self.top, self.lower
        if len(top):
            weighted = self.entering_top * metric[..., self.unit, :]
            same = self.unit[:, None] == self.unit
            total[..., top[:, None], top] += (weighted @ self.entering_top.mT) * same
        if len(lower):
            dense = (self.delta[..., :, None] * self.entering[..., None, :]).flatten(-2)
            scaled = dense * inverse[..., None, self.low : self.high]
            total[..., lower[:, None], lower] += scaled @ dense.mT
        if len(top) and len(lower):
            mixed = (weighted @ self.entering.mT) * self.delta[..., :, self.unit].mT
            total[..., top[:, None], lower] += mixed
            total[..., lower[:, None], top] += mixed.mT

    def along(self, total: Tensor, rows: Tensor) -> None:
        """Add rows Nᵀ of this block to ``total`` (…, R, S)."""
        matrix = rows[..., self.low : self.high].unflatten(-1, self.shape)
        if len(self.top):
            picked = matrix[..., self.unit, :] * self.entering_top[..., None, :, :]
            total[..., self.top] += picked.sum(-1)
        if len(self.lower):
            dense = (self.delta[..., :, None] * self.entering[..., None, :]).flatten(-2)
            total[..., self.lower] += rows[..., self.low : self.high] @ dense.mT

    def combine(self, total: Tensor, coefficients: Tensor) -> None:
        """Add coefficients N of this block to ``total`` (…, R, n)."""
        matrix = total[..., self.low : self.high].unflatten(-1, self.shape)
        if len(self.top):
            part = coefficients[..., self.top, None] * self.entering_top[..., None, :, :]
            matrix.index_add_(-2, self.unit, part)
        if len(self.lower):
            dense = (self.delta[..., :, None] * self.entering[..., None, :]).flatten(-2)
            matrix += (coefficients[..., self.lower] @ dense).unflatten(-1, self.shape)

    def squares(self, total: Tensor, weight: Tensor) -> None:
        """Add Σ_k weight_k n_k² of this block to ``total`` (…, S)."""
        metric = weight[..., self.low : self.high].unflatten(-1, self.shape)
        if len(self.top):
            picked = metric[..., self.unit, :] * self.entering_top.square()
            total[..., self.top] += picked.sum(-1)
        if len(self.lower):
            part = (self.delta.square() @ metric) * self.entering.square()
            total[..., self.lower] += part.sum(-1)


@dataclass(frozen=True)
class FactoredNormals(Normals):
    """The normals of an `MLP`, block by block."""

    blocks: list[Block]
    lead: torch.Size
    count: int
    size: int

    def _zeros(self, like: Tensor, *shape: int) -> Tensor:
        lead = torch.broadcast_shapes(self.lead, like.shape[: like.ndim - 1])
        return like.new_zeros(*lead, *shape)

    def gram(self, inverse: Tensor) -> Tensor:
        """N D Nᵀ."""
        total = self._zeros(inverse, self.count, self.count)
        for block in self.blocks:
            block.gram(total, inverse)
        return total

    def along(self, rows: Tensor) -> Tensor:
        """rows Nᵀ."""
        total = rows.new_zeros(*rows.shape[:-1], self.count)
        for block in self.blocks:
            block.along(total, rows)
        return total

    def combine(self, coefficients: Tensor) -> Tensor:
        """coefficients N."""
        total = coefficients.new_zeros(*coefficients.shape[:-1], self.size)
        for block in self.blocks:
            block.combine(total, coefficients)
        return total

    def sizes(self, scale: Tensor) -> Tensor:
        """Root mean squares."""
        weight = scale.square().reciprocal()
        total = self._zeros(weight, self.count)
        for block in self.blocks:
            block.squares(total, weight)
        return (total / self.size).sqrt()


def _factored(network: MLP, theta: Tensor, x: Tensor, pairs: Pairs, pattern: Pattern) -> Normals:
    layers = len(pattern)
    below: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in range(layers)]
    tops: list[tuple[Tensor, Tensor]] = []
    for layer in range(layers):
        here = torch.nonzero(pairs.layer == layer)[:, 0]
        on = [value[..., here, :] for value in pattern]
        inputs = x[pairs.sample[here]]
        factors = network.normal_factors(theta, inputs, on, layer, pairs.unit[here])
        tops.append((here, factors[-1][1]))
        for matrix, (delta, entering) in enumerate(factors[:-1]):
            if len(here):
                below[matrix].append((here, delta, entering))
    blocks, low = [], 0
    for (here, entering_top), lower, shape in zip(
        tops, below, network.shapes.values(), strict=False
    ):
        high = low + shape[0] * shape[1]
        places, deltas, enterings = zip(*lower, strict=True) if lower else ((), (), ())
        blocks.append(
            Block(
                low, high, (shape[0], shape[1]), here, pairs.unit[here], entering_top,
                torch.cat(places) if lower else here[:0],
                torch.cat(deltas, -2) if lower else entering_top[..., :0, :],
                torch.cat(enterings, -2) if lower else entering_top[..., :0, :],
            )
        )  # fmt: skip
        low = high
    return FactoredNormals(blocks, theta.shape[:-1], len(pairs), network.size)


def solve_gram(gram: Tensor, right: Tensor) -> Tensor:
    """gram⁻¹ right for (…, S, S) and (…, S) or (…, S, m), scaled to a unit diagonal.

    Twenty units of round-off on it decide where normals have come to depend on each other. NaN
    where a step has gone so far that something has overflowed.
    """
    flat = right.ndim == gram.ndim - 1
    size = gram.diagonal(dim1=-2, dim2=-1).clamp(min=1e-300).rsqrt()
    scaled = gram * size[..., :, None] * size[..., None, :]
    scaled.diagonal(dim1=-2, dim2=-1).add_(20 * torch.finfo(gram.dtype).eps)
    vector = size[..., None] * (right[..., None] if flat else right)
    factor, info = torch.linalg.cholesky_ex(scaled)
    if not bool((info > 0).any()):
        solved = torch.cholesky_solve(vector, factor)
    elif bool(scaled.isfinite().all() & vector.isfinite().all()):
        solved = torch.linalg.pinv(scaled, hermitian=True) @ vector
    else:
        solved = torch.full_like(vector, math.nan)
    solved = size[..., None] * solved
    return solved[..., 0] if flat else solved
