"""A potential that gives only its value r(t) has everything else, to round-off."""

from dataclasses import dataclass

import pytest
import torch

import mirrorode as mo
from mirrorode.flow.balance import Terms, restore
from mirrorode.problem import numeric
from mirrorode.problem.symmetries import find

CLOSED = [
    mo.Euclidean(),
    mo.HyperbolicEntropy(0.1),
    mo.HyperbolicEntropy(1e-4),
    mo.SmoothedHomogeneous(2.5, 0.1),
    mo.SmoothedHomogeneous(3, 1.0),
    mo.SmoothedHomogeneous(10, 0.0),
]
SIZES = torch.logspace(-12, 6, 73, dtype=torch.float64)
THETA = torch.cat([-SIZES, torch.zeros(1, dtype=torch.float64), SIZES])


@dataclass(frozen=True)
class ValueOnly(mo.SeparablePotential):
    """As a user would write it."""

    like: mo.SeparablePotential

    @property
    def degree(self):
        return self.like.degree

    def value(self, theta):
        return self.like.value(theta)


@dataclass(frozen=True)
class Lopsided(mo.SeparablePotential):
    """r(t) = e^t − t + t²/2: not even, no degree, r(0) = 1."""

    def value(self, theta):
        return torch.exp(theta) - theta + 0.5 * theta**2


every_closed = pytest.mark.parametrize("closed", CLOSED, ids=repr)


@every_closed
def test_as_the_closed_form(closed):
    own, dual = ValueOnly(closed), closed.gradient(THETA)
    for found, expected in (
        (own.gradient(THETA), dual),
        (own.inverse_gradient(dual), THETA),
        (own.balance_term(THETA), closed.balance_term(THETA)),
        (own.inverse_hessian(THETA), closed.inverse_hessian(THETA)),
        (own.conjugate(dual), closed.conjugate(dual)),
    ):
        torch.testing.assert_close(found, expected, rtol=2e-14, atol=0)
    weights = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(own.horizon(weights), closed.horizon(weights), rtol=1e-4, atol=0)


def test_the_difference_loses_all_digits():
    """Negative control: what the integral of s r'' is for."""
    potential, theta = mo.HyperbolicEntropy(0.1), torch.tensor([1e-9], dtype=torch.float64)
    direct = theta * potential.gradient(theta) - potential.value(theta) - 0.1**0.5
    exact = potential.balance_term(theta)
    assert abs(float(direct / exact) - 1) > 0.5
    assert abs(float(numeric.balance_term(potential.value, theta) / exact) - 1) < 1e-14


def test_not_even():
    own = Lopsided()
    theta = torch.linspace(-6.0, 6.0, 25, dtype=torch.float64)
    dual = torch.exp(theta) - 1 + theta
    torch.testing.assert_close(own.gradient(theta), dual, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(own.inverse_gradient(dual), theta, rtol=1e-14, atol=1e-15)
    kappa = (theta - 1) * torch.exp(theta) + 1 + 0.5 * theta**2
    torch.testing.assert_close(own.balance_term(theta), kappa, rtol=1e-13, atol=1e-15)
    assert own.conjugate_at_zero == -1
    assert own.degree is None


def test_without_a_degree():
    network = mo.MLP((2, 3, 1))
    flow = mo.MirrorFlow(network, mo.teacher_student(5), Lopsided())
    for ask in (Lopsided().horizon, lambda theta: mo.q_margin(flow, theta)):
        with pytest.raises(mo.InputError, match=r"must have an? .*degree.*, but Lopsided"):
            ask(network.initial(0))


@pytest.mark.parametrize("own", [ValueOnly(mo.HyperbolicEntropy(0.1)), Lopsided()], ids=repr)
def test_balance_is_restored(own):
    """To round-off of the sum of terms, small weights included, where κ̃ is an integral."""
    network = mo.MLP((3, 8, 6, 1), activation="leaky_relu")
    units, start = find(network), 0.1 * network.initial(0)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, network.size, generator=generator, dtype=torch.float64)
    noisy, target = start * (1 + 0.1 * noise), Terms.at(units, own, start).value
    found = restore(units, own, noisy, target)
    assert not found.left
    assert float(Terms.at(units, own, noisy).drift(target).min()) > 1e-2
    assert float(Terms.at(units, own, found.theta).drift(target).max()) < 1e-13


@pytest.mark.parametrize("widths", [(2, 4, 1), (2, 4, 4, 1)], ids=["two layers", "three"])
def test_flow(widths):
    """The same trajectory as under the closed form, and every statement holds."""
    network, data = mo.MLP(widths), mo.teacher_student(10, seed=3)
    ends = []
    for potential in (mo.HyperbolicEntropy(0.1), ValueOnly(mo.HyperbolicEntropy(0.1))):
        flow = mo.MirrorFlow(network, data, potential)
        run = mo.solve(flow, network.initial(1), until=mo.LogInverseLoss(-2.0), rtol=1e-5)
        assert run.success
        assert mo.verify(run).passed
        ends.append(run.theta[-1])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-8, atol=1e-10)
