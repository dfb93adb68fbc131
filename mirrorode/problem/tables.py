"""Positive functions of one variable, tabulated to round-off: what makes one's own potential fast.

Each octave of |x| is cut into quarters, and on each of these the logarithm of a function is its
value in the middle and a polynomial of degree 13 in x. A quarter is as wide as a ninth of its
distance from zero, so that powers of any degree, exponentials, and what has no singularity nearer
than zero are met to 18⁻¹³, below round-off. Which quarter an x is in, and where, is read off its
binary digits, exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import Tensor
from torch.nn.functional import embedding

Function = Callable[[Tensor], Tensor]

DEGREE = 13
OCTAVES = 1000  # on each side of 1: |x| from 1e-301 to 1e301
QUARTERS = 4
ROUGH = 3e-15  # of the last two coefficients, from which a polynomial is not trusted

_NODES = chebyshev.chebpts1(DEGREE + 1)
_FIT = np.linalg.inv(chebyshev.chebvander(_NODES, DEGREE))
_POWERS = np.zeros((DEGREE + 1, DEGREE + 1))
for _k, _row in enumerate(np.eye(DEGREE + 1)):
    _POWERS[_k, : _k + 1] = chebyshev.cheb2poly(_row[: _k + 1])


@dataclass(frozen=True)
class Table:
    """A function f(x) > 0 of x ≠ 0 of both signs, on quarters of octaves.

    Attributes:
        scale: f at a node of each quarter, (cells,).
        coefficients: of log(f/scale) in the powers of the place in a quarter, −1 to 1,
            (cells, DEGREE + 1).
        fine: which of them are to be trusted, (cells,).
    """

    scale: Tensor
    coefficients: Tensor
    fine: Tensor

    @classmethod
    def of(cls, function: Function) -> Table:
        """Tabulate ``function``, of which a NaN says that it has no value."""
        number = torch.arange(2 * OCTAVES * QUARTERS, dtype=torch.float64)
        octave = torch.exp2((number // QUARTERS) - OCTAVES)
        middle = 1 + (number % QUARTERS + 0.5) / QUARTERS
        x = octave[:, None] * (middle[:, None] + 0.5 / QUARTERS * torch.from_numpy(_NODES))
        values = torch.stack([function(x), function(-x)]).flatten(0, 1)
        scale = values[:, DEGREE // 2]
        spectrum = torch.log(values / scale[:, None]) @ torch.from_numpy(_FIT).T
        fine = (spectrum[:, -2:].abs().sum(1) <= ROUGH) & torch.isfinite(scale) & (scale > 0)
        return cls(scale, spectrum @ torch.from_numpy(_POWERS), fine)

    def to(self, device: torch.device) -> Table:
        """The same on a device."""
        return Table(*(part.to(device) for part in (self.scale, self.coefficients, self.fine)))

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The function at ``x``, and where that is known."""
        mantissa, exponent = torch.frexp(x.double().abs())
        eighths = 2 * QUARTERS * mantissa - QUARTERS
        quarter = eighths.floor()
        half = len(self.fine) // 2
        # In floating point: to clamp integers is ten times slower.
        cell = (QUARTERS * exponent + (quarter + QUARTERS * (OCTAVES - 1))).clamp(0, half - 1)
        cell = cell.nan_to_num(0.0)
        index = (cell + half * (x < 0)).long()
        place = (2 * (eighths - quarter) - 1)[..., None]
        powers = torch.cumprod(place.expand(*x.shape, DEGREE), -1)
        mine = embedding(index, self.coefficients)
        log = mine[..., 0] + torch.linalg.vecdot(mine[..., 1:], powers)
        known = self.fine.take(index) & (exponent > 1 - OCTAVES) & (exponent <= OCTAVES)
        known &= torch.isfinite(x)
        return (self.scale.take(index) * torch.exp(log)).to(x), known
