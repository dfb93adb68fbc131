"""Where the neurons of a two-layer network are in θ, for networks whose neurons separate.

The network is f(x) = c Σ_j a_j σ(w_j·x), each a_j one parameter of its own or, for all j, a
constant. An `MLP` with one hidden layer is of this form; of a module it is found out by
evaluating it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mirrorode.problem.homogeneous import HomogeneousNetwork
from mirrorode.problem.networks import MLP

LARGEST = 2000  # neurons up to which a module is asked whether it is of this form


@dataclass(frozen=True)
class Layout:
    """N neurons in a flat vector.

    Attributes:
        incoming: places of w_j, (N, d).
        outgoing: places of a_j, (N,); None where these are constants.
        fixed: a_j where constant, (N,), else zeros.
        factor: c.
        slopes: of the activation, off and on.
    """

    incoming: Tensor
    outgoing: Tensor | None
    fixed: Tensor
    factor: float
    slopes: tuple[float, float]

    @classmethod
    def of(cls, network: HomogeneousNetwork, like: Tensor) -> Layout | None:
        """The layout of a network; None where its neurons do not separate."""
        if isinstance(network, MLP):
            return _of_mlp(network, like) if len(network.widths) == 3 else None
        if len(network.units) != 1 or not 0 < network.units[0] <= LARGEST:
            return None
        return _of_module(network, like)

    def gather(self, flat: Tensor) -> Tensor:
        """(…, n) as (…, N, d + 1): incoming weights first, the output weight last."""
        if self.outgoing is not None:
            last = flat[..., self.outgoing]
        else:
            last = self.fixed.expand(*flat.shape[:-1], -1)
        return torch.cat([flat[..., self.incoming], last[..., None]], -1)

    def scatter(self, neurons: Tensor) -> Tensor:
        """(…, N, d + 1) as (…, n); constants are left out."""
        moving = self.incoming.numel() + (0 if self.outgoing is None else len(self.outgoing))
        flat = neurons.new_empty(*neurons.shape[:-2], moving)
        flat[..., self.incoming.reshape(-1)] = neurons[..., :-1].flatten(-2)
        if self.outgoing is not None:
            flat[..., self.outgoing] = neurons[..., -1]
        return flat


def _of_mlp(network: MLP, like: Tensor) -> Layout:
    dim, width, _ = network.widths
    places = torch.arange(width * (dim + 1), device=like.device)
    incoming = places[: width * dim].reshape(width, dim)
    factor = float(network.output_scale or 1.0)
    zeros = like.new_zeros(width)
    return Layout(incoming, places[width * dim :], zeros, factor, network.slopes[0])


def _of_module(network: HomogeneousNetwork, like: Tensor) -> Layout | None:
    """By evaluation at generic points: what the output weights are, and whether f is theirs."""
    width, dim, n = network.units[0], network.input_dim, network.size
    if network.fan_in[0] != dim:
        return None
    incoming = network.incoming(0, torch.arange(width, device=like.device))
    rest = torch.ones(n, dtype=torch.bool, device=like.device)
    rest[incoming.reshape(-1)] = False
    others = torch.nonzero(rest)[:, 0]
    if len(others) not in (0, width) or incoming.unique().numel() != incoming.numel():
        return None
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, dim, generator=generator, dtype=torch.float64).to(like)
    theta = torch.randn(n, generator=generator, dtype=torch.float64).to(like)
    if len(others) == 0:
        outgoing, factor, fixed = None, 1.0, _signals(network, theta, x)[0]
    else:
        units = theta.expand(width, -1).clone()
        units[:, others] = torch.eye(width, dtype=like.dtype, device=like.device)
        effect = torch.stack([_signals(network, one, x)[0] for one in units])
        which = effect.abs().argmax(0)
        factor, fixed = float(effect[which[0], 0]), like.new_zeros(width)
        outgoing = others[which]
    found = Layout(incoming, outgoing, fixed, factor, network.slopes[0])
    return found if factor != 0 and _agrees(network, found, theta, x) else None


def _signals(network: HomogeneousNetwork, theta: Tensor, x: Tensor) -> Tensor:
    return network.backward(network.forward(theta, x))[1][0]


def _agrees(network: HomogeneousNetwork, layout: Layout, theta: Tensor, x: Tensor) -> bool:
    neurons = layout.gather(theta)
    off, on = layout.slopes
    pre = x @ neurons[:, :-1].T
    output = layout.factor * (torch.where(pre > 0, on * pre, off * pre) @ neurons[:, -1])
    return torch.allclose(network.output(theta, x), output, rtol=1e-10, atol=1e-12)
