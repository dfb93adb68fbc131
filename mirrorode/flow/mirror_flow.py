"""The mirror flow d∇R(θ)/dt ∈ −∂°𝓛(θ) of a network on a dataset, without ever forming 𝓛.

With margins q_i = y_i f(θ, x_i), the exponential loss 𝓛 = Σ exp(−q_i) enters only through
ℓ = log(1/𝓛) = −logsumexp(−q) and the softmax weights p = softmax(−q):  −∂𝓛 = 𝓛·G, G = Σ p_i h_i.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mirrorode.problem.datasets import Dataset
from mirrorode.problem.errors import InputError, require, require_finite
from mirrorode.problem.networks import HomogeneousNetwork
from mirrorode.problem.potentials import SeparablePotential


@dataclass(frozen=True)
class MirrorFlow:
    """A network, the samples it learns and the potential whose geometry it moves in.

    Raises:
        InputError: if one of the three is of the wrong kind or input dimensions differ.
    """

    network: HomogeneousNetwork
    dataset: Dataset
    potential: SeparablePotential

    def __post_init__(self) -> None:
        kinds = (
            ("network", HomogeneousNetwork, "an MLP, a DiagonalLinear or a Network"),
            ("dataset", Dataset, "a Dataset"),
            ("potential", SeparablePotential, "a SeparablePotential"),
        )
        for name, kind, must in kinds:
            value = getattr(self, name)
            require(isinstance(value, kind), name, f"be {must}", repr(value))
        dim, expected = self.dataset.x.shape[1], self.network.input_dim
        require(dim == expected, "dataset", f"have inputs of dimension {expected}", dim)

    def margins(self, theta: Tensor) -> Tensor:
        """q_i = y_i f(θ, x_i): (…, n) to (…, K)."""
        return self.dataset.y * self.network.output(theta, self.dataset.x)

    def log_inverse_loss(self, theta: Tensor) -> Tensor:
        """ℓ = log(1/𝓛) = −logsumexp(−q): (…, n) to (…)."""
        return -torch.logsumexp(-self.margins(theta), dim=-1)

    def weights(self, theta: Tensor) -> Tensor:
        """p = softmax(−q), the share of each sample in the loss: (…, n) to (…, K)."""
        return torch.softmax(-self.margins(theta), dim=-1)

    def margin_gradients(self, theta: Tensor) -> Tensor:
        """H with rows h_i = ∂q_i/∂θ, on the off side at a kink: (…, n) to (…, K, n)."""
        gradient, _ = self.network.backward(self.network.forward(theta, self.dataset.x))
        return self.dataset.y[:, None] * gradient

    def vector_field(self, theta: Tensor) -> Tensor:
        """G = Σ p_i h_i, so that dz/dt = 𝓛·G and dz/dσ = G in the clock dσ = 𝓛 dt; (…, n)."""
        return (self.weights(theta)[..., None] * self.margin_gradients(theta)).sum(-2)

    def check_start(self, theta0: Tensor) -> Tensor:
        """``theta0`` as floating point on the device of the data, (n,) or (B, n).

        Raises:
            InputError: on a wrong shape or a non-finite entry.
        """
        try:
            theta0 = torch.as_tensor(theta0).detach().to(self.dataset.x)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"`theta0` must be a tensor, but is {theta0!r}") from None
        n = self.network.size
        fits = theta0.ndim in (1, 2) and theta0.shape[-1] == n
        require(fits, "theta0", f"have shape ({n},) or (B, {n})", tuple(theta0.shape))
        require_finite(theta0, "theta0")
        return theta0
