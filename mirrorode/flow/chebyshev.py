"""The Runge–Kutta–Chebyshev method: explicit, of order two, stable on a long negative interval.

With s stages a step is stable up to h ρ ≈ 0.65 s², ρ the largest of the eigenvalues, where a pair
of fixed stages gets as far as 0.5 s. The flow is made for it: its Jacobian ∂²ℓ D is similar to a
symmetric matrix, and what is stiff in it, the relaxation of the softmax weights, is negative.

B. P. Sommeijer, L. F. Shampine and J. G. Verwer, *RKC: an explicit solver for parabolic PDEs*,
1997.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

DAMPING = 2 / 13
LARGEST = 500  # stages: round-off grows with their square


@dataclass(frozen=True)
class Coefficients:
    """Y_j = (1 − μ_j − ν_j) Y_0 + μ_j Y_{j−1} + ν_j Y_{j−2} + h (κ_j F_{j−1} + γ_j F_0), (s + 1,).

    The first entry is not used, and of the second only κ.
    """

    mu: np.ndarray
    nu: np.ndarray
    kappa: np.ndarray
    gamma: np.ndarray


def stages(radius: float) -> int:
    """How many stages a step needs whose size times the spectral radius is ``radius``."""
    return 1 + max(1, math.ceil(math.sqrt(1.54 * radius + 1)))


def longest(rho: float) -> float:
    """The longest step that the most stages allow for a spectral radius."""
    return (LARGEST - 2) ** 2 / (1.54 * max(rho, 1e-300))


@cache
def coefficients(s: int) -> Coefficients:
    """Those of s ≥ 2 stages."""
    w = 1 + DAMPING / s**2
    value, slope, curve = _chebyshev(s, w)
    ahead = slope[s] / curve[s]
    b = np.empty(s + 1)
    b[2:] = curve[2:] / slope[2:] ** 2
    b[:2] = b[2]
    mu, nu, kappa, gamma = np.zeros((4, s + 1))
    kappa[1] = b[1] * ahead
    mu[2:] = 2 * w * b[2:] / b[1:-1]
    nu[2:] = -b[2:] / b[:-2]
    kappa[2:] = 2 * ahead * b[2:] / b[1:-1]
    gamma[2:] = -(1 - b * value)[1:-1] * kappa[2:]
    return Coefficients(mu, nu, kappa, gamma)


def _chebyshev(s: int, w: float) -> np.ndarray:
    """T_j(w) and its first two derivatives, j = 0 … s, (3, s + 1)."""
    found = np.zeros((3, s + 1))
    found[:, 0], found[:, 1] = (1, 0, 0), (w, 1, 0)
    for j in range(2, s + 1):
        value, slope, curve = 2 * w * found[:, j - 1] - found[:, j - 2]
        slope += 2 * found[0, j - 1]
        curve += 4 * found[1, j - 1]
        found[:, j] = value, slope, curve
    return found
