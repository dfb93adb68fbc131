"""The experiments of the paper that several scenarios are about (Section 5 and Appendix J)."""

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
HYPERBOLIC: dict[str, SeparablePotential] = {
    "hyperbolic-1": HyperbolicEntropy(lam=1.0),
    "hyperbolic": POTENTIALS["hyperbolic"],
    "hyperbolic-0.01": HyperbolicEntropy(lam=0.01),
}
"""The hyperbolic entropies whose λ it varies."""
HOMOGENEOUS: dict[str, SeparablePotential] = {
    "p3-10": SmoothedHomogeneous(p=3, lam=10.0),
    "p3": POTENTIALS["p3"],
    "p3-0.1": SmoothedHomogeneous(p=3, lam=0.1),
}
"""The smoothed homogeneous potentials whose λ it varies."""
ALL = POTENTIALS | HYPERBOLIC | HOMOGENEOUS

EPOCHS = 10_000
"""T of its studies of λ, which do not rescale time."""
EPOCH = {("hyperbolic", 2): 0.1, ("p3", 2): 10.0, ("hyperbolic", 3): 0.01, ("p3", 3): 10.0}
"""The time t that one of its epochs takes, by the kind of potential and the number of layers.

It gives neither the output scale nor, but for Table 7, the step size η of these runs: η = 0.01
there; elsewhere a power of ten with which the margins after T epochs, over those at a loss of
1e-50, come nearest to its own (0.28 to 0.47 in Table 3, 0.46 to 0.79 in Table 5).
"""
PUBLISHED = {
    2: {
        "hyperbolic": (3.31e-5, 2.76e-4, 4.55e-4),
        "euclidean": (1.83e-6, 2.94e-4, 1.34e-3),
        "p3": (1.19e-6, 2.91e-4, 1.76e-3),
    },
    3: {
        "hyperbolic": (4.01e-8, 6.21e-5, 1.03e-4),
        "euclidean": (1.13e-9, 1.10e-4, 1.73e-3),
        "p3": (2.39e-10, 9.36e-5, 3.42e-3),
    },
}
"""L_1, L_2 and L_3 margins of Tables 2 and 6, by the number of layers.

Output scale and teacher are not stated, so that only ratios compare.
"""
OWN = {"hyperbolic": 1, "euclidean": 2, "p3": 3}
"""The k of the L_k-margin that each kind of potential maximises."""


def kind(name: str) -> str:
    """The kind of the potential called ``name``: what comes before its λ."""
    return name.split("-")[0]


def lam(name: str) -> float:
    """λ of the potential called ``name``."""
    potential = ALL[name]
    assert isinstance(potential, HyperbolicEntropy | SmoothedHomogeneous)
    return potential.lam


def epochs(name: str, layers: int, count: float = EPOCHS) -> float:
    """The log of the time that ``count`` epochs of the paper take."""
    return math.log(EPOCH[kind(name), layers] * count)
