"""One step of the Dormand–Prince pair 5(4) in loss time, smooth: on the pattern at its start.

J. R. Dormand and P. J. Prince, *A family of embedded Runge–Kutta formulae*, 1980; dense output by
L. F. Shampine, 1986; both as in SciPy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.integrate import RK45
from torch import Tensor

from mirrorode.flow import field
from mirrorode.flow.field import Field
from mirrorode.flow.state import Run
from mirrorode.flow.step import Mode

STRICT = 10.0  # the early phase enlarges errors, and a smooth step gains its order from it cheaply


@dataclass(frozen=True)
class Smooth:
    """One Dormand–Prince step on one mode.

    Attributes:
        first, last: the flow at its start and end.
        slopes: (7, n); speeds: (7,), the slope of the dissipation.
        error: of the embedded formula, in units of the error scale.
        stiffness: h times the largest eigenvalue seen; stable up to 3.3 (Hairer and Wanner, IV.2).
    """

    first: Field
    last: Field
    h: float
    slopes: Tensor
    speeds: np.ndarray
    error: float
    stiffness: float

    def dual(self, shares: np.ndarray) -> Tensor:
        """Dense output of order four: (m,) to (m, n)."""
        weights = self.slopes.new_tensor(self.h * _powers(shares) @ RK45.P.T)
        return self.first.dual + weights @ self.slopes

    def dissipated(self, shares: np.ndarray) -> np.ndarray:
        """∫‖G‖²_D dσ up to the shares (m,)."""
        return self.h * _powers(shares) @ RK45.P.T @ self.speeds


def _powers(shares: np.ndarray) -> np.ndarray:
    return shares[:, None] ** np.arange(1, RK45.P.shape[1] + 1)


def take(run: Run, mode: Mode, first: Field, h: float, scale: Tensor) -> Smooth:
    """One step of size h from ``first`` on its mode."""
    slopes = first.dual.new_zeros(7, len(first.dual))
    slopes[0] = first.direction
    speeds = [first.speed]
    at = before = first
    for stage in range(1, 7):
        row = RK45.A[stage, :stage] if stage < 6 else RK45.B
        dual = first.dual + h * slopes.new_tensor(row) @ slopes[:stage]
        before, at = at, field.evaluate(run.flow, dual, mode)
        slopes[stage] = at.direction
        speeds.append(at.speed)
    run.stats.half_passes += 12
    error = h * slopes.new_tensor(RK45.E) @ slopes / scale
    size = STRICT * float(error.square().mean().sqrt())
    # The energy is measured as the dual is.
    energy = np.array(speeds)
    lost = abs(h * float(RK45.E @ energy)) / (run.rtol * max(1.0, abs(at.loss - first.loss)))
    apart = float((at.dual - before.dual).norm().clamp(min=1e-300))
    stiffness = h * float((slopes[6] - slopes[5]).norm()) / apart
    worst = max(size, lost) if math.isfinite(lost) else lost
    return Smooth(first, at, h, slopes, energy, worst, stiffness)
