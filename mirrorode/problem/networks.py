"""The networks that the project knows from the inside: multilayer perceptrons and diagonal ones.

Any other network is a module (`modules`). For these two the passes are written out, so that the
integrators may use their structure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mirrorode.problem.errors import InputError, require, require_number
from mirrorode.problem.homogeneous import Forward, HomogeneousNetwork, Pattern

_SLOPES = {"relu": (0.0, 1.0), "leaky_relu": (0.01, 1.0), "linear": (1.0, 1.0)}


@dataclass(frozen=True)
class MLP(HomogeneousNetwork):
    """f(x) = c · W_L σ(W_{L−1} … σ(W_1 x)) without biases: homogeneous of degree L in θ.

    θ is the concatenation of W_1, …, W_L, each (fan-out, fan-in) in row-major order.

    Args:
        widths: (input, hidden …, 1).
        activation: "relu", "leaky_relu" (slope 0.01) or "linear".
        output_scale: c; one over the last hidden width (mean field) unless given, and 1 for a
            network without hidden layer.

    Raises:
        InputError: on fewer than two widths, an output that is not scalar, or an unknown name.
    """

    widths: Sequence[int]
    activation: str = "relu"
    output_scale: float | None = None

    def __post_init__(self) -> None:
        widths = tuple(self.widths)
        positive = all(isinstance(width, int) and width > 0 for width in widths)
        fine = len(widths) > 1 and positive and widths[-1] == 1
        require(fine, "widths", "be two or more positive integers that end in 1", widths)
        require(
            self.activation in _SLOPES,
            "activation",
            f"be one of {sorted(_SLOPES)}",
            self.activation,
        )
        if self.output_scale is None:
            scale = 1.0 / widths[-2] if len(widths) > 2 else 1.0
            object.__setattr__(self, "output_scale", scale)
        require_number(self.output_scale, "output_scale", "be positive", 0.0, strict=True)
        object.__setattr__(self, "widths", widths)

    @property
    def degree(self) -> int:
        """L, the number of layers, f(cθ, x) = c^L f(θ, x) for c > 0."""
        return len(self.widths) - 1

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The weight matrices by name, in the order of θ."""
        pairs = zip(self.widths[1:], self.widths[:-1], strict=True)
        return {f"W{layer}": shape for layer, shape in enumerate(pairs, start=1)}

    @property
    def input_dim(self) -> int:
        """The first of the widths."""
        return self.widths[0]

    @property
    def units(self) -> tuple[int, ...]:
        """The hidden widths."""
        return tuple(self.widths[1:-1])

    @property
    def slopes(self) -> tuple[tuple[float, float], ...]:
        """Those of the activation, for each hidden layer."""
        return (_SLOPES[self.activation],) * len(self.units)

    @property
    def fan_in(self) -> tuple[int, ...]:
        """The width below each hidden layer."""
        return tuple(self.widths[: len(self.units)])

    @property
    def jump(self) -> float:
        """Slope of the activation on its on side minus that on its off side."""
        off, on = _SLOPES[self.activation]
        return on - off

    def incoming(self, layer: int, unit: Tensor) -> Tensor:
        """Rows of the weight matrix below the layer, (F, fan-in)."""
        return self.rows_of(f"W{layer + 1}", unit)

    def forward(self, theta: Tensor, x: Tensor, pattern: Pattern | None = None) -> Forward:
        """One pass upwards on ``pattern`` (the true one if None): half an evaluation."""
        weights = list(self.unflatten(theta).values())
        pre, post = self._forward(weights, x, pattern)
        used = pattern if pattern is not None else [value > 0 for value in pre]
        output = float(self.output_scale or 1.0) * (post[-1] @ weights[-1].mT).squeeze(-1)
        return Forward(theta, x, output, pre, post, used)

    def backward(self, forward: Forward) -> tuple[Tensor, list[Tensor]]:
        """The way down: ∂f/∂θ (…, R, n), and the signals ∂f/∂(post-activation) of hidden layers."""
        top = forward.entering[-1]
        seed = top.new_full((*top.shape[:-1], 1), float(self.output_scale or 1.0))
        weights = list(self.unflatten(forward.theta).values())
        return self._backward(weights, forward.entering, forward.pattern, seed)

    def pull(self, forward: Forward, weight: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As in the base class, without a gradient for each row: a product of two matrices."""
        delta = float(self.output_scale or 1.0) * weight[..., None]
        weights = list(self.unflatten(forward.theta).values())
        parts, signals = [], []
        for layer in range(len(weights) - 1, -1, -1):
            parts.append((delta.mT @ forward.entering[layer]).flatten(-2))
            if layer > 0:
                signals.append(delta @ weights[layer])
                delta = self._gated(signals[-1], forward.pattern[layer - 1])
        return torch.cat(parts[::-1], dim=-1), signals[::-1]

    def normal_factors(
        self, theta: Tensor, x: Tensor, pattern: Pattern, layer: int, unit: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """The `normals` as δ ⊗ a, one pair (…, R, fan-out), (…, R, fan-in) a weight matrix.

        Only the matrices below hidden ``layer``; in the uppermost of them δ is a unit vector.
        """
        weights = list(self.unflatten(theta).values())[: layer + 1]
        _, post = self._forward(weights, x, pattern)
        delta = torch.nn.functional.one_hot(unit, self.widths[layer + 1]).to(theta)
        factors = [(delta.expand(*theta.shape[:-1], *delta.shape), post[layer])]
        for below in range(layer - 1, -1, -1):
            delta = self._gated(factors[-1][0] @ weights[below + 1], pattern[below])
            factors.append((delta, post[below]))
        return factors[::-1]

    def normals(
        self, theta: Tensor, x: Tensor, pattern: Pattern, layer: int, unit: Tensor
    ) -> Tensor:
        """Gradients (…, R, n) of the pre-activation of ``unit[r]`` in hidden ``layer`` at row r."""
        weights = list(self.unflatten(theta).values())
        _, post = self._forward(weights[: layer + 1], x, pattern)
        seed = torch.nn.functional.one_hot(unit, self.widths[layer + 1]).to(theta)
        seed = seed.expand(*theta.shape[:-1], *seed.shape)
        lower, _ = self._backward(weights[: layer + 1], post[: layer + 1], pattern[:layer], seed)
        rest = self.size - lower.shape[-1]
        return torch.nn.functional.pad(lower, (0, rest))

    def rates(self, theta: Tensor, velocity: Tensor, x: Tensor, pattern: Pattern) -> list[Tensor]:
        """Derivatives of all pre-activations along ``velocity`` (…, n) on the pattern."""
        weights = list(self.unflatten(theta).values())
        moving = list(self.unflatten(velocity).values())
        _, post = self._forward(weights, x, pattern)
        tangent, found = torch.zeros_like(post[0]), []
        for layer, on in enumerate(pattern):
            rate = post[layer] @ moving[layer].mT + tangent @ weights[layer].mT
            found.append(rate)
            tangent = self._gated(rate, on)
        return found

    def _gated(self, value: Tensor, on: Tensor) -> Tensor:
        """``value`` times the slope of the activation."""
        off_slope, on_slope = _SLOPES[self.activation]
        if (off_slope, on_slope) == (0.0, 1.0):
            return value * on
        # Not torch.where of two numbers: that is single precision, in which 0.01 is not 0.01.
        return value * (off_slope + (on_slope - off_slope) * on.to(value))

    def _forward(
        self, weights: list[Tensor], x: Tensor, pattern: Pattern | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Pre-activations of the hidden layers, and what enters each layer (x first)."""
        pre: list[Tensor] = []
        post = [x.expand(*weights[0].shape[:-2], *x.shape)]
        for layer, matrix in enumerate(weights[: len(self.widths) - 2]):
            pre.append(post[-1] @ matrix.mT)
            on = pre[-1] > 0 if pattern is None else pattern[layer]
            post.append(self._gated(pre[-1], on))
        return pre, post

    def _backward(
        self, weights: list[Tensor], post: list[Tensor], pattern: Pattern, seed: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Rows of the gradient of ⟨seed, top pre-activation⟩, and the signals below the top."""
        delta, parts, signals = seed, [], []
        for layer in range(len(weights) - 1, -1, -1):
            block = delta[..., :, None] * post[layer][..., None, :]
            parts.append(block.flatten(-2))
            if layer > 0:
                signals.append(delta @ weights[layer])
                delta = self._gated(signals[-1], pattern[layer - 1])
        return torch.cat(parts[::-1], dim=-1), signals[::-1]


@dataclass(frozen=True)
class DiagonalLinear(HomogeneousNetwork):
    """f(x) = Σ_k x_k Π_l u_{l,k}: linear in x, homogeneous of degree ``depth`` in θ, no kinks.

    θ is the concatenation of u_1, …, u_depth, each (dim,).

    Args:
        dim: of the inputs.
        depth: the number of factors.

    Raises:
        InputError: if one of them is not a positive integer.
    """

    dim: int
    depth: int = 2

    def __post_init__(self) -> None:
        for name in ("dim", "depth"):
            value = getattr(self, name)
            fine = isinstance(value, int) and not isinstance(value, bool) and value > 0
            require(fine, name, "be a positive integer", repr(value))

    @property
    def degree(self) -> int:
        """The depth."""
        return self.depth

    @property
    def input_dim(self) -> int:
        """The number of coordinates."""
        return self.dim

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """u1, u2, …, each (dim,)."""
        return {f"u{layer}": (self.dim,) for layer in range(1, self.depth + 1)}

    @property
    def units(self) -> tuple[int, ...]:
        """None: no kinks."""
        return ()

    @property
    def slopes(self) -> tuple[tuple[float, float], ...]:
        """None: no kinks."""
        return ()

    @property
    def fan_in(self) -> tuple[int, ...]:
        """None: no kinks."""
        return ()

    def incoming(self, layer: int, unit: Tensor) -> Tensor:
        """Raises InputError: no kinks."""
        raise InputError(f"`layer` must be a kink layer, but is {layer} and {self!r} has none")

    def forward(self, theta: Tensor, x: Tensor, pattern: Pattern | None = None) -> Forward:
        """One pass upwards; there is no pattern to be on."""
        product = theta.unflatten(-1, (self.depth, self.dim)).prod(-2)
        return Forward(theta, x, product @ x.mT, [], [], [])

    def backward(self, forward: Forward) -> tuple[Tensor, list[Tensor]]:
        """∂f/∂θ (…, R, n), by products without one factor: division would fail at zeros."""
        factors = forward.theta.unflatten(-1, (self.depth, self.dim))
        others = [
            torch.cat([factors[..., :layer, :], factors[..., layer + 1 :, :]], -2).prod(-2)
            for layer in range(self.depth)
        ]
        gradient = torch.stack(others, -2)[..., None, :, :] * forward.x[:, None, :]
        return gradient.flatten(-2), []

    def normals(
        self, theta: Tensor, x: Tensor, pattern: Pattern, layer: int, unit: Tensor
    ) -> Tensor:
        """Raises InputError: no kinks."""
        raise InputError(f"`layer` must be a kink layer, but is {layer} and {self!r} has none")

    def rates(self, theta: Tensor, velocity: Tensor, x: Tensor, pattern: Pattern) -> list[Tensor]:
        """None: no kinks."""
        return []
