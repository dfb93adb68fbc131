"""What must hold of a function before it can be a mirror potential, looked at in milliseconds.

R must be strictly convex and differentiable, with a gradient that is onto (Assumption 2.3), or
there is no mirror flow; and what a user writes beside the value must belong to it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mirrorode.problem import numeric
from mirrorode.problem.errors import InputError, require
from mirrorode.problem.layerwise import Layerwise
from mirrorode.problem.mirror import Potential
from mirrorode.problem.potentials import SeparablePotential

DECADES = 100  # up to 1e100, the square of which is a number
JUMP = 1e-2  # of the rise of r' from −1 to 1, between ∓1e-300
GAIN = 1e-2  # of the whole rise of r' that the later half of the decades must add
AGREES = 1e-6  # relative, of a method with what follows from the value


def require_mirror(potential: Potential, count: int) -> None:
    """Require that ``potential`` is one, on ``count`` coordinates.

    Potentials of the package are taken to be.

    Raises:
        InputError: what it must be, and where it is something else.
    """
    if isinstance(potential, Layerwise):
        for one, some in zip(potential.potentials.values(), potential.counts, strict=True):
            require_mirror(one, some)
        return
    if type(potential).__module__.startswith("mirrorode."):
        return
    if not isinstance(potential, SeparablePotential):
        _require_coupled(potential, count)
        return
    width = 1 if potential.uniform else count
    sizes = torch.logspace(-6, 3, 37, dtype=torch.float64)
    theta = torch.cat([-sizes.flip(0), torch.zeros(1).double(), sizes])[:, None].expand(-1, width)
    slope = _slope(potential, theta)
    _require_onto(potential, width)
    _require_increasing(potential, theta, slope)
    for method, found, expected in _overrides(potential, theta, slope):
        _require_close(potential, method, theta, found, expected)


def _require_coupled(potential: Potential, count: int) -> None:
    """What can be seen of one that couples coordinates, at a few random points."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(4, count, generator=generator, dtype=torch.float64)
    theta = theta * torch.tensor([[1e-2], [1.0], [1.0], [1e2]], dtype=torch.float64)
    name, parts = _name(potential), potential.parts(count)
    value, terms = potential.value(theta), int(parts.max()) + 1
    if not isinstance(value, Tensor) or value.shape != (len(theta), terms):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        must = (
            f"have its terms in the last dimension, {(len(theta), terms)} for {len(theta)} points"
        )
        raise InputError(f"`value` of {name} must {must}, but is {got}")
    slope = Potential.gradient(potential, theta)
    rise = ((slope[:, None] - slope) * (theta[:, None] - theta)).sum(-1)[~torch.eye(4).bool()]
    if not bool((rise > 0).all()):
        raise InputError(f"`potential` must be strictly convex, but {name} is not between 2 points")
    bend = potential.hessian_product(theta, slope)
    checks = (
        ("gradient", potential.gradient(theta), slope),
        ("inverse_gradient", potential.inverse_gradient(slope), theta),
        ("hessian_product", bend, Potential.hessian_product(potential, theta, slope)),
        ("precondition", potential.precondition(theta, bend), slope),
        ("balance_term", potential.balance_term(theta), Potential.balance_term(potential, theta)),
        ("conjugate", potential.conjugate(slope), Potential.conjugate(potential, slope)),
    )
    for method, found, expected in checks:
        off = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
        if not bool((off <= AGREES).all()):
            must = f"be that of its value, {expected[off.argmax()].tolist()[:3]} … somewhere"
            require(False, method, must, f"{found[off.argmax()].tolist()[:3]} …")


def _name(potential: Potential) -> str:
    return type(potential).__name__


def _slope(potential: SeparablePotential, theta: Tensor) -> Tensor:
    """r' from the value."""
    name = _name(potential)
    value = potential.value(theta)
    if not isinstance(value, Tensor) or value.shape != theta.shape:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"`value` of {name} must have the shape of theta, {tuple(theta.shape)}, but is {shape}"
        )
    near = theta.abs() <= 1
    if not bool(torch.isfinite(value[near]).all()):
        where = float(theta[near][~torch.isfinite(value[near])][0])
        raise InputError(f"`value` of {name} must be finite, but is not at {where:g}")
    try:
        return numeric.derivatives(potential.value, theta)[0]
    except RuntimeError:
        raise InputError(
            f"`value` of {name} must be differentiable by autograd, but breaks its graph"
        ) from None


def _require_increasing(potential: SeparablePotential, theta: Tensor, slope: Tensor) -> None:
    """Strictly convex, without a kink at zero."""
    name = _name(potential)
    finite = torch.isfinite(slope) & torch.isfinite(potential.value(theta))
    falls = (slope.diff(dim=0) <= 0) & finite[1:] & finite[:-1]
    if bool(falls.any()):
        row, column = torch.nonzero(falls)[0].tolist()
        raise InputError(
            f"`potential` must be strictly convex, but the derivative of {name} goes from "
            f"{float(slope[row, column]):g} at {float(theta[row, column]):g} to "
            f"{float(slope[row + 1, column]):g} at {float(theta[row + 1, column]):g}"
        )
    ends = torch.tensor([[-1.0], [-1e-300], [1e-300], [1.0]], dtype=torch.float64)
    ends = numeric.derivatives(potential.value, ends.expand(-1, theta.shape[1]))[0]
    jump, rise = ends[2] - ends[1], ends[3] - ends[0]
    if bool((jump > JUMP * rise).any()):
        raise InputError(
            f"`potential` must be differentiable, but the derivative of {name} jumps by "
            f"{float(jump.amax()):g} at 0"
        )


def _require_onto(potential: SeparablePotential, width: int) -> None:
    """A gradient that is unbounded on both sides: asinh is, tanh is not."""
    far = 10.0 ** torch.arange(DECADES + 1, dtype=torch.float64)[:, None].expand(-1, width)
    for side in (far, -far):
        slope = numeric.derivatives(potential.value, side)[0].abs()
        if not bool(torch.isfinite(slope).all()):
            continue  # it grows beyond all numbers
        whole = slope[-1] - slope[0]
        gained = slope[-1] - slope[DECADES // 2]
        if bool((gained <= GAIN * whole).any()):
            raise InputError(
                f"`potential` must have an unbounded derivative, but that of {_name(potential)} "
                f"stays within {float(slope[-1].amin()):g}"
            )


def _overrides(
    potential: SeparablePotential, theta: Tensor, slope: Tensor
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each method that is not inherited, what it gives and what it should."""

    def own(name: str) -> bool:
        return getattr(type(potential), name) is not getattr(SeparablePotential, name)

    if own("gradient"):
        yield "gradient", potential.gradient(theta), slope
    if own("inverse_gradient"):
        within = torch.where(torch.isfinite(slope), theta, torch.nan)  # beyond, z overflows
        yield "inverse_gradient", potential.inverse_gradient(slope), within
    if own("inverse_hessian"):
        away = torch.where(theta == 0, 1e-3, theta)
        expected = 1 / numeric.curvature(potential.value, away)
        yield "inverse_hessian", potential.inverse_hessian(away), expected
    if own("balance_term"):
        expected = numeric.balance_term(potential.value, theta)
        yield "balance_term", potential.balance_term(theta), expected
    if own("conjugate"):
        expected = theta * slope - potential.value(theta)
        yield "conjugate", potential.conjugate(slope), expected


def _require_close(
    potential: SeparablePotential, method: str, theta: Tensor, found: Tensor, expected: Tensor
) -> None:
    known = torch.isfinite(expected)
    off = ((found - expected).abs() > AGREES * (1e-6 + expected.abs())) & known
    off |= known & ~torch.isfinite(found)
    if bool(off.any()):
        row, column = torch.nonzero(off)[0].tolist()
        raise InputError(
            f"`{method}` of {_name(potential)} must be that of its value, "
            f"{float(expected[row, column]):.10g} at theta = {float(theta[row, column]):g}, but is "
            f"{float(found[row, column]):.10g}"
        )
