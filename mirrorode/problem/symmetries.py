"""The rescaling symmetries of a network: what comes in times c, what goes out times c^{−k}.

A hidden unit with an activation that is homogeneous of degree k may have its incoming weights
multiplied with e^s and its outgoing ones with e^{−ks}; the function of the network does not change.
Every parameter is therefore an edge from one unit to another, the input and the output being the
*ground*, which is never rescaled. A channel of a convolution is one unit. Where two values are
added, as in a residual block, or compared, as in max pooling, their units are one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mirrorode.problem.homogeneous import HomogeneousNetwork
from mirrorode.problem.modules import Network
from mirrorode.problem.networks import MLP, DiagonalLinear
from mirrorode.problem.scalings import GROUND, Untraceable, edges_of

SEEN = 1e-9  # change of the output under a rescaling, relative, that is none


@dataclass(frozen=True)
class Symmetries:
    """The units of a network, numbered from 1, and the edges that its parameters are.

    Attributes:
        source: the unit that each parameter leads out of, (n,); `GROUND` for the input.
        target: the unit that it leads into, (n,); `GROUND` for the output.
        degree: the power k of the source's scale that it is multiplied with, (n,).
        names: one a unit.
        layer: which hidden layer each unit is in, from 1, (J,).
        missing: why there are no units, if there are none.
    """

    source: Tensor
    target: Tensor
    degree: Tensor
    names: tuple[str, ...]
    layer: Tensor
    missing: str = ""

    def __len__(self) -> int:
        return len(self.names)

    def into(self, terms: Tensor) -> Tensor:
        """Σ of ``terms`` (…, n) over the incoming weights of each unit, (…, J)."""
        return self._gather(terms, self.target)

    def out_of(self, terms: Tensor) -> Tensor:
        """k Σ of ``terms`` (…, n) over the outgoing weights of each unit, (…, J)."""
        return self._gather(self.degree * terms, self.source)

    def exponents(self, s: Tensor) -> Tensor:
        """u (…, n): each parameter is to be multiplied with e^u if the units are by e^s, (…, J)."""
        padded = torch.cat([torch.zeros_like(s[..., :1]), s], -1)
        return padded[..., self.target] - self.degree * padded[..., self.source]

    def to(self, like: Tensor) -> Symmetries:
        """The same on the device of ``like``, the degrees in its precision."""
        edges = (part.to(like.device) for part in (self.source, self.target, self.degree))
        source, target, degree = edges
        layer = self.layer.to(like.device)
        return Symmetries(source, target, degree.to(like), self.names, layer, self.missing)

    def _gather(self, terms: Tensor, unit: Tensor) -> Tensor:
        total = terms.new_zeros(*terms.shape[:-1], len(self) + 1)
        return total.index_add(-1, unit, terms)[..., 1:]


def find(network: HomogeneousNetwork) -> Symmetries:
    """The symmetries of a network; none, with the reason, where they cannot be followed.

    What is found is verified: a random rescaling must not change the output at a random input.
    """
    try:
        found = _known(network) if isinstance(network, MLP | DiagonalLinear) else _traced(network)
    except Untraceable as reason:
        return _none(network, f"the symmetries of the network are not known, for {reason}")
    if len(found) == 0:
        return _none(network, "the network has no hidden layer whose weights all move")
    if not _holds(network, found):
        return _none(network, "a rescaling of the units of the network changes its output")
    return found


def _known(network: MLP | DiagonalLinear) -> Symmetries:
    """Layer after layer."""
    matrices = isinstance(network, MLP)
    shapes = list(network.shapes.values())
    source, target, below = [], [], 0
    names: list[str] = []
    layers: list[int] = []
    for number, shape in enumerate(shapes, 1):
        last = number == len(shapes)
        first_here = len(names) + 1
        below_here = (below + torch.arange(shape[-1])) if number > 1 else torch.zeros(shape[-1])
        above = torch.zeros(shape[0]) if last else first_here + torch.arange(shape[0])
        source.append(below_here.expand(shape).reshape(-1))
        target.append((above[:, None].expand(shape) if matrices else above).reshape(-1))
        if not last:
            names += [f"layer {number}, unit {unit}" for unit in range(shape[0])]
            layers += [number] * shape[0]
        below = first_here
    edges = torch.cat(source).long(), torch.cat(target).long()
    return Symmetries(*edges, torch.ones(network.size), tuple(names), torch.tensor(layers).long())


def _traced(network: HomogeneousNetwork) -> Symmetries:
    """Of a module, by following what each weight multiplies."""
    if not isinstance(network, Network):
        raise Untraceable(f"{type(network).__name__} does not say how its weights are connected")
    edges = edges_of(network)
    roots = torch.unique(torch.cat([edges.source, edges.target]))
    units = roots[roots != GROUND]
    number = torch.zeros(int(roots.max()) + 1 if len(roots) else 1, dtype=torch.long)
    number[units] = torch.arange(1, len(units) + 1)
    names = tuple(edges.names[unit] for unit in units.tolist())
    layer = torch.tensor([edges.layers[unit] for unit in units.tolist()]).long()
    # Layers are numbered without gaps: one whose units are all grounded does not count.
    _, layer = torch.unique(layer, return_inverse=True)
    source, target = number[edges.source], number[edges.target]
    return Symmetries(source, target, edges.degree, names, layer + 1)


def _none(network: HomogeneousNetwork, reason: str) -> Symmetries:
    ground = torch.zeros(network.size, dtype=torch.long)
    empty = torch.zeros(0, dtype=torch.long)
    return Symmetries(ground, ground, torch.ones(network.size), (), empty, reason)


def _holds(network: HomogeneousNetwork, found: Symmetries) -> bool:
    generator = torch.Generator().manual_seed(0)
    theta = network.initial(0)
    x = torch.randn(4, network.input_dim, generator=generator, dtype=theta.dtype)
    s = 0.5 * torch.randn(len(found), generator=generator, dtype=theta.dtype)
    rescaled = theta * torch.exp(found.to(theta).exponents(s))
    before, after = network.output(theta, x), network.output(rescaled, x)
    size = max(float(before.abs().max()), math.ulp(1.0))
    return bool(torch.isfinite(after).all()) and float((after - before).abs().max()) < SEEN * size
