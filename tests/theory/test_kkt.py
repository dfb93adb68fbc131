"""Theorem 4.7: the residual is zero at KKT points of the margin problem, and only there."""

import math
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize, nnls, root

import mirrorode as mo
from mirrorode.theory.kkt import SUPPORT, _Problem
from tests.conftest import POTENTIALS

LINEAR = {
    "hyperbolic": mo.HyperbolicEntropy(0.1),
    "euclidean": mo.Euclidean(),
    "p2": mo.SmoothedHomogeneous(2, 0.7),
    "p3": mo.SmoothedHomogeneous(3, 1.0),
    "p4": mo.SmoothedHomogeneous(4, 0.5),
}


def separable(count=12, dim=20):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    y = torch.where(x @ torch.linspace(-1, 2, dim).double() > 0, 1.0, -1.0).double()
    return mo.Dataset(x, y)


def max_margin(rows, p):
    """The minimiser of ‖θ‖_p over rows·θ ≥ 1: a linear program, or the smooth dual problem."""
    count, dim = rows.shape
    if p == 1:
        both = np.hstack([-rows, rows])
        found = linprog(np.ones(2 * dim), both, -np.ones(count), bounds=(0, None))
        return found.x[:dim] - found.x[dim:]

    def primal(lam, rows):
        image = lam @ rows
        return np.sign(image) * np.abs(image) ** (1 / (p - 1))

    def dual(lam):
        value = (np.abs(lam @ rows) ** (p / (p - 1))).sum() * (1 - 1 / p) - lam.sum()
        return value, rows @ primal(lam, rows) - 1

    options = {"ftol": 1e-16, "gtol": 1e-13, "maxiter": 10_000, "maxfun": 100_000}
    bounds = [(0, None)] * count
    lam = minimize(dual, np.full(count, 0.1), jac=True, bounds=bounds, options=options).x
    active = rows[lam > 1e-3 * lam.max()]
    exact = root(lambda lam: active @ primal(lam, active) - 1, lam[lam > 1e-3 * lam.max()])
    return primal(exact.x, active)


@pytest.mark.parametrize("name", LINEAR)
def test_linear_model(name):
    """The only KKT point of a linear model is the max-margin direction of the horizon."""
    data, potential = separable(), LINEAR[name]
    flow = mo.MirrorFlow(mo.MLP((20, 1)), data, potential)
    theta = torch.from_numpy(max_margin((data.y[:, None] * data.x).numpy(), potential.degree))
    found = mo.kkt(flow, theta)
    assert found.residual < 1e-8
    assert found.kink_coefficients.shape == (0,)
    assert bool((found.multipliers >= 0).all())
    assert 2 <= len(found.support) <= 12
    # At a smallest margin of 1, φ² = Σ λ_i q_i = Σ λ_i.
    theta = theta / flow.margins(theta).min()
    horizon = float(potential.horizon(theta))
    assert float(found.multipliers.sum()) == pytest.approx(horizon**2, rel=1e-6)
    # Another horizon has another point, and so has a perturbed one.
    other = LINEAR["p3" if name != "p3" else "euclidean"]
    assert mo.kkt(mo.MirrorFlow(flow.network, data, other), theta).residual > 0.05
    noise = torch.randn(20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert mo.kkt(flow, theta + 0.1 * theta.norm() * noise / noise.norm()).residual > 0.03


def held_by_a_kink(size=1.0):
    """A KKT point in closed form whose two units each lie on the kink of the other's sample.

    With balanced units, w_1 = λ a_1 (x_1 − ξ x_2) is orthogonal to x_2 for ξ = x_1·x_2 = 3/5, and
    then λ(1 − ξ²)a_1 = ‖w_1‖ = a_1 gives λ = 25/16, at margins a_1 w_1·x_1 = 4/5 a_1².
    """
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    data = mo.Dataset(x, torch.tensor([1.0, -1.0]))
    flow = mo.MirrorFlow(mo.MLP((2, 2, 1), output_scale=1.0), data, mo.Euclidean())
    return flow, size * torch.tensor([0.8, -0.6, 0.0, 1.0, 1.0, -1.0], dtype=torch.float64)


def test_closed_form_with_kinks():
    flow, theta = held_by_a_kink()
    found = mo.kkt(flow, theta)
    assert found.residual < 1e-9
    torch.testing.assert_close(found.kink_coefficients, torch.full((2,), 0.6).double())
    torch.testing.assert_close(found.multipliers, torch.full((2,), 1.25).double())
    pairs = set(zip(found.kinks.unit.tolist(), found.kinks.sample.tolist(), strict=True))
    assert pairs == {(0, 1), (1, 0)}
    assert mo.kkt(flow, theta, clarke=False).residual > 0.3
    # Off the kink the gradients are single-valued, and the point is no KKT point.
    moved = theta + torch.tensor([0, 1e-6, 0, 0, 0, 0], dtype=torch.float64)
    assert len(mo.kkt(flow, moved).kinks) == 1
    assert mo.kkt(flow, moved).residual > 0.15
    assert mo.kkt(flow, moved, on_kink=1e-5).residual < 1e-5


def test_a_flow_ends_at_the_closed_form():
    """Started elsewhere, it slides into the point above, and the residual falls with log(1/𝓛)."""
    flow, _ = held_by_a_kink()
    start = torch.tensor([0.9, -0.1, 0.2, 0.8, 1.0, -1.1], dtype=torch.float64)
    points = [mo.LogInverseLoss(10.0**k) for k in (2, 4, 6)]
    run = mo.solve(flow, start, until=points[-1], rtol=1e-8, saveat=points)
    found = [mo.kkt(flow, theta) for theta in run.theta[1:]]
    residuals = [one.residual for one in found]
    assert residuals[0] > 5 * residuals[1] > 25 * residuals[2]
    assert residuals[2] < 1e-3
    torch.testing.assert_close(
        found[-1].kink_coefficients, torch.full((2,), 0.6).double(), rtol=0, atol=5e-3
    )


@pytest.fixture(scope="module")
def far_run(small_flow):
    """The small problem at log(1/𝓛) = 1e2, 1e4, 1e6, by potential."""
    runs = {}

    def integrate(name):
        if name not in runs:
            flow = small_flow(name)
            points = [mo.LogInverseLoss(10.0**k) for k in (2, 4, 6)]
            start = flow.network.initial(1)
            run = mo.solve(flow, start, until=points[-1], rtol=1e-6, saveat=points)
            assert run.success
            runs[name] = flow, run.theta[1:]
        return runs[name]

    return integrate


@pytest.mark.parametrize("name", POTENTIALS)
def test_residual_falls_along_a_flow(far_run, name):
    flow, path = far_run(name)
    residuals = [mo.kkt(flow, theta).residual for theta in path]
    assert residuals[0] < 0.1
    assert residuals[0] > 2 * residuals[1] > 8 * residuals[2]


def test_without_kink_coefficients_it_does_not(far_run):
    """Negative control: this run slides for ever, and the gradients of the off side make no limit.

    At θ itself the sign of a sliding pre-activation is round-off, and single-valued gradients of
    the sixteen sides are between 1e-4 (all on) and 0.25 (all off) away: the sides are set here.
    """
    flow, path = far_run("euclidean")
    found = mo.kkt(flow, path[-1])
    inside = (found.kink_coefficients > 0.01) & (found.kink_coefficients < 0.99)
    assert bool(inside.any())
    off = path[-1].clone()
    incoming = flow.network.unflatten(off)["W1"]
    for unit, sample in zip(found.kinks.unit, found.kinks.sample, strict=True):
        incoming[unit] -= 1e-9 * incoming[unit].norm() * flow.dataset.x[sample]
    assert bool((flow.network.forward(off, flow.dataset.x).preactivations[0] != 0).all())
    assert mo.kkt(flow, off, clarke=False).residual > 0.1 > 10 * found.residual


@pytest.mark.parametrize("name", POTENTIALS)
def test_a_perturbed_end_is_far(far_run, name):
    """Negative control: 3 % of noise."""
    flow, path = far_run(name)
    noise = torch.randn(path.shape[1], generator=torch.Generator().manual_seed(0)).double()
    assert mo.kkt(flow, path[-1] * (1 + 0.03 * noise)).residual > 0.02


@pytest.mark.parametrize("name", POTENTIALS)
@pytest.mark.parametrize("size", [1e-8, 1e9])
def test_length_does_not_matter(far_run, name, size):
    flow, path = far_run(name)
    found, scaled = mo.kkt(flow, path[0]), mo.kkt(flow, size * path[0])
    assert scaled.residual == pytest.approx(found.residual, rel=1e-6)
    torch.testing.assert_close(scaled.multipliers, found.multipliers, rtol=1e-3, atol=1e-6)


def vertices(flow, theta, kinks):
    """Rows y ∂f at q_min = 1 for every sample on every way to switch its pairs, and the samples."""
    data = flow.dataset
    theta = theta / float(flow.margins(theta).min()) ** (1 / flow.network.degree)
    pattern = flow.network.forward(theta, data.x).pattern
    rows, owner = [], []
    for sample in range(len(data)):
        own = torch.nonzero(kinks.sample == sample)[:, 0].tolist()
        for states in product([False, True], repeat=len(own)):
            here = [on[sample : sample + 1].clone() for on in pattern]
            for pair, state in zip(own, states, strict=True):
                here[int(kinks.layer[pair])][0, kinks.unit[pair]] = state
            forward = flow.network.forward(theta, data.x[sample : sample + 1], here)
            rows.append(data.y[sample] * flow.network.backward(forward)[0][0])
            owner.append(sample)
    return theta, torch.stack(rows).numpy(), (flow.margins(theta)[owner]).numpy()


def nearest_hull(rows, margins, theta, alpha, degree):
    """The residual for a p-norm over the cone of all vertices, by non-negative least squares."""
    size = float(torch.linalg.vector_norm(theta, ord=alpha))
    target = (theta.sign() * theta.abs() ** (alpha - 1) * size ** (2 - alpha)).numpy()
    length = np.linalg.norm(target)
    price = degree * (margins - 1) / size**2
    columns = np.hstack([rows / length, price[:, None]]).T
    return nnls(columns / np.linalg.norm(columns, axis=0), np.append(target / length, 0))[1]


@pytest.mark.parametrize("name", POTENTIALS)
def test_against_all_vertices(far_run, name):
    """The Clarke subdifferential is the hull of the gradients on all neighbouring patterns."""
    flow, path = far_run(name)
    for point in path:
        found = mo.kkt(flow, point)
        theta, rows, margins = vertices(flow, point, found.kinks)
        rows, margins = rows[margins < 2], margins[margins < 2]
        alpha = flow.potential.degree
        if alpha == 1:
            size, (count, n) = float(theta.abs().sum()), rows.shape
            top = -np.ones((2 * n, 1))
            exact = linprog(
                np.append(np.zeros(count), 1), np.hstack([np.vstack([rows.T, -rows.T]), top]),
                np.zeros(2 * n), np.append(np.ones(count), 0)[None], [1.0],
            )  # fmt: skip
            best = size * exact.fun / 2 - 1
        else:
            best = nearest_hull(rows, margins, theta, alpha, degree=2)
        assert found.residual == pytest.approx(best, rel=1e-5)
        assert bool((found.multipliers >= 0).all())
        assert bool(((found.kink_coefficients >= 0) & (found.kink_coefficients <= 1)).all())


def test_kinks_in_two_layers():
    """What λ and ξ are said to make is what a network with the slopes ξ at its kinks makes."""
    data = mo.teacher_student(8, seed=1)
    flow = mo.MirrorFlow(mo.MLP((2, 9, 4, 1)), data, mo.Euclidean())
    weights = flow.network.unflatten(flow.network.initial(4))
    first, x = weights["W1"], data.x[0]
    for unit in (0, 1):
        first[unit] -= (first[unit] @ x) * x
    below = torch.relu(first @ x)
    for unit in (0, 3):
        weights["W2"][unit] -= (weights["W2"][unit] @ below) / below.square().sum() * below
    theta = torch.cat([part.reshape(-1) for part in weights.values()])
    # Label every sample as the network does, and take the others far away.
    far = torch.cat([data.x[:1], 1e3 * data.x[1:]])
    data = mo.Dataset(far, torch.sign(flow.network.output(theta, far)))
    flow = mo.MirrorFlow(flow.network, data, mo.Euclidean())
    theta = theta / float(flow.margins(theta)[0].abs()) ** (1 / 3)
    problem = _Problem.at(flow, theta, True, 1e-9)
    theta, clarke = problem.theta, problem.clarke
    assert sorted(zip(*clarke.kinks.lists(), strict=True)) == [
        (0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 3, 0),
    ]  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        xi = torch.rand(4, generator=generator, dtype=torch.float64)
        u = torch.zeros(len(problem.samples) + 4, dtype=torch.float64)
        place = int(torch.nonzero(problem.samples == 0))
        u[place] = 2.5
        for layer in (1, 0):
            here = torch.nonzero(clarke.kinks.layer == layer)[:, 0]
            u[len(problem.samples) + here] = xi[here] * (clarke.full @ u)[here]
        made = u @ clarke.columns
        variable = theta.clone().requires_grad_()
        parts = flow.network.unflatten(variable)
        post = x
        for layer in (0, 1):
            pre = parts[f"W{layer + 1}"] @ post
            slope = (pre > 1e-9).double()
            for index in torch.nonzero(clarke.kinks.layer == layer)[:, 0].tolist():
                slope[clarke.kinks.unit[index]] = xi[index]
            post = pre * slope
        (2.5 * data.y[0] * 0.25 * (parts["W3"] @ post)).sum().backward()
        torch.testing.assert_close(made, variable.grad, rtol=1e-9, atol=1e-9)
        *_, back = clarke.recover(u)
        torch.testing.assert_close(back, xi, rtol=1e-9, atol=1e-9)
    found = mo.kkt(flow, theta)
    _, rows, margins = vertices(flow, theta, found.kinks)
    assert nearest_hull(rows, margins, theta, 2, degree=3) <= found.residual + 1e-9
    assert found.residual < mo.kkt(flow, theta, clarke=False).residual


def test_captured_units_cost_nothing():
    """A ReLU unit at zero is on the kink of every sample; it changes no residual."""
    flow, theta = held_by_a_kink()
    wide = mo.MirrorFlow(mo.MLP((2, 3, 1), output_scale=1.0), flow.dataset, flow.potential)
    parts = flow.network.unflatten(theta)
    zero = torch.zeros(1, 2, dtype=torch.float64)
    grown = torch.cat([parts["W1"], zero]).reshape(-1), parts["W2"].reshape(-1), zero[0, :1]
    found = mo.kkt(wide, torch.cat(grown))
    assert found.residual < 1e-9
    assert len(found.kinks) == 2


def test_prints():
    flow, theta = held_by_a_kink()
    text = str(mo.kkt(flow, theta))
    assert "2 support vectors, 2 kinks in use of 2" in text
    assert "residual" in text


def test_refuses():
    flow, theta = held_by_a_kink()
    with pytest.raises(mo.InputError, match="`theta` must have positive margins"):
        mo.kkt(flow, -theta)
    with pytest.raises(mo.InputError, match=r"`theta` must have shape \(6,\)"):
        mo.kkt(flow, theta[:4])
    with pytest.raises(mo.InputError, match="`theta` must be finite"):
        mo.kkt(flow, theta * math.nan)

    class NoDegree(mo.Euclidean):
        degree = None

    class OtherHorizon(mo.SmoothedHomogeneous):
        degree = 2.0

    for potential, word in ((NoDegree(), "degree"), (OtherHorizon(3, 1.0), "horizon")):
        with pytest.raises(mo.InputError, match=word):
            mo.kkt(mo.MirrorFlow(flow.network, flow.dataset, potential), theta)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("euclidean", (8e-2, 3e-2, 1.5e-2, 5e-3)),
        ("p3", (3e-2, 3e-3, 3e-4, 1e-5)),
        ("hyperbolic", (0.4, 0.1, 3e-3, 1e-4)),
    ],
)
def test_the_papers_problem(name, most):
    """Two layers, 100 units: the residual at log(1/𝓛) = 1e2, 1e4, 1e6, 1e9."""
    flow = mo.MirrorFlow(mo.MLP((2, 100, 1)), mo.teacher_student(seed=42), POTENTIALS[name])
    points = [mo.LogInverseLoss(10.0**k) for k in (2, 4, 6, 9)]
    run = mo.solve(flow, flow.network.initial(0), until=points[-1], rtol=1e-5, saveat=points)
    assert run.success
    found = [mo.kkt(flow, theta) for theta in run.theta[1:]]
    residuals = [one.residual for one in found]
    assert all(value < bound for value, bound in zip(residuals, most, strict=True))
    assert all(later < 0.6 * earlier for earlier, later in pairwise(residuals))
    share = found[-1].multipliers / found[-1].multipliers.sum()
    margins = flow.margins(run.theta[-1])
    assert float((margins[share > SUPPORT] / margins.min()).max()) < 1 + 1e-3
