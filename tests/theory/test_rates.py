"""Theorem 4.6 and what it rests on, where the answer is known in closed form."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expi

import mirrorode as mo
from mirrorode.theory.points import Path
from mirrorode.theory.rates import fit_exponent, log_integral, loss_integral, size_rate
from mirrorode.theory.verdicts import Outcome

POTENTIALS = [mo.HyperbolicEntropy(0.1), mo.Euclidean(), mo.SmoothedHomogeneous(3, 1.0)]


def power_of_one_weight(potential, degree, until=1e9):
    """q = w^D, balanced: every factor starts at 1 and stays equal to the others."""
    data = mo.Dataset(torch.ones(1, 1), torch.ones(1))
    flow = mo.MirrorFlow(mo.DiagonalLinear(1, degree), data, potential)
    start = torch.ones(degree, dtype=torch.float64)
    return mo.solve(flow, start, until=mo.LogInverseLoss(until), rtol=1e-6)


@pytest.mark.parametrize("degree", [2, 3])
@pytest.mark.parametrize("potential", POTENTIALS, ids=str)
def test_the_exponent_of_one_weight(potential, degree):
    """𝓛 t (log t)^{2−α/D} tends to (p − 1)/D, and to 1/D under the hyperbolic entropy."""
    run = power_of_one_weight(potential, degree)
    alpha = potential.degree
    late = run.log_time > 1
    log_time, loss = run.log_time[late].numpy(), run.log_inverse_loss[late].numpy()
    found = fit_exponent(log_time, loss - log_time)
    exponent = 2 - alpha / degree
    assert abs(found.value - exponent) <= 0.02
    assert abs(found.value - exponent) <= found.uncertainty <= 0.02
    limit = math.exp(log_time[-1] - loss[-1] + exponent * math.log(log_time[-1]))
    assert limit == pytest.approx((1 if alpha == 1 else alpha - 1) / degree, rel=1e-3)


def test_twenty_synthetic_trajectories():
    """The interval contains the exponent, also beside corrections that the fit does not know."""
    generator = np.random.default_rng(1)
    for _ in range(20):
        exponent, slow = generator.uniform(0, 2), generator.uniform(0.4, 1.5)
        top = 10.0 ** generator.integers(4, 10)
        log_time = np.exp(np.linspace(0, math.log(top), generator.integers(40, 200)))
        x, (c, a, b, d) = np.log(log_time), generator.normal(size=4) * (1, 2, 2, 1)
        log_y = exponent * x + c + a * x / log_time + b / log_time + d * log_time**-slow
        found = fit_exponent(log_time, log_y + 1e-5 * generator.normal(size=len(x)))
        assert abs(found.value - exponent) <= found.uncertainty
        assert found.uncertainty < 0.1


def test_a_wrong_exponent_is_outside():
    """Negative control: the interval is small enough to exclude an exponent that is 0.1 off."""
    run = power_of_one_weight(mo.Euclidean(), 2)
    late = run.log_time > 1
    log_time, loss = run.log_time[late].numpy(), run.log_inverse_loss[late].numpy()
    found = fit_exponent(log_time, loss - log_time)
    assert abs(found.value - 1.1) > 3 * found.uncertainty


def test_too_early_to_fit():
    assert fit_exponent(np.linspace(1, 19, 100), np.zeros(100)) is None


@pytest.mark.parametrize(("low", "high"), [(0.01, 0.5), (0.1, 30.0), (3.0, 600.0)])
def test_the_integral(low, high):
    """∫ e^v/v dv = Ei, and ∫ e^v dv, by their logarithms."""
    assert log_integral(-1.0, low, high) == pytest.approx(math.log(expi(high) - expi(low)))
    exact = high + math.log(-math.expm1(low - high))
    assert log_integral(0.0, low, high) == pytest.approx(exact)


def test_the_integral_far_out():
    """Lemma F.1 at 1e9: G(x) = (log x)^β x (1 − β/log x + …)."""
    value = log_integral(-1.5, 1.0, 1e9) - 1e9 + 1.5 * math.log(1e9)
    assert value == pytest.approx(1.5e-9, abs=2e-7)  # what a double of 1e9 can hold


def test_the_sharp_constant_of_lemma_d_2():
    """On q = w^D under gradient flow Lemma D.2 with L² is an equality, with less it is not sharp.

    The first display of the paper has L²/α.
    """
    path = Path.along(power_of_one_weight(mo.Euclidean(), 2, until=1e4))
    verdict = loss_integral(path)
    assert verdict.passed
    assert verdict.slack < 2e-4


class _Grown:
    """The late points of a trajectory whose soft margin γ̃ is given, with α = L = 1."""

    def __init__(self, log_margin):
        log_time = np.geomspace(1.0, 1e9, 60)
        # ℓ = log t and Q̂ = ℓ/γ̃: what `size_rate` reads of a `Path`.
        self.alpha, self.degree, self.late = 1.0, 1, torch.arange(60)
        self.loss = torch.from_numpy(log_time)
        self.trajectory = type("T", (), {"log_time": self.loss})
        self.soft_margin = torch.from_numpy(log_margin(np.log(log_time)))
        self.points = type("P", (), {"q_hat": self.loss / self.soft_margin.exp()})


@pytest.mark.parametrize(
    ("log_margin", "outcome"),
    [
        (lambda x: 0 * x, Outcome.HOLDS),
        # Out of a saddle: one tenth of an exponent until log t = 3e8, and nothing after.
        (lambda x: 0.1 * np.minimum(x, np.log(3e8)), Outcome.NOT_YET),
        # A power of log t for ever, which theory forbids, and one that grows.
        (lambda x: 0.1 * x, Outcome.FAILS),
        (lambda x: 0.005 * x**2, Outcome.FAILS),
    ],
)
def test_a_margin_that_still_settles_is_not_yet(log_margin, outcome):
    assert size_rate(_Grown(log_margin)).outcome is outcome
