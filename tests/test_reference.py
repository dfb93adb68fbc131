"""The reference against closed forms, its certificate, and what that catches."""

import math

import numpy as np
import pytest
import torch

import mirrorode as mo
from tests import kinked
from tests.inclusion import Inclusion
from tests.reference import FOLDER, NAMES, Reference, problem

EVENTS = {
    "must not stick": {"kink": 1},
    "leaves": {"kink": 1, "slide": 1, "exit": 1},
    "captured": {"slide": 1, "capture": 1},
}


@pytest.mark.parametrize("exact", kinked.FLOWS, ids=lambda exact: exact.name)
def test_closed_forms_with_kinks(exact):
    """θ at times in every phase, ξ on the kink, and the events that there are, no others."""
    reference = Reference(exact.flow, exact.start, exact.trainable)
    for time in exact.times:
        reference.run(time=time)
        np.testing.assert_allclose(reference.theta, exact.theta(time), rtol=1e-9, atol=3e-10)
        if exact.entry < time < exact.exit:
            assert reference.xi[0] == pytest.approx(exact.xi(time), rel=1e-8)
    assert reference.residual < 2e-10
    events = {kind: count for kind, count in reference.events.items() if count}
    assert events == EVENTS.get(exact.name, {"kink": 1, "slide": 1})


def test_the_general_solution_is_the_euclidean_one():
    """`slides_for_ever` by quadrature against its logarithms."""
    exact = kinked.slides_for_ever(mo.Euclidean())
    assert exact.entry == pytest.approx(math.exp(4 / 3) - math.exp(0.5), rel=1e-12)
    w = math.log(math.exp(4 / 3) + 0.64 * (10 - exact.entry))
    np.testing.assert_allclose(exact.theta(10), [w, -0.75 * w, 1], rtol=1e-12)
    assert exact.xi(10) == pytest.approx(0.6 * math.exp(-w), rel=1e-12)


def signed_residual(exact, time: float, steps: int) -> float:
    """Classical Runge–Kutta with the pattern of the signs at every stage: the residual."""
    field = Inclusion(exact.flow, exact.start, exact.trainable)

    def slope(state):
        weights = field.geometry.primal(state[:-2].reshape(field.shape), field.sign)[:, 1:]
        field.on = (weights @ field.x.T > 0).astype(float)
        return field.field(state)

    # In the clock σ, dσ = e^{−ℓ} dt, up to the σ at which the exact solution has reached `time`.
    reference = Reference(exact.flow, exact.start, exact.trainable).run(time=time)
    state, h = field.state, reference.clock / steps
    for _ in range(steps):
        first = slope(state)
        second = slope(state + h / 2 * first)
        third = slope(state + h / 2 * second)
        state = state + h / 6 * (first + 2 * second + 2 * third + slope(state + h * third))
    slope(state)
    return abs(state[-1] - (field.ell - field.ell0))


def test_negative_control_signs_do_not_slide():
    """Without sliding the certificate stays large however small the step: it is no matter of h."""
    exact = kinked.slides_for_ever(mo.Euclidean())
    residuals = [signed_residual(exact, 8.0, steps) for steps in (100, 1000, 10000)]
    assert min(residuals) > 1e-2
    assert residuals[2] == pytest.approx(residuals[1], rel=0.1)
    assert Reference(exact.flow, exact.start, exact.trainable).run(time=8.0).residual < 1e-10


def release_problem() -> tuple[mo.MirrorFlow, torch.Tensor]:
    """Twelve random samples, six neurons: one is captured, held, and released again."""
    generator = torch.Generator().manual_seed(10)
    x = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    y = torch.randint(2, (12,), generator=generator) * 2.0 - 1.0
    network = mo.MLP((2, 6, 1), output_scale=1.0)
    return mo.MirrorFlow(network, mo.Dataset(x, y), mo.Euclidean()), network.initial(10)


def test_capture_and_release():
    """A held neuron is let go by an event; tolerances a hundred apart agree."""
    flow, start = release_problem()
    runs = [Reference(flow, start, rtol=rtol).run(ell=2.0) for rtol in (1e-8, 1e-10)]
    assert [run.events["release"] for run in runs] == [1, 1]
    assert runs[1].residual < 1e-9
    np.testing.assert_allclose(runs[0].theta, runs[1].theta, atol=1e-6)
    assert abs(math.log(runs[0].state[-2] / runs[1].state[-2])) < 1e-6


def test_the_certificate_falls_with_the_tolerance():
    """Through sliding, captures and releases the residual is proportional to rtol, or better."""
    flow, start = release_problem()
    coarse, fine = (Reference(flow, start, rtol=rtol).run(ell=0.0) for rtol in (1e-6, 1e-9))
    assert fine.residual < 1e-2 * coarse.residual < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_stored_references(name):
    """Each is certified, lies at its ℓ, and has the balance of every neuron of its start."""
    flow, start = problem(name)
    stored = np.load(FOLDER / f"{name}.npz")
    for ell in (2, 10):
        theta = torch.from_numpy(stored[f"theta{ell}"])
        assert stored[f"residual{ell}"] < 1e-9
        assert float(flow.log_inverse_loss(theta)) == pytest.approx(ell, abs=1e-9)
        balance = [
            (terms["W1"].sum(1) - terms["W2"][0]).numpy()
            for terms in (
                flow.network.unflatten(flow.potential.balance_term(point))
                for point in (start, theta)
            )
        ]
        size = flow.potential.balance_term(theta).max()
        np.testing.assert_allclose(balance[1], balance[0], atol=1e-8 * float(size))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hyp_42_0", "gd_42_0", "p3_42_0"])
def test_stored_references_can_be_computed_again(name):
    """From the start to ℓ = 2 at a tenfold tolerance: the same direction to 1e-8."""
    flow, start = problem(name)
    theta = Reference(flow, start, rtol=1e-9).run(ell=2.0).theta
    stored = np.load(FOLDER / f"{name}.npz")["theta2"]
    apart = theta / np.linalg.norm(theta) - stored / np.linalg.norm(stored)
    assert np.linalg.norm(apart) < 1e-8
