"""For the tests of others: does a flow, or one's own iteration, keep the balance equation?

from mirrorode.testing import assert_balanced

def test_my_potential():
    flow = mo.MirrorFlow(my_network, data, MyPotential())
    assert_balanced(mo.solve(flow, my_network.initial(0), until=mo.LogInverseLoss(10.0)))
"""

from __future__ import annotations

import torch
from torch import Tensor

from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.flow.trajectory import Trajectory
from mirrorode.problem.errors import require, require_number
from mirrorode.problem.mirror import Potential
from mirrorode.theory.balance import invariants

PROBES = 16  # coordinates that are looked at for whether a potential is separable


def assert_balanced(trajectory: Trajectory, rtol: float = 1e-3) -> None:
    """Assert that an integration has kept the balance equation, before any correction.

    Args:
        trajectory: of `solve`.
        rtol: largest drift of a law, relative to the sum of its terms (Lemma 3.1, Appendix G.5).

    Raises:
        AssertionError: if a law drifts by more, if the network has none that are known, or if the
            potential is not separable; the text says which and why.
        InputError: on an argument of the wrong kind.
    """
    require(isinstance(trajectory, Trajectory), "trajectory", "be a Trajectory", repr(trajectory))
    require_number(rtol, "rtol", "be positive", 0.0, strict=True)
    flow, theta, drift = trajectory.flow, trajectory.theta, trajectory.drift
    _assert_separable(flow.potential, theta[0])
    if len(theta) < 2:
        raise AssertionError(f"there is only the start to look at, for {trajectory.message}")
    if drift is not None and not float(drift.amax()) <= rtol:
        point, law = divmod(int(drift.argmax()), drift.shape[1])
        loss = float(trajectory.log_inverse_loss[point])
        raise AssertionError(
            f"the law of {invariants(flow, theta).names[law]} drifts by {float(drift.amax()):.2e} "
            f"of the sum of its terms up to log(1/loss) = {loss:.4g}, {rtol:.0e} allowed "
            f"({int((drift.amax(0) > rtol).sum())} of {drift.shape[1]} laws do): that is the error "
            f"of the integration (its rtol is {trajectory.rtol:.0e}), or what was integrated is no "
            f"mirror flow"
        )
    assert_balanced_along(flow, theta, rtol)


def assert_balanced_along(flow: MirrorFlow, theta: Tensor, rtol: float = 1e-3) -> None:
    """Assert that the rows of ``theta`` (T, n), of whatever origin, have the laws of the first.

    Args:
        flow: the network, the samples and the potential that they are to be a mirror flow of.
        theta: parameters along a trajectory, such as the iterates of one's own training.
        rtol: largest drift of a law, relative to the sum of its terms.

    Raises:
        AssertionError: as `assert_balanced`.
        InputError: on an argument of the wrong kind.
    """
    require(isinstance(flow, MirrorFlow), "flow", "be a MirrorFlow", repr(flow))
    n, shape = flow.network.size, tuple(getattr(theta, "shape", ()))
    fine = len(shape) == 2 and shape[0] > 1 and shape[-1] == n
    require(fine, "theta", f"have shape (T, {n}) with T > 1", shape)
    require_number(rtol, "rtol", "be positive", 0.0, strict=True)
    _assert_separable(flow.potential, theta[0])
    laws = invariants(flow, theta)
    if len(laws) == 0:
        raise AssertionError(f"there is no balance equation to check: {laws.missing}")
    drifts = laws.drifts()
    worst = int(drifts.argmax())
    if not float(drifts[worst]) <= rtol:
        values = laws.values[:, worst]
        row = int(((values - values[0]).abs() / laws.scale[:, worst]).argmax())
        raise AssertionError(
            f"the law of {laws.names[worst]} drifts by {float(drifts[worst]):.2e} of the sum of "
            f"its terms, from {float(values[0]):.6g} to {float(values[row]):.6g} at row {row}, "
            f"{rtol:.0e} allowed ({int((drifts > rtol).sum())} of {len(laws)} laws do): discrete "
            f"steps lose it in proportion to their length, and a flow in another geometry does not "
            f"have it"
        )


def _assert_separable(potential: Potential, theta: Tensor) -> None:
    """r' of a coordinate must not change with the others, if they are said not to be coupled."""
    if len(theta) < 2 or not potential.separable:
        return
    others = theta.clone()
    # Half of a small network at most: what is not looked at is what moves.
    probes = torch.linspace(0, len(theta) - 1, min(PROBES, len(theta) // 2)).long()
    moved = torch.ones_like(theta, dtype=torch.bool)
    moved[probes] = False
    others[moved] = 2 * others[moved] + 1
    before, after = potential.gradient(theta)[probes], potential.gradient(others)[probes]
    change = float((after - before).abs().amax() / before.abs().amax().clamp(min=1e-300))
    if not change < 1e-12:
        raise AssertionError(
            f"the potential {potential} is not separable, and the balance equation of a unit holds "
            f"for separable ones alone: its gradient in a coordinate changes by {change:.1e} with "
            f"the others"
        )
