"""The mirror flow d∇R(θ)/dt ∈ −∂°𝓛(θ) of a network on a dataset, without ever forming 𝓛.

With margins q_i = y_i f(θ, x_i), the exponential loss 𝓛 = Σ exp(−q_i) enters only through
ℓ = log(1/𝓛) = −logsumexp(−q) and the softmax weights p = softmax(−q):  −∂𝓛 = 𝓛·G, G = Σ p_i h_i.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mirrorode.problem.consistency import require_mirror
from mirrorode.problem.datasets import Dataset
from mirrorode.problem.errors import InputError, require, require_finite, require_memory
from mirrorode.problem.homogeneous import HomogeneousNetwork
from mirrorode.problem.layerwise import Layerwise
from mirrorode.problem.mirror import Potential
from mirrorode.problem.symmetries import Symmetries, find

AT_ONCE = 1 << 17  # pairs of a sample and a unit evaluated together: a megabyte, of any data set
ON_ACCELERATOR = 128  # times as many, where a launch costs more than a pass through the cache


@dataclass(frozen=True)
class MirrorFlow:
    """A network, the samples it learns and the potential whose geometry it moves in.

    Raises:
        InputError: if one of the three is of the wrong kind, input dimensions differ, or the
            potential is no mirror potential (`consistency`).
    """

    network: HomogeneousNetwork
    dataset: Dataset
    potential: Potential

    def __post_init__(self) -> None:
        kinds = (
            ("network", HomogeneousNetwork, "an MLP, a DiagonalLinear or a Network"),
            ("dataset", Dataset, "a Dataset"),
            ("potential", Potential, "a SeparablePotential or another Potential"),
        )
        for name, kind, must in kinds:
            value = getattr(self, name)
            require(isinstance(value, kind), name, f"be {must}", repr(value))
        dim, expected = self.dataset.x.shape[1], self.network.input_dim
        require(dim == expected, "dataset", f"have inputs of dimension {expected}", dim)
        units = sum(units for units, _ in zip(self.network.units, self.network.slopes, strict=True))
        require_memory(8 * len(self.dataset) * (units + 1), "network")
        if isinstance(self.potential, Layerwise):
            object.__setattr__(self, "potential", self.potential.along(self.network))
        require_mirror(self.potential, self.network.size)

    @cached_property
    def symmetries(self) -> Symmetries:
        """The hidden units whose rescaling leaves the network function alone."""
        return find(self.network).to(self.dataset.x)

    @property
    def pairs(self) -> int:
        """The number of kinks, pairs of a sample and a unit whose slope changes at zero."""
        layers = zip(self.network.units, self.network.slopes, strict=True)
        return len(self.dataset) * sum(units for units, (off, on) in layers if off != on)

    def margins(self, theta: Tensor) -> Tensor:
        """q_i = y_i f(θ, x_i): (…, n) to (…, K)."""
        parts = [y * self.network.output(theta, x) for x, y in self._chunks(theta)]
        return torch.cat(parts, -1)

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
        return self.loss_and_field(theta)[1]

    def loss_and_field(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """ℓ, (…), and G = ∂ℓ/∂θ on the off side at a kink, (…, n): one pass up and one down.

        Samples are taken chunk after chunk, each with its ℓ_c and G_c, of which G is the average
        by softmax(−ℓ_c): memory grows neither with their number nor as K × n.
        """
        losses, fields = [], []
        with torch.enable_grad():
            theta = theta.detach().requires_grad_(True)
            for x, y in self._chunks(theta):
                loss = -torch.logsumexp(-y * self.network.output(theta, x), dim=-1)
                fields.append(torch.autograd.grad(loss.sum(), theta)[0])
                losses.append(loss.detach())
        loss = torch.stack(losses)
        share = torch.softmax(-loss, 0)[..., None]
        return -torch.logsumexp(-loss, 0), (share * torch.stack(fields)).sum(0)

    def _chunks(self, theta: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The samples, as many at once as `AT_ONCE` allows for all of ``theta`` (…, n)."""
        evaluated = math.prod(theta.shape[:-1]) * max(1, sum(self.network.units))
        most = AT_ONCE if theta.device.type == "cpu" else ON_ACCELERATOR * AT_ONCE
        rows = max(1, most // max(1, evaluated))
        return zip(self.dataset.x.split(rows), self.dataset.y.split(rows), strict=True)

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
