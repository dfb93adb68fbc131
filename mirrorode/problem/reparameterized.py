"""θ = u ⊙ v: gradient flow of the factors is the mirror flow of the hyperbolic entropy (App. G.3).

Under gradient flow of (u, v) the difference u² − v² = δ is conserved in every coordinate, so that
dθ/dt ∈ −(u² + v²) ∂°𝓛 with u² + v² = √(4θ² + δ²) = 2√(θ² + λ) for λ = δ²/4: twice the inverse
Hessian of `HyperbolicEntropy(lam)`. Hence θ_uv(t) = θ_hyp(2t). The paper writes √(4θ² + λ), where λ
is δ²: the entropy with that λ, or without the factor two of time, is another flow.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mirrorode.problem.errors import require, require_finite, require_number
from mirrorode.problem.modules import Network
from mirrorode.problem.networks import MLP


class Product(nn.Module):
    """f(u ⊙ v; x) for a multilayer perceptron f: (K, d) to (K, 1).

    Args:
        network: f; its parameters W1, W2, … become u.W1, u.W2, …, v.W1, v.W2, …
    """

    def __init__(self, network: MLP) -> None:
        super().__init__()
        self.u, self.v = (
            nn.ParameterDict({name: torch.ones(shape) for name, shape in network.shapes.items()})
            for _ in range(2)
        )
        self.scale = float(network.output_scale or 1.0)
        self.slope = network.slopes[0][0] if network.slopes else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """The output at ``x``, through the one product of each pair of matrices."""
        *hidden, last = (u * v for u, v in zip(self.u.values(), self.v.values(), strict=True))
        for weight in hidden:
            x = nn.functional.linear(x, weight)
            # Not leaky_relu(x, 1.0) for a linear network: that would be searched for kinks.
            x = x if self.slope == 1.0 else nn.functional.leaky_relu(x, self.slope)
        return self.scale * nn.functional.linear(x, last)


def reparameterized(network: MLP) -> Network:
    """The network f(u ⊙ v; x), homogeneous of degree 2L in (u, v), which are its θ (2n,).

    Its kinks are those of f. Start it from `factors`; `product` gives the weights of f.

    Args:
        network: f, of n parameters.

    Raises:
        InputError: if ``network`` is not an `MLP`.
    """
    require(isinstance(network, MLP), "network", "be an MLP", repr(network))
    return Network(Product(network), dim=network.input_dim)


def factors(theta: Tensor, lam: float) -> Tensor:
    """The (u, v) with u ⊙ v = θ, u² − v² = 2√λ and u > 0: (…, n) to (…, 2n).

    Args:
        theta: the weights θ.
        lam: λ > 0 of the entropy whose flow gradient flow of (u, v) is to be.

    Raises:
        InputError: if ``lam`` is not positive, or ``theta`` not finite.
    """
    require_number(lam, "lam", "be positive", 0.0, strict=True)
    require_finite(theta, "theta")
    root = theta.new_tensor(math.sqrt(lam))
    # v as θ/u: the root of √(θ² + λ) − √λ would have lost all digits of a small θ.
    u = torch.sqrt(torch.hypot(theta, root) + root)
    return torch.cat([u, theta / u], -1)


def product(uv: Tensor) -> Tensor:
    """θ = u ⊙ v: (…, 2n) to (…, n)."""
    u, v = uv.chunk(2, -1)
    return u * v


def difference(uv: Tensor) -> Tensor:
    """δ = u² − v², which gradient flow conserves, as (u − v)(u + v): (…, 2n) to (…, n)."""
    u, v = uv.chunk(2, -1)
    return (u - v) * (u + v)
