"""Verifies that a network is what the theory is about, at random parameters and inputs."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mirrorode.problem.errors import InputError, require
from mirrorode.problem.homogeneous import HomogeneousNetwork, Pattern

SAMPLES = 6
STARTS, ATTEMPTS = 3, 30
SCALES = (2.0, 0.125)
TOLERANCE = 1e-8


def sample(dim: int) -> Tensor:
    """Random inputs, (6, dim)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SAMPLES, dim, generator=generator, dtype=torch.float64)


def verified_degree(
    network: HomogeneousNetwork,
    x: Tensor,
    plain: Callable[[Tensor, Tensor], Tensor],
    suspects: tuple[str, ...],
) -> int:
    """The degree L of homogeneity.

    Args:
        network: anything but its degree is used.
        x: inputs, (K, d).
        plain: the module itself, (n,) and (K, d) to (K,).
        suspects: names of functions to look at if it fails.

    Raises:
        InputError: by how much it fails.
    """
    blame = f": look at {', '.join(suspects)}" if suspects else ""
    _alike(network, plain, network.initial(0), x, blame)
    starts = _alive(network, x)
    theta = starts[0]
    _alike(network, plain, theta, x, blame)
    degree = _homogeneous(network, starts, x)
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


def _alike(
    network: HomogeneousNetwork,
    plain: Callable[[Tensor, Tensor], Tensor],
    theta: Tensor,
    x: Tensor,
    blame: str,
) -> None:
    """Require the same outputs from the module for a batch, and from what is followed."""
    expected = plain(theta, x)
    finite = int(expected.isfinite().sum())
    require(finite == len(x), "module", "give finite outputs", f"finite for {finite} of {len(x)}")
    off = _distance(network.output(theta, x), expected)
    if not off <= TOLERANCE:
        raise InputError(
            "`module` must treat every sample alike, by functions that are seen, but its outputs "
            f"for a batch differ from those followed sample by sample by {_percent(off)}{blame}"
        )


def _alive(network: HomogeneousNetwork, x: Tensor) -> list[Tensor]:
    """Starts where not all outputs are zero: a narrow deep network is often dead."""
    found: list[Tensor] = []
    for seed in range(ATTEMPTS):
        theta = network.initial(seed)
        size = float(network.output(theta, x).norm())
        found += [theta] if size > 0 else []
        if len(found) == STARTS:
            return found
    must = "have an output that depends on its trainable parameters"
    require(bool(found), "module", must, f"zero at {ATTEMPTS} random ones")
    return found


def _homogeneous(network: HomogeneousNetwork, starts: list[Tensor], x: Tensor) -> int:
    """The degree, from f(2θ) / f(θ)."""
    degree = 0
    for theta in starts:
        value = network.output(theta, x)
        for scale in SCALES:
            scaled = network.output(scale * theta, x)
            growth = float(scaled.norm() / value.norm()) or 1.0
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
    line = theta + 2 * torch.from_numpy(times)[:, None] * network.initial(ATTEMPTS)
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
