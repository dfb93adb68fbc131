"""Figure 5: representations by hyperbolic entropies of three λ.

Neurons |a_j| w_j of a two-layer student: after the time that the paper's 10,000 epochs take, and at
log(1/𝓛) = 1e9, where the Q-margin has become that of the horizon for every λ.
"""

from __future__ import annotations

from dataclasses import dataclass

from mirrorode.experiment.lambdas import Representations
from mirrorode.experiment.paper import HYPERBOLIC

RUN_TIME = "1 min"


@dataclass(frozen=True)
class Fig5(Representations):
    """What can be changed."""

    two = tuple(HYPERBOLIC)


SCENARIO = Fig5
