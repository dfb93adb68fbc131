"""ReLU flows: a tight explicit reference, the inclusion at kinks, and the paper's problem."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import mirrorode as mo
from tests.conftest import POTENTIALS


def explicit_reference(flow, theta, loss, rtol=1e-10):
    """θ and t − t₀ at log(1/𝓛) = loss by DOP853 in the clock ℓ, through kinks on true patterns."""
    dual = flow.potential.gradient(theta)
    n = len(dual)

    def slope(level, state):
        here = flow.potential.inverse_gradient(torch.from_numpy(state[:n]))
        direction = flow.vector_field(here)
        speed = float((flow.potential.inverse_hessian(here) * direction.square()).sum())
        return np.append(direction.numpy() / speed, math.exp(level) / speed)

    start = float(flow.log_inverse_loss(theta))
    y0 = np.append(dual.numpy(), 0.0)
    found = solve_ivp(slope, (start, loss), y0, method="DOP853", rtol=rtol, atol=rtol / 100)
    assert found.success
    return flow.potential.inverse_gradient(torch.from_numpy(found.y[:n, -1])), found.y[n, -1]


@pytest.mark.slow
@pytest.mark.parametrize("name", POTENTIALS)
def test_against_an_explicit_reference(name):
    """The paper's problem from log(1/𝓛) = 2 to 8: direction to 1e-6 at rtol 1e-5, and log t."""
    flow = mo.MirrorFlow(mo.MLP((2, 100, 1)), mo.teacher_student(), POTENTIALS[name])
    until = mo.LogInverseLoss(2.0)
    start = mo.solve(flow, flow.network.initial(0), until=until, rtol=1e-5, atol=1e-7).theta[-1]
    exact, time = explicit_reference(flow, start, 8.0)
    run = mo.solve(flow, start, until=mo.LogInverseLoss(8.0), rtol=1e-5, atol=1e-7)
    direction = run.theta[-1] / run.theta[-1].norm()
    assert float((direction - exact / exact.norm()).norm()) < 1e-6
    assert float(run.log_time[-1]) == pytest.approx(math.log(time), rel=1e-5)
    assert run.stats.evaluations < 300


@pytest.mark.parametrize("name", POTENTIALS)
def test_small_problem_against_an_explicit_reference(name, small_flow):
    """From a start without sliding, through crossings; a loose tolerance is worse."""
    flow = small_flow(name)
    begun = mo.solve(flow, flow.network.initial(1), until=mo.LogInverseLoss(3.0), rtol=1e-6)
    start = begun.theta[-1]
    exact, _ = explicit_reference(flow, start, 7.0)
    errors = []
    for rtol in (1e-2, 1e-6):
        run = mo.solve(flow, start, until=mo.LogInverseLoss(7.0), rtol=rtol, atol=rtol / 100)
        direction = run.theta[-1] / run.theta[-1].norm()
        errors.append(float((direction - exact / exact.norm()).norm()))
    assert errors[1] < 1e-6
    assert errors[1] < errors[0]


def test_sliding_stays_on_the_kink(small_run):
    """Between a slide and its exit the pre-activation is zero: dense output stays on the kink."""
    run = small_run("p3")
    weights = run.flow.network.unflatten(run.theta)["W1"]
    pre = weights @ run.flow.dataset.x.T
    slides = [event for event in run.events if event.kind == "slide"]
    assert slides
    checked = 0
    for event in slides:
        same = [
            other.log_time
            for other in run.events
            if other.kind == "exit" and (other.unit, other.sample) == (event.unit, event.sample)
        ]
        end = min((time for time in same if time >= event.log_time), default=math.inf)
        inside = (run.log_time >= event.log_time) & (run.log_time <= end)
        size = weights[inside, event.unit].norm(dim=1)
        on_kink = pre[inside, event.unit, event.sample].abs() / size
        checked += len(on_kink)
        assert bool((on_kink < 1e-10).all())
    assert checked > len(slides)


def chattering(flow, theta, loss, h):
    """Euler with step h in loss time on the sign-based field, which chatters where others slide."""
    dual = flow.potential.gradient(theta)
    while True:
        theta = flow.potential.inverse_gradient(dual)
        level = float(flow.log_inverse_loss(theta))
        if level >= loss:
            return theta
        field = flow.vector_field(theta)
        speed = float((flow.potential.inverse_hessian(theta) * field.square()).sum())
        dual = dual + min(h, 1.0001 * (loss - level) / speed) * field


def test_against_chattering(small_flow):
    """The least-norm selection is the limit of tiny explicit steps: their error is O(h)."""
    flow = small_flow("p3")
    start = flow.network.initial(1)
    run = mo.solve(flow, start, until=mo.LogInverseLoss(-2.5), rtol=1e-7, atol=1e-9)
    assert sum(event.kind == "slide" for event in run.events) >= 3
    direction = run.theta[-1] / run.theta[-1].norm()
    errors = []
    for h in (0.08, 0.02):
        end = chattering(flow, start, -2.5, h)
        errors.append(float((end / end.norm() - direction).norm()))
    assert errors[1] < 1e-3
    assert errors[1] < 0.4 * errors[0]


@pytest.mark.parametrize(("name", "data_seed", "seed"), [("euclidean", 3, 0), ("p3", 0, 3)])
def test_capture_and_release(name, data_seed, seed):
    """Units that reach w = 0 on a line of sliding are held there and leave again."""
    data = mo.teacher_student(30, seed=data_seed)
    flow = mo.MirrorFlow(mo.MLP((2, 12, 1)), data, POTENTIALS[name])
    start = flow.network.initial(seed)
    run = mo.solve(flow, start, until=mo.LogInverseLoss(10.0), rtol=1e-5, atol=1e-7)
    assert run.success
    kinds = [event.kind for event in run.events]
    assert kinds.count("capture") >= 1
    held = 0
    for k, event in enumerate(run.events):
        if event.kind != "capture":
            continue
        after = [e for e in run.events[k + 1 :] if e.kind == "release" and e.unit == event.unit]
        end = min((e.log_time for e in after), default=math.inf)
        inside = (run.log_time > event.log_time) & (run.log_time < end)
        weights = run.flow.network.unflatten(run.theta[inside])["W1"][:, event.unit]
        held += int(inside.sum())
        assert bool((weights == 0).all())
    assert held > 0 or kinds.count("release") == kinds.count("capture")
    assert mo.verify(run).passed


def test_must_not_stick():
    """Samples (1, +1), (−1, −1) push a neuron with a > 0 the same way: it passes through zero."""
    data = mo.Dataset(torch.tensor([[1.0], [-1.0]]).double(), torch.tensor([1.0, -1.0]))
    flow = mo.MirrorFlow(mo.MLP((1, 1, 1)), data, mo.Euclidean())
    start = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    run = mo.solve(flow, start, until=mo.LogInverseLoss(5.0), rtol=1e-8, max_steps=500)
    # On either side d(a² − w²) = 0 and w moves towards +: it must end with w > 0.
    assert float(run.theta[0, 0]) < 0
    assert float(run.theta[-1, 0]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", POTENTIALS)
@pytest.mark.parametrize("data_seed", [42, 7])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_papers_problem(name, data_seed, seed):
    """To 𝓛 = e^{−115} in at most 10,000 evaluations, and on to e^{−1e6} in 20 steps a decade."""
    flow = mo.MirrorFlow(mo.MLP((2, 100, 1)), mo.teacher_student(seed=data_seed), POTENTIALS[name])
    start = flow.network.initial(seed)
    near = mo.solve(flow, start, until=mo.LogInverseLoss(115.0), rtol=1e-5, atol=1e-7)
    far = mo.solve(flow, start, until=mo.LogInverseLoss(1e6), rtol=1e-5, atol=1e-7)
    assert near.success
    assert far.success
    assert near.stats.evaluations <= 10_000
    assert far.stats.steps - near.stats.steps <= 20 * math.log10(1e6 / 115) + 1
    assert mo.verify(far).passed


def test_three_layers():
    """Depth three runs by the same code; its balance holds."""
    flow = mo.MirrorFlow(mo.MLP((2, 6, 5, 1)), mo.teacher_student(20, seed=1), mo.Euclidean())
    run = mo.solve(flow, flow.network.initial(0), until=mo.LogInverseLoss(4.0), rtol=1e-5)
    assert run.success
    assert mo.verify(run).passed


@pytest.mark.slow
def test_a_thousand_samples():
    """A kink that changes the speed a lot does not block the run: one is met at 3.8309."""
    flow = mo.MirrorFlow(mo.MLP((2, 100, 1)), mo.teacher_student(1000), mo.Euclidean())
    rule = mo.LogInverseLoss(10.0)
    assert mo.solve(flow, flow.network.initial(0), until=rule, rtol=1e-5, saveat=[]).success
