"""Figure 13: input layers of three-layer students by p = 3 with three λ.

Input weights w_j of a three-layer student: after the time that the paper's 10,000 epochs take, and
at log(1/𝓛) = 1e9, where the Q-margin has become that of the horizon for every λ.
"""

from __future__ import annotations

from dataclasses import dataclass

from mirrorode.experiment.lambdas import Representations
from mirrorode.experiment.paper import HOMOGENEOUS

RUN_TIME = "3 min"


@dataclass(frozen=True)
class Fig13(Representations):
    """What can be changed."""

    three = tuple(HOMOGENEOUS)


SCENARIO = Fig13
