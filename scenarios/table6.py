"""Table 6: L_k-margins of three-layer students, six seeds, to 𝓛 = 1e-50 as in the paper and on.

Appendix J.2: the data of the two-layer students; a network of widths (2, 100, 100, 1).
"""

from __future__ import annotations

from dataclasses import dataclass

from mirrorode.experiment.columns import Columns
from mirrorode.experiment.paper import POTENTIALS

RUN_TIME = "20 min"


@dataclass(frozen=True)
class Table6(Columns):
    """What can be changed."""

    three = tuple(POTENTIALS)


SCENARIO = Table6
