"""Every way of not arriving ends with a status of its own, and with what was computed."""

import math

import pytest
import torch

import mirrorode as mo

EASY = mo.teacher_student(10, seed=3)
FAR = {"until": mo.LogInverseLoss(10.0), "rtol": 1e-4}
both = pytest.mark.parametrize("widths", [(2, 5, 1), (2, 4, 3, 1)])


@both
def test_the_origin(widths):
    """A saddle: nothing moves."""
    network = mo.MLP(widths)
    run = mo.solve(mo.MirrorFlow(network, EASY, mo.Euclidean()), torch.zeros(network.size), **FAR)
    assert run.status is mo.Status.STATIONARY
    assert len(run.theta) == 1


@both
def test_a_dead_network(widths):
    """No unit of the first layer sees any sample."""
    x = torch.rand(6, 2, dtype=torch.float64) + 0.1
    data = mo.Dataset(x, torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, -1.0]))
    network = mo.MLP(widths)
    start = network.initial(0)
    start[: 2 * widths[1]] = -start[: 2 * widths[1]].abs()
    run = mo.solve(mo.MirrorFlow(network, data, mo.Euclidean()), start, **FAR)
    assert run.status is mo.Status.DEAD


@pytest.mark.parametrize("potential", [mo.Euclidean(), mo.HyperbolicEntropy(0.1)])
def test_samples_that_nothing_separates(potential):
    """One input with both labels: the loss tends to 2, and the run ends."""
    x = torch.tensor([[1.0, 0.3], [1.0, 0.3], [-0.5, 1.0]])
    data = mo.Dataset(x, torch.tensor([1.0, -1.0, 1.0]))
    network = mo.MLP((2, 5, 1))
    run = mo.solve(mo.MirrorFlow(network, data, potential), network.initial(0), **FAR)
    assert run.status is mo.Status.STAGNANT
    assert float(run.log_inverse_loss[-1]) == pytest.approx(-math.log(2.0), abs=1e-4)
    assert run.stats.steps < 1000


@both
def test_overflow(widths):
    network = mo.MLP(widths)
    flow = mo.MirrorFlow(network, EASY, mo.HyperbolicEntropy(0.1))
    start = torch.full((network.size,), 1e200, dtype=torch.float64)
    assert mo.solve(flow, start, **FAR).status is mo.Status.OVERFLOW


class Holed(mo.SeparablePotential):
    """t²/2, but NaN where the dual is from 1.501 to 1.502: no check of potentials looks there."""

    def value(self, theta):
        return 0.5 * theta**2

    def inverse_gradient(self, dual):
        inside = (dual.abs() > 1.501) & (dual.abs() < 1.502)
        return torch.where(inside, torch.nan, dual)


@pytest.mark.parametrize(
    ("widths", "seed"), [pytest.param((2, 5, 1), 2, marks=pytest.mark.slow), ((2, 4, 3, 1), 3)]
)
def test_a_potential_that_gives_nan(widths, seed):
    """What was computed before it is kept, and is what it is without the hole."""
    network, start = mo.MLP(widths), 0.7 * mo.MLP(widths).initial(seed)
    run = mo.solve(mo.MirrorFlow(network, EASY, Holed()), start, **FAR)
    assert run.status is mo.Status.NON_FINITE
    assert "potential" in run.message
    assert bool(torch.isfinite(run.theta).all())
    whole = mo.solve(mo.MirrorFlow(network, EASY, mo.Euclidean()), start, **FAR)
    assert whole.success
    log_time = float(run.log_time[-1])
    torch.testing.assert_close(run.theta[-1], whole.at(log_time=log_time), rtol=1e-2, atol=1e-2)


def test_too_few_steps():
    network = mo.MLP((2, 5, 1))
    flow = mo.MirrorFlow(network, EASY, mo.Euclidean())
    run = mo.solve(flow, network.initial(0), **FAR, max_steps=3)
    assert run.status is mo.Status.MAX_STEPS
    assert run.stats.steps == 3


def test_a_long_plateau_is_no_end():
    """Negative control: from close to the origin the loss stands still for long, and then falls."""
    network = mo.MLP((2, 5, 1))
    flow = mo.MirrorFlow(network, EASY, mo.Euclidean())
    run = mo.solve(flow, 1e-6 * network.initial(0), **FAR)
    assert run.success
