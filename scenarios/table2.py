"""Table 2: L_k-margins of two-layer students, six seeds, to 𝓛 = 1e-50 as in the paper and on.

Appendix J.1: 100 ReLU neurons, 200 points on the unit circle, three teacher neurons; hyperbolic
entropy with λ = 0.1, gradient flow, and p = 3 with λ = 1. The paper trains by mirror descent with
rescaled steps down to a loss of 1e-50. Here the flow itself is integrated to there, log(1/𝓛) = 115,
and on to log(1/𝓛) = 1e9.
"""

from __future__ import annotations

from dataclasses import dataclass

from mirrorode.experiment.columns import Columns
from mirrorode.experiment.paper import POTENTIALS

RUN_TIME = "9 min"


@dataclass(frozen=True)
class Table2(Columns):
    """What can be changed."""

    two = tuple(POTENTIALS)


SCENARIO = Table2
