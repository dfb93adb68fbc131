"""Networks with too many kinks to locate: they are stepped through, and everything says so."""

import numpy as np
import pytest
import torch
from torch import nn

import mirrorode as mo
from mirrorode.flow import chebyshev, mirror_flow, through


def convolutional(samples, potential):
    """A convolution over 8 × 8 inputs, labelled by another one: 144 kinks a sample."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 4, 3, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 1, bias=False),
    )
    network = mo.Network(module)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 64, generator=generator, dtype=torch.float64)
    teacher = torch.randn(network.size, generator=generator, dtype=torch.float64)
    labels = torch.where(network.output(teacher, x) > 0, 1.0, -1.0)
    return mo.MirrorFlow(network, mo.Dataset(x, labels), potential), network.current()


@pytest.fixture
def through_all(monkeypatch):
    """Any network counts as one with too many kinks."""
    monkeypatch.setattr(through, "MANY", 1)


def _dissipation(run):
    return next(one for one in mo.verify(run) if one.statement.startswith("Dissipation"))


def test_it_says_so(through_all):
    flow, start = convolutional(30, mo.Euclidean())
    run = mo.solve(flow, start, until=mo.LogInverseLoss(0.0), rtol=1e-3, saveat=[])
    assert run.success
    assert run.stats.through_kinks == run.stats.steps > 0
    assert "4,320 pairs" in run.message
    assert "kinks were stepped through" in str(run)
    assert "kinks were stepped through" in _dissipation(run).detail
    assert len(run.steps) == 0


def test_what_is_located_is_not_stepped_through():
    flow, start = convolutional(30, mo.Euclidean())
    run = mo.solve(flow, start, until=mo.LogInverseLoss(-3.0), rtol=1e-3)
    assert run.stats.through_kinks == 0
    assert "stepped through" not in str(run) + _dissipation(run).detail


def test_the_price(monkeypatch):
    """The direction is near the exact one; the dissipation misses by much more."""
    flow, start = convolutional(30, mo.Euclidean())
    goal = mo.LogInverseLoss(2.0)
    exact = mo.solve(flow, start, until=goal, rtol=1e-5, saveat=[])
    monkeypatch.setattr(through, "MANY", 1)
    run = mo.solve(flow, start, until=goal, rtol=1e-4, saveat=[])
    unit = [one.theta[-1] / one.theta[-1].norm() for one in (run, exact)]
    assert float((unit[0] - unit[1]).norm()) < 3e-3
    assert _dissipation(exact).passed
    missed = [
        abs(float(one.dissipated[-1] - one.log_inverse_loss.diff().sum())) for one in (run, exact)
    ]
    assert missed[0] > 10 * missed[1]


def test_landing(through_all):
    flow, start = convolutional(20, mo.HyperbolicEntropy(0.1))
    at = [mo.LogTime(-4.0), mo.LogInverseLoss(-1.0)]
    run = mo.solve(flow, start, until=mo.LogInverseLoss(0.5), rtol=1e-3, saveat=at)
    assert run.success
    assert float(run.log_time[1]) == pytest.approx(-4.0, abs=1e-9)
    assert run.log_inverse_loss[2:].tolist() == pytest.approx([-1.0, 0.5], abs=1e-9)
    assert flow.log_inverse_loss(run.theta).tolist() == pytest.approx(
        run.log_inverse_loss.tolist(), abs=1e-9
    )


def test_samples_in_chunks(monkeypatch):
    """ℓ and G do not depend on how many samples are evaluated at once."""
    flow, start = convolutional(10, mo.Euclidean())
    whole = (*flow.loss_and_field(start), flow.margins(start))
    monkeypatch.setattr(mirror_flow, "AT_ONCE", 3 * 144)
    for one, other in zip((*flow.loss_and_field(start), flow.margins(start)), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)
    expected = flow.weights(start) @ flow.margin_gradients(start)
    torch.testing.assert_close(whole[1], expected, rtol=1e-12, atol=1e-12)


def _amplification(s, z):
    """R(z) of s stages: one step of y' = z y from y = 1."""
    rule = chebyshev.coefficients(s)
    before, at = 1.0, 1.0
    for j in range(1, s + 1):
        mu, nu = rule.mu[j], rule.nu[j]
        new = 1 - mu - nu + mu * at + nu * before + z * (rule.kappa[j] * at + rule.gamma[j])
        before, at = at, new
    return at


@pytest.mark.parametrize("s", [2, 3, 5, 20, 100])
def test_chebyshev_is_of_order_two_and_stable(s):
    small = np.array([1e-3, 2e-3])
    error = np.abs(_amplification(s, small) - np.exp(small))
    assert np.log2(error[1] / error[0]) == pytest.approx(3, abs=0.2)
    radius = ((s - 1) ** 2 - 1) / 1.54
    grid = -np.linspace(0, radius, 2000)
    assert np.abs(_amplification(s, grid)).max() <= 1 + 1e-12
    assert np.abs(_amplification(s, np.array([-s * s * 1.0]))).max() > 1  # no method goes further
    assert chebyshev.stages(radius) <= s


@pytest.mark.slow
def test_a_million_kinks():
    flow, start = convolutional(10_000, mo.HyperbolicEntropy(0.1))
    assert flow.pairs == 1_440_000
    run = mo.solve(flow, start, until=mo.LogInverseLoss(-7.0), rtol=1e-3, saveat=[])
    assert run.success
    assert run.stats.through_kinks == run.stats.steps
    assert _dissipation(run).passed
