"""Verifies that a network is what the theory is about, at random parameters and inputs."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mirrorode.problem.errors import InputError
from mirrorode.problem.networks import HomogeneousNetwork, Pattern

SAMPLES = 6
STARTS = 3
SCALES = (2.0, 0.125)
TOLERANCE = 1e-8


def sample(dim: int) -> Tensor:
    """Random inputs, (6, dim)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SAMPLES, dim, generator=generator, dtype=torch.float64)


def verified_degree(
    network: HomogeneousNetwork, x: Tensor, plain: Tensor, suspects: tuple[str, ...]
) -> int:
    """The degree L of homogeneity.

    Args:
        network: anything but its degree is used.
        x: inputs, (K, d).
        plain: what the module itself gives for them at ``network.initial(0)``, (K,).
        suspects: names of functions to look at if it fails.

    Raises:
        InputError: by how much it fails.
    """
    blame = f": look at {', '.join(suspects)}" if suspects else ""
    theta = network.initial(0)
    off = _distance(network.output(theta, x), plain)
    if not off <= TOLERANCE:
        raise InputError(
            "`module` must treat every sample alike, by functions that are seen, but its outputs "
            f"for a batch differ from those followed sample by sample by {_percent(off)}{blame}"
        )
    degree = _homogeneous(network, x)
    for pattern in _patterns(network, theta, x):
        off = _not_polynomial(network, theta, x, pattern, degree)
        if not off <= TOLERANCE:
            raise InputError(
                f"`module` must be a polynomial of degree {degree} in its trainable parameters "
                f"on a fixed activation pattern, but differs from one by {_percent(off)}{blame}"
            )
        off = _euler(network, theta, x, pattern, degree)
        if not off <= TOLERANCE:
            raise InputError(
                "`module` must let gradients through to all that moves it, but ⟨θ, ∂f⟩ differs "
                f"from {degree} f by {_percent(off)}{blame}"
            )
    return degree


def _homogeneous(network: HomogeneousNetwork, x: Tensor) -> int:
    """The degree, from f(2θ) / f(θ)."""
    degree = 0
    for seed in range(STARTS):
        theta = network.initial(seed)
        value = network.output(theta, x)
        for scale in SCALES:
            scaled = network.output(scale * theta, x)
            growth = float(scaled.norm() / value.norm())
            if not (math.isfinite(growth) and growth > 0):
                raise InputError(
                    "`module` must have a finite output that depends on its trainable parameters, "
                    f"but f(θ) and f({scale:g}θ) have sizes {float(value.norm()):.3g} and "
                    f"{float(scaled.norm()):.3g}"
                )
            degree = degree or max(1, round(math.log(growth, scale)))
            off = _distance(scaled, scale**degree * value)
            if not off <= TOLERANCE:
                raise InputError(
                    f"`module` must be homogeneous in its trainable parameters, but f({scale:g}θ) "
                    f"differs from {scale:g}^{degree} f(θ) by {_percent(off)}{_biases(network)}"
                )
    return degree


def _biases(network: HomogeneousNetwork) -> str:
    names = [name for name in network.shapes if name.rsplit(".")[-1] == "bias"]
    return f" (it has biases: {', '.join(names)})" if names else ""


def _patterns(network: HomogeneousNetwork, theta: Tensor, x: Tensor) -> tuple[Pattern, Pattern]:
    """The true one, and a random one."""
    true = network.forward(theta, x).pattern
    generator = torch.Generator().manual_seed(1)
    random = [torch.rand(on.shape, generator=generator) > 0.5 for on in true]
    return true, random


def _not_polynomial(
    network: HomogeneousNetwork, theta: Tensor, x: Tensor, pattern: Pattern, degree: int
) -> float:
    """How far f is from a polynomial of the degree along a random line, relative to its size."""
    count = degree + 6
    times = np.cos(np.pi * (np.arange(count) + 0.5) / count)
    basis = torch.from_numpy(np.polynomial.chebyshev.chebvander(times, degree))
    line = theta + 2 * torch.from_numpy(times)[:, None] * network.initial(STARTS)
    values = network.forward(line, x, pattern).output
    fit = basis @ torch.linalg.lstsq(basis, values).solution
    return _distance(values, fit)


def _euler(
    network: HomogeneousNetwork, theta: Tensor, x: Tensor, pattern: Pattern, degree: int
) -> float:
    """How far ⟨θ, ∂f⟩ is from L f, relative to its size; a detached part is not in ∂f."""
    forward = network.forward(theta, x, pattern)
    gradient, _ = network.backward(forward)
    return _distance(gradient @ theta, degree * forward.output)


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-300))


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.3g} %"
