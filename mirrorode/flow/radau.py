"""Coefficients of the three-stage Radau IIA method: order 5, stiffly accurate, L-stable.

E. Hairer and G. Wanner, *Solving Ordinary Differential Equations II*, sections IV.5 and IV.8.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.polynomial import polynomial as poly
from torch import Tensor

STAGES = 3
NODES = np.array([(4 - 6**0.5) / 10, (4 + 6**0.5) / 10, 1.0])
ERROR_WEIGHT = 0.2748888295956774
"""γ₀ = 1/u₁, the inverse real eigenvalue of A⁻¹, which scales the embedded error estimate."""


def _lagrange(nodes: np.ndarray) -> np.ndarray:
    """Row k: ascending monomial coefficients of the basis polynomial that is 1 at node k."""
    rows = []
    for k, node in enumerate(nodes):
        others = np.delete(nodes, k)
        rows.append(poly.polyfromroots(others) / np.prod(node - others))
    return np.array(rows)


SLOPE_BASIS = _lagrange(NODES)
"""Basis of the slope polynomial, through the three nodes."""
SLOPE_INTEGRAL = np.array([poly.polyint(row) for row in SLOPE_BASIS])
"""Antiderivatives of `SLOPE_BASIS` that vanish at 0."""
STATE_BASIS = _lagrange(np.concatenate([[0.0], NODES]))
"""Basis of the collocation polynomial, through the start and the three stages."""
BUTCHER = np.array([poly.polyval(node, SLOPE_INTEGRAL.T) for node in NODES])


def evaluate(basis: np.ndarray, at: Tensor) -> Tensor:
    """The polynomials of ``basis`` at the points ``at`` (…): (…, polynomials)."""
    coefficients = torch.as_tensor(basis, dtype=at.dtype, device=at.device)
    powers = at[..., None] ** torch.arange(coefficients.shape[1], device=at.device)
    return powers @ coefficients.T


def interpolate(values: Tensor, at: float) -> Tensor:
    """The collocation polynomial through ``values`` (4, …), start and stages, at ``at``."""
    basis = torch.as_tensor(poly.polyval(at, STATE_BASIS.T), dtype=values.dtype)
    return torch.tensordot(basis.to(values.device), values, dims=1)
