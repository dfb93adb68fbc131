"""The balance equation of each hidden unit, and its restoration along the rescaling orbit.

A mirror flow conserves C_j = Σ_in κ̃(θ_e) − k Σ_out κ̃(θ_e) for each unit j (Appendix G.5); an
integrator does to its tolerance. Multiplying what comes in with e^{s_j} and what goes out with
e^{−k s_j} leaves the function of the network alone, and is the projection onto the balance
manifold that is orthogonal in ∇²R. The s with C_j(s) = C_j(0) is the minimum of a convex function,
whose Hessian is a weighted graph Laplacian with the ground removed: diagonal for two layers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.sparse import coo_array
from torch import Tensor

from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.problem.mirror import Potential
from mirrorode.problem.symmetries import Symmetries

LONGEST = 1.5  # change of s in one Newton step: without a limit the scalar iteration diverges
KEEPS = 0.003  # change of s up to which the Hessian is used again
ITERATIONS = 1500  # with p = 10 a weight of 1e6 shrinks by a tenth in each
EXACT = 2.0  # units of round-off of the sum of the terms; below it nothing is left to gain
CLOSE = 450.0  # units of round-off; below it, an iteration that no longer halves the defect is done
RISES = 1e-9  # of the largest target; what a linear program cannot tell from zero
AT_ONCE = 1 << 22  # numbers in the Hessians that are solved with together


@dataclass(frozen=True)
class Terms:
    """The laws of J units at (…, n) parameters.

    Attributes:
        value: C_j = Σ_in κ̃ − k Σ_out κ̃, (…, J).
        scale: Σ_in κ̃ + k Σ_out κ̃, to which a drift is relative.
    """

    value: Tensor
    scale: Tensor

    @classmethod
    def at(cls, units: Symmetries, potential: Potential, theta: Tensor) -> Terms:
        """Of the units at ``theta`` (…, n); those that are laws are told by `hold`."""
        kappa = potential.balance_term(theta)
        if not potential.separable:  # equal shares, of which laws take whole terms
            parts = potential.parts(theta.shape[-1]).to(theta.device)
            kappa = (kappa / torch.bincount(parts))[..., parts]
        into, out = units.into(kappa), units.out_of(kappa)
        return cls(into - out, into + out)

    def of_layers(self, units: Symmetries) -> Terms:
        """Their sums over the units of each hidden layer, (…, layers): Lemma 3.1."""
        layers = int(units.layer.max())
        total = self.value.new_zeros(*self.value.shape[:-1], layers)
        sums = (total.index_add(-1, units.layer - 1, part) for part in (self.value, self.scale))
        return Terms(*sums)

    def drifts(self, target: Tensor) -> Tensor:
        """|C_j − target_j| relative to the scale, (…, J)."""
        return (self.value - target).abs() / self.scale.clamp(min=1e-300)

    def drift(self, target: Tensor) -> Tensor:
        """The largest of them, (…)."""
        return self.drifts(target).amax(-1)


def hold(units: Symmetries, potential: Potential) -> tuple[Tensor, Tensor]:
    """Which units (J,) and which hidden layers (layers,) have a law under ``potential``.

    d/dt Σ c_k κ̃_k = 0 over coordinates with the multipliers c of a symmetry, and so over the terms
    of R if all coordinates of each have the same c. Where coordinates are not coupled all do.
    """
    count = int(units.layer.max()) if len(units) else 0
    if potential.separable:
        return torch.ones_like(units.layer, dtype=torch.bool), torch.ones(count, dtype=torch.bool)
    n, like = len(units.source), units.degree
    multipliers = like.new_zeros(len(units) + 1, n)
    columns = torch.arange(n, device=like.device)
    multipliers[units.target, columns] += 1
    multipliers[units.source, columns] -= units.degree
    of_units = multipliers[1:]
    of_layers = like.new_zeros(count, n).index_add(0, units.layer - 1, of_units)
    parts = potential.parts(n).to(like.device)

    def same(rows: Tensor) -> Tensor:
        index, ends = parts.expand_as(rows), rows.new_zeros(len(rows), int(parts.max()) + 1)
        largest, least = (
            ends.scatter_reduce(1, index, rows, it, include_self=False) for it in ("amax", "amin")
        )
        return (largest == least).all(1)

    return same(of_units), same(of_layers)


def drifts(units: Symmetries, potential: Potential, theta: Tensor) -> Tensor | None:
    """Relative drifts since the first of ``theta`` (T, n), of units, then layers: (T, laws)."""
    terms = Terms.at(units, potential, theta)
    pairs = zip((terms, terms.of_layers(units)), hold(units, potential), strict=True)
    found = torch.cat([part.drifts(part.value[0])[:, laws] for part, laws in pairs], -1)
    return found if found.shape[1] else None


def corrected(flow: MirrorFlow, theta: Tensor) -> Restored:
    """``theta`` (T, n) with the laws of its first point."""
    target = Terms.at(flow.symmetries, flow.potential, theta[0]).value
    found = restore(flow.symmetries, flow.potential, theta[1:], target)
    return replace(found, theta=torch.cat([theta[:1], found.theta]))


@dataclass(frozen=True)
class Restored:
    """Parameters on the balance manifold.

    Attributes:
        theta: (T, n).
        iterations: Newton iterations, each of all points.
        left: how many units of how many points were left alone, by reason.
    """

    theta: Tensor
    iterations: int
    left: dict[str, int]


def restore(units: Symmetries, potential: Potential, theta: Tensor, target: Tensor) -> Restored:
    """Rescale the units at each of ``theta`` (T, n) so that their laws are ``target`` (J,).

    Units for which there is no solution, or more than one, are recognised beforehand and left:
    those without a path of nonzero weights from the input and to the output, unless the sign of
    their target makes up for it.
    """
    joined = bool(((units.source > 0) & (units.target > 0)).any())
    # Which weights are zero seldom changes along a trajectory.
    used, which = torch.unique_consecutive(theta != 0, dim=0, return_inverse=True)
    reasons = _unsolvable(units, used.to(theta.dtype), target, joined)
    left: dict[str, int] = {}
    for reason, where in reasons.items():
        _count(left, reason, where[which])
    settled = ~_some(units, used.to(theta.dtype)) & (target == 0)
    free = ~torch.stack([settled, *reasons.values()]).any(0)[which]
    rows = max(1, AT_ONCE // (len(units) ** 2 if joined else theta.shape[1]))
    parts, iterations = [], 0
    for points, mask in zip(theta.split(rows), free.split(rows), strict=True):
        found, count, solved = _newton(units, potential, points, target, mask, joined)
        parts.append(found)
        iterations += count
        _count(left, "the iteration does not converge", mask & ~solved[:, None])
    return Restored(torch.cat(parts), iterations, left)


def _count(left: dict[str, int], reason: str, where: Tensor) -> None:
    """Add the units that are left for a reason, if there are any."""
    if bool(where.any()):
        left[reason] = left.get(reason, 0) + int(where.sum())


def _some(units: Symmetries, used: Tensor) -> Tensor:
    """The units (P, J) with a nonzero weight."""
    return units.into(used) + units.out_of(used) > 0


def _unsolvable(units: Symmetries, used: Tensor, target: Tensor, joined: bool) -> dict[str, Tensor]:
    """Which units (P, J) have no solution, by reason, where ``used`` (P, n) marks nonzero weights.

    A unit without incoming weights can only have C_j ≤ 0, one without outgoing ones C_j ≥ 0.
    """
    fed = _reached(units.source, units.target, used, target < 0)
    read = _reached(units.target, units.source, used, target > 0)
    some = _some(units, used)
    sign = "no path of nonzero weights leads {} it, and its target is not {}"
    found = {
        "all of its weights are zero": ~some & (target != 0),
        sign.format("to", "negative"): some & ~fed,
        sign.format("from", "positive"): some & ~read,
    }
    if joined:
        endless = _endless(units, used, target, some & fed & read)
        found["no weights of it and of the units joined to it have their targets"] = endless
    return found


def _endless(units: Symmetries, used: Tensor, target: Tensor, free: Tensor) -> Tensor:
    """Units (P, J) along which Φ falls without end, so that it has no minimum.

    A direction d of s costs nothing if d_m ≤ k d_j on every nonzero edge j → m, and gains C·d. It
    is zero for units on a path from the ground, or from what is not free, and back to it; among the
    others, which late in training are a few captured units, a linear program finds it. For one that
    no other is joined to, the sign of its target has told already.
    """
    endless = torch.zeros_like(free)
    loose = free & ~(
        _reached(units.source, units.target, used, ~free)
        & _reached(units.target, units.source, used, ~free)
    )
    padded = torch.cat([torch.zeros_like(loose[:, :1]), loose], -1)
    source, target_of = padded[:, units.source], padded[:, units.target]
    for row in torch.nonzero(((used > 0) & source & target_of).any(-1))[:, 0].tolist():
        edges = torch.nonzero((used[row] > 0) & (source[row] | target_of[row]))[:, 0]
        rising = loose[row]
        while bool(rising.any()):
            rising = _rising(units, edges, target, loose[row] & ~endless[row])
            endless[row] |= rising
    return endless


def _rising(units: Symmetries, edges: Tensor, target: Tensor, loose: Tensor) -> Tensor:
    """The units (J,) of ``loose`` that the d of largest C·d > 0 with all |d_j| ≤ 1 moves."""
    count = len(edges)
    ends = torch.stack([units.target[edges], units.source[edges]], 1)
    factors = torch.stack([torch.ones(count).to(target), -units.degree[edges]], 1)
    rows = np.repeat(np.arange(count), 2)
    entries = (factors.cpu().numpy().ravel(), (rows, ends.cpu().numpy().ravel()))
    most = np.concatenate([[0.0], loose.cpu().numpy().astype(float)])
    gain = np.concatenate([[0.0], target.cpu().numpy()]) * most
    gain /= np.abs(gain).max() or 1.0
    found = linprog(
        -gain, coo_array(entries, shape=(count, len(most))).tocsr(), np.zeros(count),
        bounds=np.stack([-most, most], 1),
    )  # fmt: skip
    rises = found.success and -found.fun > RISES
    return torch.from_numpy(np.abs(found.x[1:]) > RISES).to(loose) if rises else ~loose & loose


def _reached(start: Tensor, end: Tensor, used: Tensor, given: Tensor) -> Tensor:
    """The units (T, J) that nonzero edges lead to from the ground, or from those ``given``.

    ``given`` is (J,) or (T, J), ``used`` (T, n).
    """
    reached = given.expand(len(used), -1).to(used.dtype)
    reached = torch.cat([torch.ones_like(reached[:, :1]), reached], -1)
    while True:
        along = used * reached[:, start]
        more = (reached + torch.zeros_like(reached).index_add(1, end, along)).clamp(max=1.0)
        if torch.equal(more, reached):
            return reached[:, 1:] > 0
        reached = more


def _newton(
    units: Symmetries,
    potential: Potential,
    theta: Tensor,
    target: Tensor,
    free: Tensor,
    joined: bool,
) -> tuple[Tensor, int, Tensor]:
    """The rescaled parameters (T, n), the iterations, and which points are solved, (T,)."""
    exact, close = (units_of * torch.finfo(theta.dtype).eps for units_of in (EXACT, CLOSE))
    s, best = torch.zeros_like(free, dtype=theta.dtype), theta
    last = torch.full_like(theta[:, 0], torch.inf)
    going = torch.ones_like(last, dtype=torch.bool)
    hessian, longest, count = None, 0.0, 0
    while count < ITERATIONS:
        moved = theta * torch.exp(units.exponents(s))
        terms = Terms.at(units, potential, moved)
        residual = torch.where(free, target - terms.value, 0.0)
        defect = (residual.abs() / terms.scale.clamp(min=1e-300)).amax(-1)
        better = going & (defect < last)
        best = torch.where(better[:, None], moved, best)
        stalls = (defect < close) & (defect > 0.5 * last)
        going = going & (defect > exact) & ~stalls & torch.isfinite(defect)
        last = torch.where(better, defect, last)
        if not bool(going.any()):
            break
        if hessian is None or longest > KEEPS:
            hessian = Hessian.at(units, curvature(potential, moved), free, joined)
        step = hessian.solve(residual)
        sizes = step.abs() if not joined else step.abs().amax(-1, keepdim=True)
        step = step * (LONGEST / sizes.clamp(min=LONGEST))
        longest = float(step[going].abs().max())
        s = torch.where(going[:, None], s + step, s)
        count += 1
    solved = last < close
    # A point that does not converge is better left where it was.
    return torch.where(solved[:, None], best, theta), count, solved


def curvature(potential: Potential, theta: Tensor) -> Tensor:
    """t² r''(t) = dκ̃(t e^u)/du at u = 0, elementwise; 0 at t = 0."""
    return torch.where(theta == 0, 0.0, theta * (theta / potential.inverse_hessian(theta)))


@dataclass(frozen=True)
class Hessian:
    """H_jj = Σ_in w + k² Σ_out w and H_jm = −k w (T, J, J); the identity where a unit is not free.

    Attributes:
        diagonal: (T, J).
        factor: Cholesky factor of H scaled to a unit diagonal; None if H is diagonal.
    """

    diagonal: Tensor
    factor: Tensor | None

    @classmethod
    def at(cls, units: Symmetries, weight: Tensor, free: Tensor, joined: bool) -> Hessian:
        """For the weights w = t² r''(t), (T, n)."""
        diagonal = units.into(weight) + units.out_of(units.degree * weight)
        diagonal = torch.where(free, diagonal.clamp(min=1e-300), 1.0)
        if not joined:
            return cls(diagonal, None)
        between = (units.source > 0) & (units.target > 0)
        source, target = units.source[between] - 1, units.target[between] - 1
        size, count = torch.where(free, diagonal.rsqrt(), 0.0), len(units)
        edges = (units.degree * weight)[:, between] * size[:, source] * size[:, target]
        flat = weight.new_zeros(len(weight), count * count)
        # Only the lower triangle of what is given is read.
        low = torch.maximum(source, target) * count + torch.minimum(source, target)
        scaled = flat.index_add_(1, low, -edges).reshape(-1, count, count)
        scaled.diagonal(dim1=-2, dim2=-1).copy_(torch.full_like(diagonal, 1 + 1e-15))
        factor, info = torch.linalg.cholesky_ex(scaled)
        whole = (info == 0)[:, None, None]
        return cls(diagonal, torch.where(whole, factor, torch.eye(count).to(factor)))

    def solve(self, right: Tensor) -> Tensor:
        """H⁻¹ right (T, J)."""
        if self.factor is None:
            return right / self.diagonal
        size = self.diagonal.rsqrt()
        return torch.cholesky_solve((size * right)[..., None], self.factor)[..., 0] * size
