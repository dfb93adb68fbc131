"""Homogeneous networks, evaluated under a given activation pattern.

A ReLU network is smooth as long as its pattern, which unit is on for which sample, does not
change. Everything here therefore takes the pattern as an *argument*: the integrator may ask for
the network, its gradient and its pre-activations on the smooth extension of one pattern beyond
the kink, and sees a polynomial. Where no pattern is given the true one is used.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from mirrorode.problem.errors import SEEDS, require_integer, require_memory

Pattern = list[Tensor]
"""One boolean tensor (…, rows, units) a kink layer: which unit is on for which row."""


@dataclass(frozen=True)
class Forward:
    """A network on R rows (inputs with a pattern) at one or more parameter vectors.

    Attributes:
        theta: the parameters, (…, n).
        x: the inputs, (R, d).
        output: f, (…, R).
        preactivations: one (…, R, units) a kink layer.
        entering: what the incoming weights of each kink layer are multiplied with, one
            (…, R, fan-in) a layer; fan-in 0 where its units have no weights of their own. An
            `MLP` adds what enters the output layer.
        pattern: the pattern that was used.
    """

    theta: Tensor
    x: Tensor
    output: Tensor
    preactivations: list[Tensor]
    entering: list[Tensor]
    pattern: Pattern


class HomogeneousNetwork(ABC):
    """What the flow asks of a network: f(cθ, x) = c^L f(θ, x) for c > 0, piecewise polynomial.

    Every kink is a gate: a pre-activation u that goes on as s·u, the slope s being one number
    where the gate is on (u > 0) and another where it is off. Gates come in *kink layers*, with a
    number of units each. On a given pattern of gates the output is a polynomial of degree L.
    """

    @property
    @abstractmethod
    def degree(self) -> int:
        """L: f(cθ, x) = c^L f(θ, x) for c > 0."""

    @property
    @abstractmethod
    def input_dim(self) -> int:
        """d, the dimension of one input."""

    @property
    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The parameters by name, in the order of θ."""

    @property
    @abstractmethod
    def units(self) -> tuple[int, ...]:
        """The number of units of each kink layer."""

    @property
    @abstractmethod
    def slopes(self) -> tuple[tuple[float, float], ...]:
        """The slopes (off, on) of each kink layer."""

    @property
    @abstractmethod
    def fan_in(self) -> tuple[int, ...]:
        """Incoming weights of a unit of each kink layer where its pre-activation is w·z.

        Zero where units share weights or have none, as after a convolution: no unit there comes to
        rest at w = 0 on its own.
        """

    @abstractmethod
    def incoming(self, layer: int, unit: Tensor) -> Tensor:
        """Places in θ of the incoming weights of units (F,) of a kink layer: (F, fan-in)."""

    @abstractmethod
    def forward(self, theta: Tensor, x: Tensor, pattern: Pattern | None = None) -> Forward:
        """One pass upwards on ``pattern`` (the true one if None): half an evaluation.

        Args:
            theta: (…, n).
            x: (R, d).
            pattern: (R, units) or (…, R, units), one a kink layer.
        """

    @abstractmethod
    def backward(self, forward: Forward) -> tuple[Tensor, list[Tensor]]:
        """The way down: ∂f/∂θ (…, R, n), and the signals ∂f/∂(post-activation) of kink layers."""

    @abstractmethod
    def normals(
        self, theta: Tensor, x: Tensor, pattern: Pattern, layer: int, unit: Tensor
    ) -> Tensor:
        """Gradients (…, R, n) of the pre-activation of ``unit[r]`` in kink ``layer`` at row r."""

    @abstractmethod
    def rates(self, theta: Tensor, velocity: Tensor, x: Tensor, pattern: Pattern) -> list[Tensor]:
        """Derivatives of all pre-activations along ``velocity`` (…, n) on the pattern."""

    def pull(self, forward: Forward, weight: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Σ_r weight_r ∂f_r/∂θ, (…, n), and the signals times the weight (…, R) of their row."""
        gradient, signals = self.backward(forward)
        total = (weight[..., None, :] @ gradient)[..., 0, :]
        return total, [weight[..., None] * signal for signal in signals]

    @property
    def size(self) -> int:
        """n, the number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def initial(self, seed: int = 0) -> Tensor:
        """A random start (n,), float64: first and last layer N(0, 1), others N(0, 1/fan-in).

        The fan-in of a parameter is its number of entries over its first dimension.

        Raises:
            InputError: if ``seed`` is no integer from 0 to 2⁶³ − 1, or this machine's memory is
                too small for the parameters.
        """
        require_integer(seed, "seed", 0, SEEDS)
        require_memory(16 * self.size, "network")
        generator = torch.Generator().manual_seed(seed)
        parts, last = [], len(self.shapes) - 1
        for layer, shape in enumerate(self.shapes.values()):
            weights = torch.randn(shape, generator=generator, dtype=torch.float64)
            fan_in = math.prod(shape[1:])
            parts.append(weights if layer in (0, last) else weights / math.sqrt(fan_in))
        return torch.cat([part.reshape(-1) for part in parts])

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of ``theta`` (…, n) as the parameters (…, *shape) by name."""
        shapes = self.shapes
        parts = theta.split([math.prod(shape) for shape in shapes.values()], dim=-1)
        return {
            name: part.reshape(*theta.shape[:-1], *shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }

    def output(self, theta: Tensor, x: Tensor) -> Tensor:
        """f(θ, x) with the true pattern: (…, n) and (R, d) to (…, R)."""
        return self.forward(theta, x).output

    def rows_of(self, name: str, unit: Tensor) -> Tensor:
        """Places in θ of the rows ``unit`` (F,) of one parameter: (F, entries of a row)."""
        shapes = self.shapes
        before = list(shapes)[: list(shapes).index(name)]
        start = sum(math.prod(shapes[other]) for other in before)
        count = math.prod(shapes[name][1:])
        return start + unit[:, None] * count + torch.arange(count, device=unit.device)
