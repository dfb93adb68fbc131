"""`assert_balanced` fails, and says why, for what keeps no balance equation."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

import mirrorode as mo
from mirrorode.testing import assert_balanced, assert_balanced_along


@dataclass(frozen=True)
class Softened(mo.SeparablePotential):
    """r(t) = t²/2 + cosh t, as a user would write it."""

    def value(self, theta):
        return 0.5 * theta**2 + torch.cosh(theta)


@dataclass(frozen=True)
class Coupled(mo.SeparablePotential):
    """R(θ) = |θ|²/2 + |θ|⁴/4, which is no sum over coordinates."""

    def value(self, theta):
        square = theta.square()
        return 0.5 * square + 0.25 * square * square.sum(-1, keepdim=True)


def _module():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(2, 8, bias=False), nn.LeakyReLU(0.2), nn.Linear(8, 1, bias=False)
    )


def _flow(potential, module=None):
    return mo.MirrorFlow(mo.Network(module or _module()), mo.teacher_student(10, seed=3), potential)


def _descent(flow, step, count):
    """Mirror descent with normalised steps, (count + 1, n)."""
    dual = flow.potential.gradient(flow.network.current())
    rows = [flow.potential.inverse_gradient(dual)]
    for _ in range(count):
        dual = dual + step * flow.vector_field(rows[-1])
        rows.append(flow.potential.inverse_gradient(dual))
    return torch.stack(rows)


def test_a_network_and_a_potential_of_ones_own():
    flow = _flow(Softened())
    run = mo.solve(flow, flow.network.current(), until=mo.LogInverseLoss(-1.8), rtol=1e-5)
    assert run.success
    assert_balanced(run)
    assert_balanced_along(flow, run.theta, rtol=1e-12)


def test_a_linear_network_under_gradient_flow():
    """Its whole matrices are conserved to the tolerance, and only what units conserve corrected."""
    network = mo.MLP((2, 5, 4, 1), activation="linear")
    flow = mo.MirrorFlow(network, mo.teacher_student(20, seed=3), mo.Euclidean())
    run = mo.solve(flow, network.initial(0), until=mo.LogTime(2.0), rtol=1e-6)
    assert_balanced(run)
    # Negative control: turned incoming weights keep their norm, so that matrices alone show it.
    turned = run.theta.clone()
    turned[1:, :2] = run.theta[1:, :2].flip(-1)
    with pytest.raises(
        AssertionError, match=r"layer 1: WWᵀ − WᵀW \[0, \d\] drifts by .* \(\d of 27"
    ):
        assert_balanced(replace(run, theta=turned))


def test_a_run_that_did_not_start(small_flow):
    flow = small_flow("euclidean")
    run = mo.solve(flow, flow.network.initial(1), until=mo.LogInverseLoss(-100.0))
    with pytest.raises(AssertionError, match=r"only the start to look at, for the stopping rule"):
        assert_balanced(run)


def test_the_drift_of_the_integrator_counts(small_flow):
    """Negative control: what is corrected fails all the same, and the law is named."""
    flow = small_flow("euclidean")
    run = mo.solve(flow, flow.network.initial(1), until=mo.LogInverseLoss(1.0), rtol=1e-4)
    assert_balanced(run)
    lost = run.drift.clone()
    lost[-1, 4] += 0.01
    with pytest.raises(AssertionError, match=r"layer 1, unit 4 drifts by 1\.\d+e-02 .* \(1 of 13"):
        assert_balanced(replace(run, drift=lost))


@pytest.mark.parametrize("potential", [mo.Euclidean(), mo.HyperbolicEntropy(0.1)], ids=repr)
def test_long_steps_lose_it(potential):
    """Short steps of descent keep the law to their length, long ones do not."""
    flow = _flow(potential)
    assert_balanced_along(flow, _descent(flow, 1e-5, 50), rtol=1e-3)
    with pytest.raises(AssertionError, match=r"law of 0\.weight, unit \d drifts by .* steps lose"):
        assert_balanced_along(flow, _descent(flow, 0.5, 50), rtol=1e-3)


def test_another_geometry_has_another_law():
    """Iterates of gradient flow are not balanced under the hyperbolic entropy."""
    flow = _flow(mo.Euclidean())
    iterates = _descent(flow, 1e-3, 200)
    assert_balanced_along(flow, iterates, rtol=1e-2)
    with pytest.raises(AssertionError, match="a flow in another geometry does not have it"):
        assert_balanced_along(_flow(mo.HyperbolicEntropy(0.1)), iterates, rtol=1e-2)


def test_a_potential_that_is_not_separable():
    flow = _flow(Coupled())
    with pytest.raises(AssertionError, match=r"Coupled\(\) is not separable"):
        assert_balanced_along(flow, flow.network.current().expand(3, -1))


def test_a_small_network_is_no_excuse():
    """All of its coordinates are probes or move with them."""
    network = mo.MLP((2, 2, 1))
    flow = mo.MirrorFlow(network, mo.teacher_student(10, seed=3), Coupled())
    with pytest.raises(AssertionError, match=r"Coupled\(\) is not separable"):
        assert_balanced_along(flow, network.initial(0).expand(3, -1))
    assert_balanced_along(replace(flow, potential=Softened()), network.initial(0).expand(3, -1))


def test_no_law_to_check():
    frozen = _module()
    frozen[2].weight.requires_grad_(False)
    flow = _flow(mo.Euclidean(), frozen)
    with pytest.raises(AssertionError, match="no balance equation to check: the network has no"):
        assert_balanced_along(flow, flow.network.current().expand(3, -1))


def test_hidden_biases_are_refused_by_name():
    module = nn.Sequential(
        nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)
    )
    with pytest.raises(mo.InputError, match=r"homogeneous .* \(it has biases: 2\.bias, 4\.bias\)"):
        mo.Network(module)


def test_a_bias_of_the_first_layer_is_an_incoming_weight():
    """It keeps the network homogeneous; without its term the law is lost."""
    module = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1, bias=False))
    flow = _flow(mo.Euclidean(), module)
    run = mo.solve(flow, flow.network.initial(0), until=mo.LogInverseLoss(-1.0), rtol=1e-6)
    assert_balanced(run)
    weights = flow.network.unflatten(run.theta)
    law = weights["0.weight"].square().sum(-1) - weights["2.weight"][:, 0].square()
    assert float((law[-1] - law[0]).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: assert_balanced(3), "`trajectory` must be a Trajectory, but is 3"),
        (
            lambda: assert_balanced_along(_flow(mo.Euclidean()), torch.zeros(24)),
            "`theta` must have shape (T, 24) with T > 1, but is (24,)",
        ),
    ],
    ids=["no trajectory", "one point"],
)
def test_bad_input(build, sentence):
    with pytest.raises(mo.InputError) as error:
        build()
    assert str(error.value) == sentence
