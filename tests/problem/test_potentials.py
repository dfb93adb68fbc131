"""Potentials obey the laws of duality from |θ| = 1e-12 to 1e12, and are odd to the last bit."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mirrorode as mo

POTENTIALS = [
    mo.Euclidean(),
    mo.HyperbolicEntropy(1.0),
    mo.HyperbolicEntropy(1e-4),
    *(
        mo.SmoothedHomogeneous(p, lam)
        for p in (2, 2.5, 3, 4, 5, 10)
        for lam in (0.0, 1e-3, 1.0, 10)
    ),
]
SIZES = torch.logspace(-12, 12, 97, dtype=torch.float64)
THETA = torch.cat([-SIZES, SIZES])

every_potential = pytest.mark.parametrize("potential", POTENTIALS, ids=repr)


@every_potential
def test_inverse_map(potential):
    """(∇R)⁻¹(∇R(θ)) = θ."""
    back = potential.inverse_gradient(potential.gradient(THETA))
    torch.testing.assert_close(back, THETA, rtol=1e-14, atol=0)


@every_potential
def test_fenchel_young(potential):
    """Lemma 2.5: θz = r(θ) + r*(z); a wrong dual violates it."""
    z = potential.gradient(THETA)
    value, conjugate = potential.value(THETA), potential.conjugate(z)
    size = (THETA * z).abs() + value.abs() + conjugate.abs()
    assert float(((THETA * z - value - conjugate).abs() / size).max()) < 1e-14
    wrong = potential.conjugate(z * 1.01)
    assert float(((THETA * z - value - wrong).abs() / size).max()) > 1e-4


@every_potential
def test_odd_and_even_to_the_last_bit(potential):
    z = potential.gradient(THETA)
    assert torch.equal(potential.gradient(-THETA), -z)
    assert torch.equal(potential.inverse_gradient(-z), -potential.inverse_gradient(z))
    for even in (potential.value, potential.balance_term, potential.inverse_hessian):
        assert torch.equal(even(-THETA), even(THETA))


@every_potential
def test_derivatives(potential):
    """r' and r'' are the derivatives of r, by automatic differentiation."""
    theta = torch.tensor([-3.0, -0.2, 0.4, 7.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(potential.value(theta).sum(), theta)
    torch.testing.assert_close(slope, potential.gradient(theta), rtol=1e-12, atol=1e-14)
    (curvature,) = torch.autograd.grad(potential.gradient(theta).sum(), theta)
    torch.testing.assert_close(1 / curvature, potential.inverse_hessian(theta).detach())


@every_potential
def test_balance_term(potential):
    """κ̃ = θ r' − r + r(0), small weights included, where the difference has no digits left."""
    theta = torch.tensor([0.3, 2.0, 50.0], dtype=torch.float64)
    at_zero = potential.value(torch.zeros(1, dtype=torch.float64))
    direct = theta * potential.gradient(theta) - potential.value(theta) + at_zero
    torch.testing.assert_close(potential.balance_term(theta), direct, rtol=1e-12, atol=1e-14)
    assert bool((potential.balance_term(SIZES) > 0).all())


@every_potential
def test_horizon_and_degree(potential):
    """φ(θ) = lim η (αQ(∇R(θ/η)))^{1/α}; the smoothing is gone at η = 1e-9."""
    theta = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    alpha, eta = potential.degree, 1e-9
    q = potential.balance_term(theta / eta).sum() + 3 * potential.conjugate_at_zero
    scaled = eta * (alpha * q) ** (1 / alpha)
    torch.testing.assert_close(scaled, potential.horizon(theta), rtol=1e-3, atol=0)


def test_zero_maps_to_zero():
    zero = torch.zeros(1, dtype=torch.float64)
    for potential in POTENTIALS:
        assert float(potential.gradient(zero)) == 0
        assert float(potential.inverse_gradient(zero)) == 0


@given(p=st.floats(2, 12), lam=st.floats(1e-6, 1e3), exponent=st.floats(-12, 12))
def test_newton_for_any_p(p, lam, exponent):
    potential = mo.SmoothedHomogeneous(p, lam)
    theta = torch.tensor([10.0**exponent], dtype=torch.float64)
    back = potential.inverse_gradient(potential.gradient(theta))
    assert abs(float(back / theta) - 1) < 1e-13


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: mo.HyperbolicEntropy(-1.0), "`lam` must be positive, but is -1.0"),
        (lambda: mo.HyperbolicEntropy(math.nan), "`lam` must be positive, but is nan"),
        (lambda: mo.SmoothedHomogeneous(1.5), "`p` must be at least 2, but is 1.5"),
        (lambda: mo.SmoothedHomogeneous(3, -1), "`lam` must be zero or positive, but is -1"),
    ],
)
def test_bad_input(build, sentence):
    with pytest.raises(mo.InputError) as error:
        build()
    assert str(error.value) == sentence


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 8), (torch.float64, 10)])
def test_newton_ends_when_it_has_converged(monkeypatch, dtype, most):
    """In either precision, to its round-off."""
    calls, add = [], torch.logaddexp
    monkeypatch.setattr(torch, "logaddexp", lambda *args: calls.append(1) or add(*args))
    potential = mo.SmoothedHomogeneous(p=10, lam=0.1)
    theta = torch.logspace(-12, 3, 1001, dtype=dtype)
    found = potential.inverse_gradient(potential.gradient(theta))
    assert float(((found - theta) / theta).abs().max()) < 4 * torch.finfo(dtype).eps
    assert len(calls) <= most
