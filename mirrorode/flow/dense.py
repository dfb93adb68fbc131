"""Dense output: the state, log(1/𝓛) and log t anywhere inside one accepted step.

The step runs over s in [0, 1]. Its dual is the collocation polynomial; dt = e^{E(s)} ds with

    loss time      E = ℓ(s) + log h,                ℓ(s) the cubic through start and stages,
    log ℓ time     E = ℓ(s) + w(s) + log h,         ℓ(s) = ℓ₀ e^{hs} exactly, w = log ℓ − log‖G‖²_D.

E grows by millions inside a late step, so that only its last 45 units are integrated, in the log
domain: a trapezoid of the logarithm was wrong by 3 at ℓ = 1e4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.polynomial import polynomial as poly
from scipy.optimize import brentq
from torch import Tensor

from mirrorode.flow import radau

DISSIPATION = 10.0  # energy lost in a step, in units of rtol, that rejects it
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_PANELS = np.array([1.0, 0.5, 0.25, 0.12, 0.05, 0.0])
_REACH = 45.0  # e⁻⁴⁵ of the last unit is below round-off


@dataclass(frozen=True)
class DenseStep:
    """One accepted step.

    Attributes:
        duals: (4, n), the dual at the start and at the three stages.
        h: step size in the clock.
        log_time: log t at the start.
        loss: log(1/𝓛) at the start and the stages, (4,).
        log_rate: what E adds to ℓ + log h at the four points; zero in loss time, w in log ℓ time.
        prescribed: True in log ℓ time.
        dissipated: ∫‖dθ/dt‖²_A dt over the step, as the change of log(1/𝓛) that it implies.
    """

    duals: Tensor
    h: float
    log_time: float
    loss: np.ndarray
    log_rate: np.ndarray
    prescribed: bool
    dissipated: float = math.nan

    def dual(self, s: float) -> Tensor:
        """The dual (n,) at s."""
        return radau.interpolate(self.duals, s)

    def log_inverse_loss(self, s: float | np.ndarray) -> np.ndarray:
        """log(1/𝓛) at s."""
        if self.prescribed:
            return self.loss[0] * np.exp(self.h * np.asarray(s))
        return poly.polyval(np.asarray(s), self.loss @ radau.STATE_BASIS)

    def energy_lost(self) -> float:
        """By how much the step misses the dissipation identity.

        Relative to log(1/𝓛) where that is prescribed, to what it gained elsewhere; to 1 at least.
        """
        change = float(self.log_inverse_loss(1.0)) - float(self.loss[0])
        size = float(self.loss[0]) if self.prescribed else abs(change)
        return abs(self.dissipated - change) / max(1.0, size)

    def log_time_error(self) -> float:
        """Estimate of the error of log t at the end that this step has made.

        Leaving out the start makes the interpolant of E quadratic and the time one order worse,
        h⁴ against h⁵; the error kept is the 5/4-th power of the difference.
        """
        through_nodes = radau.SLOPE_BASIS.T @ np.stack([self.loss[1:], self.log_rate[1:]], 1)
        start = through_nodes[0]
        loss = self.loss if self.prescribed else np.concatenate([start[:1], self.loss[1:]])
        rate = np.concatenate([start[1:], self.log_rate[1:]])
        lower = replace(self, loss=loss, log_rate=rate)
        return abs(lower.log_time_at(1.0) - self.log_time_at(1.0)) ** 1.25

    def log_time_at(self, s: float) -> float:
        """log t at s."""
        return float(self.log_times(np.array(s)))

    def log_times(self, s: np.ndarray) -> np.ndarray:
        """log t at each s (…)."""
        s = np.maximum(s, 0.0)[..., None]
        low = np.zeros_like(s)
        if self.prescribed:
            reached = self.log_inverse_loss(s) - _REACH
            low = np.log(np.maximum(reached / self.loss[0], 1.0)) / self.h
        edges = s - (s - low) * _PANELS
        width = np.diff(edges)[..., None] / 2
        points = edges[..., :-1, None] + width * (1 + _POINTS)
        rate = poly.polyval(points, self.log_rate @ radau.STATE_BASIS)
        exponent = self.log_inverse_loss(points) + rate
        top = exponent.max((-2, -1), keepdims=True)
        # No time has passed at s = 0, and a step that left the numbers says so by NaN.
        with np.errstate(divide="ignore", invalid="ignore"):
            passed = np.log((np.exp(exponent - top) * width * _WEIGHTS).sum((-2, -1)))
            return np.logaddexp(self.log_time, passed + top[..., 0, 0] + np.log(self.h))

    def locate(self, target: float, *, by_time: bool) -> float:
        """The s at which log t, or log(1/𝓛), equals ``target``, which the step must contain."""

        def gap(s: float) -> float:
            value = self.log_time_at(s) if by_time else float(self.log_inverse_loss(s))
            return max(value, -1e300) - target

        if gap(0.0) >= 0:
            return 0.0
        return 1.0 if gap(1.0) <= 0 else float(brentq(gap, 0.0, 1.0, xtol=1e-14, rtol=1e-14))
