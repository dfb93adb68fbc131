"""When a statement that is yet to come will hold, if only the length of θ changes until then."""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy.optimize import brentq
from torch import Tensor

from mirrorode.flow.mirror_flow import MirrorFlow

LARGEST = 1e60  # multiple of θ that is tried


def loss_at_scale(
    flow: MirrorFlow, theta: Tensor, loss: float, condition: Callable[[Tensor], float]
) -> float:
    """log(1/𝓛) at which ``condition`` of c·θ turns positive, c ≥ 1, as ℓ grows like c^L.

    The direction of θ (n,) is taken as final, which late in training it nearly is; infinite if
    the condition stays negative up to 1e60 times θ.
    """

    def at(log_scale: float) -> float:
        return condition(math.exp(log_scale) * theta)

    if at(0.0) > 0:
        return loss
    high = 1.0
    while at(high) <= 0:
        high *= 2
        if high > math.log(LARGEST):
            return math.inf
    found = float(brentq(at, high / 2 if high > 1 else 0.0, high, rtol=1e-6))
    power = flow.network.degree * found + math.log(max(loss, 1e-300))
    return math.exp(power) if power < 700 else math.inf
