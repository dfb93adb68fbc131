"""Deep networks: the explicit early phase, sliding in several layers, dissipation of each step."""

import math

import numpy as np
import pytest
import torch

import mirrorode as mo
from mirrorode.flow import dormand_prince, ends, events, explicit, field, normals, switching
from mirrorode.flow.kinks import Pairs
from mirrorode.flow.state import Run, start
from tests.conftest import POTENTIALS
from tests.flow.test_kinked_flow import chattering


def _flow(name, widths=(2, 12, 10, 1), samples=20, seed=1):
    return mo.MirrorFlow(mo.MLP(widths), mo.teacher_student(samples, seed=seed), POTENTIALS[name])


def _some_pairs(network):
    triples = [
        (layer, unit, sample)
        for layer in range(len(network.units))
        for unit in range(3)
        for sample in (1, 4)
    ]
    return Pairs.of(triples, torch.device("cpu"))


@pytest.mark.parametrize("widths", [(3, 6, 1), (2, 6, 5, 1), (2, 6, 5, 4, 1)])
def test_factored_normals_are_the_dense_ones(widths):
    """Gram matrix, products and sizes agree with those of the rows themselves."""
    network = mo.MLP(widths)
    x = torch.randn(9, widths[0], generator=torch.Generator().manual_seed(0)).double()
    theta = torch.stack([network.initial(seed) for seed in range(3)])
    pairs = _some_pairs(network)
    pattern = [on[:, pairs.sample] for on in network.forward(theta, x).pattern]
    found = normals.of_pairs(network, theta, x, pairs, pattern)
    rows = theta.new_zeros(3, len(pairs), network.size)
    for layer in range(len(network.units)):
        here = torch.nonzero(pairs.layer == layer)[:, 0]
        below = [on[:, here] for on in pattern]
        inputs = x[pairs.sample[here]]
        rows[:, here] = network.normals(theta, inputs, below, layer, pairs.unit[here])
    dense = normals.DenseNormals(rows)
    weight = theta.abs() + 0.1
    vectors = torch.stack([theta, weight, theta.cos()], 1)
    for of in (
        lambda n: n.gram(weight),
        lambda n: n.along(vectors),
        lambda n: n.combine(n.along(vectors)),
        lambda n: n.sizes(weight),
    ):
        torch.testing.assert_close(of(found), of(dense), rtol=1e-12, atol=1e-12)


def test_pull_is_the_weighted_gradient():
    """Σ w_r ∂f_r/∂θ without the rows, and the weighted signals."""
    network, x = mo.MLP((2, 6, 5, 1)), torch.randn(9, 2).double()
    forward = network.forward(network.initial(0), x)
    weight = torch.linspace(-1, 1, 9, dtype=torch.float64)
    gradient, signals = network.backward(forward)
    total, weighted = network.pull(forward, weight)
    torch.testing.assert_close(total, weight @ gradient)
    for signal, expected in zip(weighted, signals, strict=True):
        torch.testing.assert_close(signal, weight[:, None] * expected)


def test_box_least_is_optimal():
    """At the minimum over the box the gradient vanishes inside and points outwards on faces."""
    generator = torch.Generator().manual_seed(1)
    for size in (1, 3, 12, 30):
        root = torch.randn(size, size + 5, generator=generator).double()
        matrix, slope = root @ root.T, 3 * torch.randn(size, generator=generator).double()
        free = torch.rand(size, generator=generator) < 0.8
        x = switching.box_least(matrix, slope, free)
        gradient = matrix @ x + slope
        assert bool((x[~free] == 1).all())
        x, gradient = x[free], gradient[free]
        assert bool((gradient[(x > 0) & (x < 1)].abs() < 1e-8).all())
        assert bool((gradient[x == 0] > -1e-8).all())
        assert bool((gradient[x == 1] < 1e-8).all())


@pytest.mark.parametrize("name", POTENTIALS)
def test_coefficients_of_one_sample_in_two_layers(name):
    """With ξ put in as slopes of the sliding units, the plain gradient is the projected one."""
    flow = _flow(name)
    state = start(flow, flow.network.initial(0))
    pairs = Pairs.of([(1, 2, 5), (0, 3, 5), (0, 4, 7), (1, 6, 7)], torch.device("cpu"))
    dual, mode, entered, _ = events.enter(flow, state.dual, state.mode, pairs)
    assert len(entered) == 4
    for _ in range(4):  # from far away
        dual = events.snap(flow, dual, mode)
    at = field.evaluate(flow, dual, mode)
    pattern = [on.double() for on in mode.pattern]
    for layer, unit, sample, xi in zip(*mode.slides.lists(), at.coefficients, strict=True):
        pattern[layer][sample, unit] = xi
    forward = flow.network.forward(at.theta, flow.dataset.x, pattern)
    gradient, _ = flow.network.pull(forward, at.share * flow.dataset.y)
    torch.testing.assert_close(gradient, at.direction, rtol=1e-9, atol=1e-12)
    # And it is tangent to all four kinks.
    moving = field.normals_of(flow, at.theta, mode.slides, mode)
    along = moving.along((at.inverse * at.direction)[None])
    assert float(along.abs().max()) < 1e-12


def _through(flow, dual, h, steps):
    """Midpoint steps on true patterns."""

    def slope(dual):
        return flow.vector_field(flow.potential.inverse_gradient(dual))

    for _ in range(steps):
        dual = dual + h / steps * slope(dual + 0.5 * h / steps * slope(dual))
    return dual


def test_a_step_is_of_second_order_across_its_kinks():
    """A step that crosses several kinks unlocated: its error falls at least as h²."""
    flow = _flow("euclidean", samples=40)
    run, state = Run(flow, 1e-5, 1e-9), start(flow, flow.network.initial(0))
    first = field.evaluate(flow, state.dual, state.mode)
    scale, errors, plain = explicit.step_scale(run, state.dual), [], []
    for h in (0.8, 0.2):
        smooth = dormand_prince.take(run, state.mode, first, h, scale)
        end = ends.finish(run, state, smooth, scale, 1.0)
        assert len(end.hits.pairs) > 0
        exact = _through(flow, state.dual, h, 4000)
        errors.append(float((end.behind.field.dual - exact).norm()))
        plain.append(float((smooth.last.dual - exact).norm()))
    assert errors[1] < errors[0] / 4**2
    assert errors[0] < 0.1 * plain[0]


@pytest.mark.parametrize(("name", "seed"), [("euclidean", 1), ("p3", 2), ("hyperbolic", 3)])
def test_early_phase_against_chattering(name, seed):
    """Tiny explicit steps on true patterns converge to it, at their order one."""
    flow = _flow(name, seed=seed)
    begun = flow.network.initial(seed)
    run = mo.solve(flow, begun, until=mo.LogInverseLoss(-1.5), rtol=1e-7)
    assert sum(event.kind == "slide" for event in run.events) > 0
    direction, errors = run.theta[-1] / run.theta[-1].norm(), []
    for h in (0.08, 0.02):
        end = chattering(flow, begun, -1.5, h)
        errors.append(float((end / end.norm() - direction).norm()))
    assert errors[1] < 1e-2
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("name", POTENTIALS)
def test_dissipation(name):
    """∫‖ż‖²_D is the change of log(1/𝓛): it holds for the right selection at kinks only."""
    flow = _flow(name, seed=2)
    run = mo.solve(flow, flow.network.initial(1), until=mo.LogInverseLoss(30.0), rtol=1e-6)
    assert run.success
    gained = np.array([step.loss[-1] - step.loss[0] for step in run.steps])
    residual = np.array([step.dissipated for step in run.steps]) - gained
    assert bool(np.isfinite(residual).all())
    assert float(np.abs(residual).max()) < 1e-4
    slides = [event for event in run.events if event.kind == "slide"]
    assert all(event.time == math.exp(event.log_time) for event in slides)


def test_the_landing_is_exact():
    """A loss, or a time, that falls into the explicit phase is met."""
    flow = _flow("euclidean")
    begun = flow.network.initial(0)
    run = mo.solve(flow, begun, until=mo.LogInverseLoss(-1.0), saveat=[mo.LogTime(1.0)])
    assert run.success
    assert float(run.log_time[1]) == pytest.approx(1.0, abs=1e-9)
    assert float(run.log_inverse_loss[-1]) == pytest.approx(-1.0, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", POTENTIALS)
@pytest.mark.parametrize("data_seed", [42, 7, 11])
def test_a_hundred_by_a_hundred(name, data_seed):
    """Three layers of the paper's size reach 𝓛 = e^{−1e9}; the balance holds all the way."""
    flow = mo.MirrorFlow(
        mo.MLP((2, 100, 100, 1)), mo.teacher_student(seed=data_seed), POTENTIALS[name]
    )
    far = mo.LogInverseLoss(1e9)
    run = mo.solve(flow, flow.network.initial(0), until=far, saveat=[], rtol=1e-5)
    assert run.success
    assert mo.verify(run).passed
