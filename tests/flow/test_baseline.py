"""The torchdiffeq baseline agrees where there is no difficulty, and fails with a status."""

import pytest
import torch

import mirrorode as mo
from tests.exact import FLOWS


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3"])
def test_agrees_on_an_easy_flow(method):
    exact = FLOWS[0]
    rule = mo.Time(exact.time)
    run = mo.solve(exact.flow, exact.start, until=rule, method=method, rtol=1e-7, atol=1e-9)
    assert run.success
    torch.testing.assert_close(run.theta[-1], exact.theta, rtol=1e-5, atol=0)
    assert run.stats.steps > 0


def test_lands_on_a_loss(small_flow):
    flow = small_flow("hyperbolic")
    rule = mo.LogInverseLoss(-1.0)
    run = mo.solve(flow, flow.network.initial(0), until=rule, method="dopri5", rtol=1e-4)
    assert float(run.log_inverse_loss[-1]) == pytest.approx(-1.0, abs=1e-7)


def test_failure_is_a_status(monkeypatch):
    """Infinite slopes end the run where the last step was accepted, and nothing is lost."""
    data = mo.Dataset(torch.ones(1, 1), torch.ones(1))
    flow = mo.MirrorFlow(mo.MLP((1, 1)), data, mo.Euclidean())

    def cliff(_, dual):
        return torch.where(dual.abs() > 2.2, torch.inf, dual)

    monkeypatch.setattr(mo.Euclidean, "inverse_gradient", cliff)
    run = mo.solve(flow, torch.zeros(1), until=mo.Time(1e6), method="dopri5")
    assert run.status in (mo.Status.SOLVER_FAILED, mo.Status.NON_FINITE)
    assert float(run.dual[-1]) > 1.5
    assert len(run.log_time) > 2


def test_out_of_steps(small_flow):
    flow = small_flow("euclidean")
    run = mo.solve(
        flow, flow.network.initial(0), until=mo.LogTime(20.0), method="dopri5", max_steps=30
    )
    assert run.status is mo.Status.MAX_STEPS
    assert run.stats.steps == 30
    with pytest.raises(mo.InputError, match="needs the dense output"):
        run.at(log_time=0.0)
