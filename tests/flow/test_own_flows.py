"""Flows of potentials of one's own: along exact curves, and as those of the package."""

import math

import pytest
import torch
from scipy.integrate import quad

import mirrorode as mo
from tests.problem.own import LogCosh, OwnCosh, OwnPower, PerWeight, Quartic


@pytest.mark.parametrize(
    "potential",
    [Quartic(), OwnCosh(), LogCosh(), PerWeight(torch.tensor([0.1, 1.0]).double()),
     mo.Power(1.5), mo.Cosh(), mo.Scaled(mo.Euclidean(), torch.tensor([2.0, 0.5]).double())],
    ids=repr,
)  # fmt: skip
def test_one_sample(potential):
    """z = z₀ + s·x with ds/dt = e^{−q}: to 1e-8, the time too."""
    x = torch.tensor([2.0, 1.0], dtype=torch.float64)
    flow = mo.MirrorFlow(mo.MLP((2, 1)), mo.Dataset(x[None], torch.ones(1)), potential)
    start = torch.tensor([0.3, -0.2], dtype=torch.float64)
    run = mo.solve(flow, start, until=mo.LogInverseLoss(12.0), rtol=1e-10, atol=1e-12)
    assert run.success
    moved = run.dual - run.dual[0]
    across = moved @ torch.tensor([-1.0, 2.0], dtype=torch.float64)
    assert float((across.abs() / (1 + moved.norm(dim=1))).max()) < 1e-8
    s = float(moved[-1] @ x / (x @ x))

    def margin(at):
        return float(potential.inverse_gradient(run.dual[0] + at * x) @ x)

    time = quad(lambda at: math.exp(margin(at)), 0, s, epsabs=0, epsrel=1e-11, limit=400)[0]
    assert float(run.log_time[-1]) == pytest.approx(math.log(time), abs=1e-8)
    assert margin(s) == pytest.approx(12.0, abs=1e-8)
    # Negative control: another x is another curve.
    assert float((moved @ torch.tensor([1.0, 2.0]).double()).abs().max()) > 0.1


def test_a_value_alone_is_the_same_flow():
    """p = 3 through its value: the shipped trajectory to 1e-10, in as many steps."""
    network, data = mo.MLP((2, 4, 1)), mo.teacher_student(10, seed=3)
    runs = []
    for potential in (mo.SmoothedHomogeneous(3, 1.0), OwnPower()):
        flow = mo.MirrorFlow(network, data, potential)
        saved = [mo.LogInverseLoss(level) for level in (0.0, 1.0, 10.0)]
        until = mo.LogInverseLoss(100.0)
        runs.append(mo.solve(flow, network.initial(1), until=until, saveat=saved, rtol=1e-7))
    closed, own = runs
    assert closed.success
    assert own.success
    assert own.stats.evaluations == pytest.approx(closed.stats.evaluations, rel=0.02)
    for first, second in zip(closed.theta, own.theta, strict=True):
        torch.testing.assert_close(first / first.norm(), second / second.norm(), rtol=0, atol=1e-10)
    assert mo.verify(own).passed


def test_a_potential_for_each_weight():
    """A λ for each weight, by value or by Layerwise: one flow."""
    network, data = mo.MLP((2, 4, 1)), mo.teacher_student(10, seed=3)
    lam = torch.cat([torch.full((8,), 0.1), torch.full((4,), 1.0)]).double()
    layers = mo.Layerwise({"W1": mo.HyperbolicEntropy(0.1), "W2": mo.HyperbolicEntropy(1.0)})
    ends = []
    for potential in (PerWeight(lam), layers):
        flow = mo.MirrorFlow(network, data, potential)
        run = mo.solve(flow, network.initial(1), until=mo.LogInverseLoss(1.0), rtol=1e-7)
        assert run.success
        ends.append(run.theta[-1])
    torch.testing.assert_close(*ends, rtol=1e-7, atol=1e-9)


def test_cosh_tends_to_the_largest_margin_in_the_maximum_norm():
    """Logarithmically slowly: the gap to the linear program falls like 1/log(1/𝓛)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    y = torch.sign(x @ torch.tensor([1.0, -1.0, 0.5, 2.0], dtype=torch.float64))
    best = mo.max_margin(x, y, math.inf).margin
    flow = mo.MirrorFlow(mo.MLP((4, 1)), mo.Dataset(x, y), mo.Cosh())
    levels = [it * best for it in (2.0, 10.0, 50.0)]
    saved = [mo.LogInverseLoss(level) for level in levels]
    run = mo.solve(flow, torch.zeros(4), until=saved[-1], saveat=saved, rtol=1e-6, max_steps=2000)
    assert run.success
    margins = mo.norm_margin(flow, run.theta[1:], math.inf)
    gaps = (1 - margins / best).tolist()
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.02
    # Negative control: the hyperbolic entropy tends elsewhere.
    sparse = mo.MirrorFlow(mo.MLP((4, 1)), mo.Dataset(x, y), mo.HyperbolicEntropy(0.01))
    end = mo.solve(sparse, torch.zeros(4), until=mo.LogInverseLoss(1e4)).theta[-1]
    assert float(1 - mo.norm_margin(sparse, end, math.inf) / best) > 0.05
