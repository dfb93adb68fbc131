"""One local step of some neurons: Dormand–Prince 5(4) with its dense output.

J. R. Dormand and P. J. Prince, *A family of embedded Runge–Kutta formulae*, 1980; dense output by
L. F. Shampine, 1986; both as in SciPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from scipy.integrate import RK45
from torch import Tensor

from mirrorode.flow.neurons import Drive, Slides, slope


@dataclass(frozen=True)
class Curve:
    """The dense output of local steps: where each of A rows is at a share of its own step.

    Attributes:
        start: (A, D); coefficients: of the powers 1 to 4 of the share, (4, A, D).
    """

    start: Tensor
    coefficients: Tensor

    def at(self, share: Tensor) -> Tensor:
        """The rows at shares (…, A): (…, A, D)."""
        first, second, third, value = self.coefficients.unbind(0)
        share = share[..., None]
        for coefficient in (third, second, first, self.start):
            value = torch.addcmul(coefficient, value, share)
        return value

    def of(self, rows: Tensor, columns: slice) -> Curve:
        """That of some rows and columns."""
        return Curve(self.start[rows, columns], self.coefficients[:, rows, columns])


@dataclass(frozen=True)
class Piece:
    """One local step of A neurons: start, length, and the states (A, d + 2) along it.

    ``rows`` are their numbers in the drive; those in ``sliding`` count within the piece.
    """

    rows: Tensor
    s: Tensor
    delta: Tensor
    curve: Curve
    force: Tensor
    on: Tensor
    slides: Tensor
    sliding: Slides


@dataclass(frozen=True)
class _Tableau:
    """The coefficients of the method as tensors, made once for a device."""

    inner: tuple[Tensor, ...]
    end: Tensor
    error: Tensor
    dense: Tensor

    @classmethod
    @cache
    def on(cls, dtype: torch.dtype, device: torch.device) -> _Tableau:
        a, *others = (
            torch.as_tensor(it, dtype=dtype, device=device)
            for it in (RK45.A, RK45.B, RK45.E, RK45.P.T.copy())
        )
        return cls(tuple(a[stage, :stage] for stage in range(1, 6)), *others)


def _combined(weights: Tensor, slopes: Tensor) -> Tensor:
    """Σ_k w_k m_k of slopes m (k, A, D) for weights (k,): (A, D)."""
    return (weights @ slopes.flatten(1)).unflatten(-1, slopes.shape[1:])


def advance(
    drive: Drive, rows: Tensor, s: Tensor, delta: Tensor, state: Tensor, force: Tensor,
    on: Tensor, slides: Tensor, tolerance: Tensor,
) -> tuple[Piece, Tensor]:  # fmt: skip
    """One Dormand–Prince step, and its error relative to the tolerance (A,)."""
    sliding = drive.slides(rows, slides)
    tableau = _Tableau.on(state.dtype, state.device)
    step = (drive.h[drive.owner(rows)] * delta)[:, None]
    slopes = state.new_empty(7, *state.shape)
    slopes[0] = slope(drive, rows, force, sliding, s, state)
    for stage, weights in enumerate(tableau.inner, start=1):
        inner = torch.addcmul(state, step, _combined(weights, slopes[:stage]))
        at = s + float(RK45.C[stage]) * delta
        slopes[stage] = slope(drive, rows, force, sliding, at, inner)
    end = torch.addcmul(state, step, _combined(tableau.end, slopes[:6]))
    slopes[6] = slope(drive, rows, force, sliding, s + delta, end)
    error = (step * _combined(tableau.error, slopes))[:, :-1]
    size = torch.maximum(state[:, :-1].abs(), end[:, :-1].abs()).amax(1)
    error = error.abs().amax(1) / (tolerance * size).clamp(min=1e-300)
    error = torch.nan_to_num(error, nan=1e9, posinf=1e9)
    powers = torch.stack([_combined(weights, slopes) for weights in tableau.dense])
    return Piece(rows, s, delta, Curve(state, step * powers), force, on, slides, sliding), error
