"""One local step of some neurons: Dormand–Prince 5(4) with its dense output.

J. R. Dormand and P. J. Prince, *A family of embedded Runge–Kutta formulae*, 1980; dense output by
L. F. Shampine, 1986; both as in SciPy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.integrate import RK45
from torch import Tensor

from mirrorode.flow.neurons import Drive, Slides, slope


@dataclass(frozen=True)
class Piece:
    """One local step of A neurons: start, length, state and its dense output."""

    rows: Tensor
    s: Tensor
    delta: Tensor
    state: Tensor
    dense: Tensor  # (A, d + 2, 4)
    force: Tensor
    on: Tensor
    slides: Tensor
    sliding: Slides

    def at(self, share: Tensor) -> Tensor:
        """The state at shares (…, A) of the piece: (…, A, d + 2)."""
        value = torch.zeros_like(self.state).expand(*share.shape, -1)
        for m in range(3, -1, -1):
            value = (value + self.dense[..., m]) * share[..., None]
        return self.state + self.delta[:, None] * value

    def of(self, which: Tensor, share: Tensor) -> Tensor:
        """The state of neurons ``which`` (C,) at shares (C,): (C, d + 2)."""
        value = torch.zeros_like(self.state[which])
        for m in range(3, -1, -1):
            value = (value + self.dense[which, :, m]) * share[:, None]
        return self.state[which] + self.delta[which, None] * value


def advance(
    drive: Drive, rows: Tensor, s: Tensor, delta: Tensor, state: Tensor, force: Tensor,
    on: Tensor, slides: Tensor, tolerance: float,
) -> tuple[Piece, Tensor]:  # fmt: skip
    """One Dormand–Prince step, and its error relative to the tolerance (A,)."""
    sliding = Slides.of(slides, drive.surfaces)
    slopes = state.new_empty(7, *state.shape)
    slopes[0] = slope(drive, force, sliding, s, state)
    step = delta[:, None]
    for stage in range(1, 6):
        weight = state.new_tensor(RK45.A[stage, :stage])
        inner = state + step * torch.tensordot(weight, slopes[:stage], 1)
        slopes[stage] = slope(drive, force, sliding, s + float(RK45.C[stage]) * delta, inner)
    end = state + step * torch.tensordot(state.new_tensor(RK45.B), slopes[:6], 1)
    slopes[6] = slope(drive, force, sliding, s + delta, end)
    error = (delta[:, None] * torch.tensordot(state.new_tensor(RK45.E), slopes, 1))[:, :-1]
    size = torch.maximum(state[:, :-1].abs(), end[:, :-1].abs()).amax(1)
    error = error.abs().amax(1) / (tolerance * size).clamp(min=1e-300)
    error = torch.nan_to_num(error, nan=1e9, posinf=1e9)
    dense = torch.einsum("kam,kp->amp", slopes, state.new_tensor(RK45.P))
    return Piece(rows, s, delta, state, dense, force, on, slides, sliding), error
