"""Potentials as users would write them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import mirrorode as mo


class Quartic(mo.SeparablePotential):
    """r(t) = t⁴/4 + t²/2."""

    def value(self, theta):
        return theta**4 / 4 + theta**2 / 2


class OwnCosh(mo.SeparablePotential):
    """r(t) = cosh t."""

    def value(self, theta):
        return torch.cosh(theta)


class LogCosh(mo.SeparablePotential):
    """r(t) = t²/2 + log cosh t, written so that it is a number at any size."""

    def value(self, theta):
        return theta**2 / 2 + torch.nn.functional.softplus(2 * theta) - theta


class OwnPower(mo.SeparablePotential):
    """p = 3 with λ = 1, from its value alone."""

    def value(self, theta):
        return theta.abs() ** 3 / 3 + theta**2 / 2


@dataclass(frozen=True, eq=False)
class PerWeight(mo.SeparablePotential):
    """The hyperbolic entropy with a λ for each weight, (n,)."""

    lam: Tensor

    def value(self, theta):
        root = self.lam.sqrt()
        return theta * torch.asinh(theta / root) - torch.hypot(theta, root)


@dataclass(frozen=True)
class From(mo.SeparablePotential):
    """Of any function, for what must be refused."""

    function: object

    def value(self, theta):
        return self.function(theta)  # type: ignore[operator]
