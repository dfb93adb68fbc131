"""Figure 8: how large the input weights of three-layer students are.

At a loss of 1e-50, where the paper stops, and at log(1/𝓛) = 1e9.
"""

from __future__ import annotations

from dataclasses import dataclass

from mirrorode.experiment.layers import Magnitudes

RUN_TIME = "4 min"


@dataclass(frozen=True)
class Fig8(Magnitudes):
    """What can be changed."""

    layer = 1


SCENARIO = Fig8
