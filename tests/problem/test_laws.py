"""Every potential, shipped and a user's, obeys the laws of duality wherever it is a number."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import mirrorode as mo
from mirrorode.problem import numeric
from tests.problem.own import LogCosh, OwnCosh, OwnPower, PerWeight, Quartic

LAM = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
SHIPPED = [
    mo.Euclidean(),
    mo.HyperbolicEntropy(0.1),
    mo.SmoothedHomogeneous(3, 1.0),
    mo.SmoothedHomogeneous(2.5, 0.1),
    mo.SmoothedHomogeneous(10, 0.0),
    mo.Power(1.5),
    mo.Power(3),
    mo.Cosh(),
    mo.Scaled(mo.Euclidean(), LAM),
    mo.Scaled(mo.HyperbolicEntropy(0.1), 7.0),
    mo.for_width(mo.HyperbolicEntropy(0.01), 100),
    mo.for_width(mo.SmoothedHomogeneous(10, 0.1), 100),
    mo.for_width(mo.SmoothedHomogeneous(4, 0.1), 100, printed=True),
]
OWN = [Quartic(), OwnCosh(), LogCosh(), OwnPower(), PerWeight(LAM)]
every = pytest.mark.parametrize("potential", [*SHIPPED, *OWN], ids=repr)
LARGEST = 1e6


def number(potential, theta):
    """The weights at which r, r' and θ r' are numbers."""
    fine = torch.isfinite(potential.value(theta)) & torch.isfinite(potential.gradient(theta))
    return torch.where(fine & torch.isfinite(theta * potential.gradient(theta)), theta, 1.0)


@every
@given(st.lists(st.floats(-LARGEST, LARGEST), min_size=3, max_size=3))
@example([0.0, 698.0, 705.0])  # where θ r''(θ) of a hyperbolic cosine is no number any more
@settings(max_examples=40, deadline=None)
def test_duality(potential, weights):
    """The inverse map and Fenchel–Young to 1e-10; κ̃ is Q less Q(0), and not negative."""
    theta = number(potential, torch.tensor(weights, dtype=torch.float64))
    dual = potential.gradient(theta)
    back = potential.inverse_gradient(dual)
    tiny = theta.abs() < 1e-30  # of which the ninth power has lost its digits
    # A user's formula for r' may lose digits near zero, which no inverse has.
    atol = 1e-15 if potential in OWN else 0.0
    torch.testing.assert_close(back[~tiny], theta[~tiny], rtol=1e-10, atol=atol)
    value, conjugate = potential.value(theta), potential.conjugate(dual)
    size = (theta * dual).abs() + value.abs() + conjugate.abs() + 1e-300
    assert float(((theta * dual - value - conjugate).abs() / size).max()) < 1e-10
    kappa = potential.balance_term(theta)
    assert float(kappa.min()) >= 0
    at_zero = torch.as_tensor(potential.conjugate_at_zero, dtype=torch.float64)
    assert float(((conjugate - kappa - at_zero).abs() / size).max()) < 1e-10


@every
@given(st.lists(st.floats(-50, 50).filter(lambda it: abs(it) > 1e-6), min_size=3, max_size=3))
@settings(max_examples=20, deadline=None)
def test_derivatives(potential, weights):
    """What is written by hand, or looked up, is what autograd makes of the value."""
    theta = torch.tensor(weights, dtype=torch.float64)
    slope, bend = numeric.derivatives(potential.value, theta)
    torch.testing.assert_close(potential.gradient(theta), slope, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(potential.inverse_hessian(theta), 1 / bend, rtol=1e-10, atol=0)


@every
def test_horizon(potential):
    """φ is the limit it is defined as; without a degree there is none."""
    theta = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    if potential.degree is None:
        with pytest.raises(mo.InputError, match="degree"):
            potential.horizon(theta)
        return
    alpha, far = potential.degree, 1e9
    total = (potential.balance_term(far * theta)).sum()
    expected = (alpha * total) ** (1 / alpha) / far
    torch.testing.assert_close(potential.horizon(theta), expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(potential.horizon(3 * theta), 3 * potential.horizon(theta))


@pytest.mark.parametrize(
    ("potential", "degree"),
    [(Quartic(), 4.0), (LogCosh(), 2.0), (OwnPower(), 3.0), (PerWeight(LAM), 1.0)],
    ids=repr,
)
def test_degree_is_found(potential, degree):
    assert potential.degree == degree
    found, error = numeric.degree(potential.value, 3 if isinstance(potential, PerWeight) else 1)
    assert abs(found - degree) <= error < 1e-6


@pytest.mark.parametrize(
    "value",
    [torch.cosh, lambda it: it**2 * torch.log(2 + it**2), lambda it: torch.exp(it) - it + it**2],
    ids=["cosh", "logarithm", "lopsided"],
)
def test_no_degree_where_there_is_none(value):
    assert numeric.degree(value, 1) is None


def test_for_width():
    """Appendix J.3: D by the formulas; as printed, p = 10 is gradient descent to four digits."""
    width, lam = 256, 0.1
    theta = torch.randn(1000, generator=torch.Generator().manual_seed(0)).double() / width**0.5
    hyperbolic = mo.for_width(mo.HyperbolicEntropy(lam), width)
    expected = torch.sqrt(theta**2 * width + lam) / math.sqrt(1 + lam)
    torch.testing.assert_close(hyperbolic.inverse_hessian(theta), expected)
    for printed, power in ((False, 4.0), (True, -4.0)):
        potential = mo.for_width(mo.SmoothedHomogeneous(10, lam), width, printed=printed)
        expected = lam / (theta.abs() ** 8 * width**power + lam)
        torch.testing.assert_close(potential.inverse_hessian(theta), expected)
        like_gradient_descent = float((expected - 1).abs().max()) < 1e-4
        assert like_gradient_descent == printed
    assert mo.for_width(mo.Euclidean(), width) == mo.Euclidean()


def test_layerwise_for_width():
    network = mo.MLP((2, 50, 1))
    layers = mo.Layerwise.for_width(network, mo.HyperbolicEntropy(0.1))
    flow = mo.MirrorFlow(network, mo.teacher_student(10), layers)
    theta = network.initial(0)
    weights = network.unflatten(theta)
    rates = network.unflatten(flow.potential.inverse_hessian(theta))
    for name, width in (("W1", 2), ("W2", 50)):
        expected = torch.sqrt((weights[name] ** 2 * width + 0.1) / 1.1)
        torch.testing.assert_close(rates[name], expected)


@pytest.mark.parametrize(
    "potential",
    [mo.Power(1.5), mo.Cosh(), mo.Scaled(mo.HyperbolicEntropy(0.1), LAM), mo.Euclidean()],
    ids=repr,
)
def test_stored_with_a_trajectory(potential, tmp_path):
    flow = mo.MirrorFlow(mo.MLP((3, 1)), mo.Dataset(torch.eye(3), torch.ones(3)), potential)
    run = mo.solve(flow, torch.ones(3), until=mo.LogInverseLoss(2.0))
    assert run.success
    run.save(tmp_path / "run.npz")
    again = mo.Trajectory.load(tmp_path / "run.npz")
    assert repr(again.flow.potential) == repr(potential)
    theta = run.theta[-1]
    assert torch.equal(again.flow.potential.gradient(theta), potential.gradient(theta))
