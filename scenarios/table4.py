"""Table 4: margins of two-layer students by p = 3 with three λ, six seeds.

After the time that the paper's 10,000 epochs take, at a loss of 1e-50, and at log(1/𝓛) = 1e9.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mirrorode.experiment.lambdas import LambdaTable
from mirrorode.experiment.paper import HOMOGENEOUS

RUN_TIME = "5 min"


@dataclass(frozen=True)
class Table4(LambdaTable):
    """What can be changed."""

    two = tuple(HOMOGENEOUS)
    published: ClassVar = {
        "p3-10": (2.24e-4, 1.21e-3),
        "p3": (2.32e-4, 1.43e-3),
        "p3-0.1": (2.34e-4, 1.43e-3),
    }


SCENARIO = Table4
