"""Closed solutions without kinks: θ and the time are exact to the tolerance, t included."""

import math

import pytest
import torch

import mirrorode as mo
from tests.exact import FLOWS

every_flow = pytest.mark.parametrize("exact", FLOWS, ids=lambda it: it.name)


@every_flow
def test_theta_at_a_time(exact):
    run = mo.solve(exact.flow, exact.start, until=mo.Time(exact.time), rtol=1e-9, atol=1e-12)
    assert run.success
    assert float(run.log_time[-1]) == pytest.approx(math.log(exact.time), abs=1e-9)
    assert float((run.theta[-1] - exact.theta).abs().max()) < 1e-7


@every_flow
def test_time_at_a_loss(exact):
    """The other way round: log t when the loss is that of the exact solution."""
    loss = float(exact.flow.log_inverse_loss(exact.theta))
    run = mo.solve(exact.flow, exact.start, until=mo.LogInverseLoss(loss), rtol=1e-9, atol=1e-12)
    assert float(run.log_time[-1]) == pytest.approx(math.log(exact.time), abs=1e-7)


def test_tolerance_matters():
    """Negative control: at a loose tolerance the same check fails."""
    exact = FLOWS[0]
    run = mo.solve(exact.flow, exact.start, until=mo.Time(exact.time), rtol=1e-2, atol=1e-2)
    assert float((run.theta[-1] - exact.theta).abs().max()) > 1e-7


@pytest.mark.parametrize("decades", [3, 6, 9])
def test_log_time_far_out(decades):
    """One Euclidean parameter has log t = ℓ + log1p(−e^{θ₀−ℓ}): exact at ℓ = 1e9."""
    exact = FLOWS[0]
    until = mo.LogInverseLoss(10.0**decades)
    run = mo.solve(exact.flow, exact.start, until=until, rtol=1e-6)
    assert float(run.log_time[-1]) == pytest.approx(10.0**decades, rel=1e-8)


def test_two_samples_far_out():
    """Two orthogonal samples in the Euclidean metric are two flows of one parameter."""
    x = torch.eye(2, dtype=torch.float64)
    flow = mo.MirrorFlow(mo.MLP((2, 1)), mo.Dataset(x, torch.ones(2)), mo.Euclidean())
    start = torch.tensor([0.0, 1.0], dtype=torch.float64)
    run = mo.solve(flow, start, until=mo.LogTime(500.0), rtol=1e-8, atol=1e-10)
    exact = torch.logaddexp(torch.tensor(500.0).double(), start)
    torch.testing.assert_close(run.theta[-1], exact, rtol=1e-7, atol=0)
