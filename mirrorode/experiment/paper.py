"""The experiments of the paper that several scenarios are about (Section 5 and Appendix J.1)."""

from __future__ import annotations

import math

from mirrorode.problem.potentials import (
    Euclidean,
    HyperbolicEntropy,
    SeparablePotential,
    SmoothedHomogeneous,
)

LOSS = 50 * math.log(10)
"""log(1/𝓛) where the paper stops: a loss of 1e-50."""
POTENTIALS: dict[str, SeparablePotential] = {
    "hyperbolic": HyperbolicEntropy(lam=0.1),
    "euclidean": Euclidean(),
    "p3": SmoothedHomogeneous(p=3, lam=1.0),
}
"""The three potentials of its figures, by the name of their runs."""
