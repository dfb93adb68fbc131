"""The max-margin references: duality proves each one, whatever solver found it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mirrorode as mo

NORMS = [1, 1.1, 1.5, 2, 3, 4, 10, math.inf]


def separable(samples, count, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, count, generator=generator, dtype=torch.float64)
    w = torch.randn(count, generator=generator, dtype=torch.float64)
    return x, torch.sign(x @ w)


def check(x, y, norm, found):
    """Primal feasibility, dual feasibility and no gap: together they prove optimality."""
    rows = y[:, None] * x
    assert float(torch.linalg.vector_norm(found.direction, ord=norm)) == pytest.approx(1)
    assert float((rows @ found.direction).min()) == pytest.approx(found.margin, rel=1e-12)
    assert bool((found.duals >= 0).all())
    image, conjugate = found.duals @ rows, {1: math.inf, math.inf: 1}.get(norm)
    conjugate = norm / (norm - 1) if conjugate is None else conjugate
    bound = float(torch.linalg.vector_norm(image, ord=conjugate) / found.duals.sum())
    assert found.margin <= bound * (1 + 1e-12)
    assert bound <= found.margin * (1 + 1e-8)
    # Σ μ_i y_i x_i is a subgradient of ½‖·‖² at w/margin: it has its length, and its product.
    solution = found.direction / found.margin
    assert float(image @ solution) == pytest.approx(1 / found.margin**2, rel=1e-8)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6), st.sampled_from(NORMS))
@settings(max_examples=60, deadline=None)
def test_duality_proves_every_one(samples, count, seed, norm):
    x, y = separable(samples, count, seed)
    check(x, y, norm, mo.max_margin(x, y, norm))


@pytest.mark.parametrize("norm", NORMS)
def test_one_sample_is_aligned(norm):
    """The margin of one sample is its dual norm."""
    x = torch.tensor([[3.0, -1.0, 0.5]], dtype=torch.float64)
    conjugate = {1: math.inf, math.inf: 1.0}.get(norm) or norm / (norm - 1)
    margin = float(torch.linalg.vector_norm(x, ord=conjugate))
    assert mo.max_margin(-x, [-1.0], norm).margin == pytest.approx(margin)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_scale_and_duplicates_change_nothing(norm, scale):
    x, y = separable(12, 4, 0)
    base = mo.max_margin(x, y, norm)
    other = mo.max_margin(scale * torch.cat([x, x]), torch.cat([y, y]), norm)
    assert other.margin == pytest.approx(scale * base.margin, rel=1e-8)


@pytest.mark.parametrize(
    ("samples", "count", "seed", "norm"), [(40, 5, 1, 2.5), (200, 2, 8, 1.1), (100, 2, 6, 10)]
)
def test_few_features_of_many_samples(samples, count, seed, norm):
    """Where the dual alone is solved badly: half the margin was lost, or all."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(samples, count))
    y = np.sign(x @ generator.normal(size=count))
    check(torch.from_numpy(x), torch.from_numpy(y), norm, mo.max_margin(x, y, norm))


def test_a_turned_direction_has_less_margin():
    """Negative control: 1 % away from the direction some margin is smaller."""
    x, y = separable(20, 5, 3)
    found = mo.max_margin(x, y, 2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        noise = torch.randn(5, generator=generator, dtype=torch.float64)
        turned = found.direction + 0.01 * noise
        assert float((y * (x @ turned)).min() / turned.norm()) < found.margin


@pytest.mark.parametrize(
    ("features", "labels", "norm", "must"),
    [
        ([[1.0, 0.0], [1.0, 0.0]], [1, -1], 2, "`labels` must be separated"),
        ([[1.0, 0.0], [-1.0, 0.0]], [1, 1], 1, "`labels` must be separated"),
        ([[1.0, 0.0], [-2.0, 0.0]], [1, 1], math.inf, "`labels` must be separated"),
        ([[1.0, 0.0], [-2.0, 0.0]], [1, 1], 3, "`labels` must be separated"),
        ([[0.0, 0.0]], [1], 2, "`features` must have a row"),
        ([[1.0]], [2], 2, "`labels` must be 1 or -1"),
        ([[1.0]], [1, 1], 2, "`labels` must have shape"),
        ([1.0], [1], 2, "`features` must have shape"),
        ([[math.nan]], [1], 2, "`features` must be finite"),
        ([[1.0]], [1], 0.5, "`norm` must be at least 1"),
        ([[1.0]], [1], math.nan, "`norm` must be at least 1"),
    ],
)
def test_refused(features, labels, norm, must):
    with pytest.raises(mo.InputError, match=must):
        mo.max_margin(features, labels, norm)


@pytest.mark.parametrize("name", ["euclidean", "p3"])
def test_frozen_features_at_a_limit(small_run, name):
    """Corollary I.1: at log(1/loss) = 1e4 θ/L attains the frozen optimum to 1e-3, kinks too."""
    run = small_run(name)
    flow, theta = run.flow, run.theta[-1]
    found = mo.frozen_feature_max_margin(flow, theta)
    theta = theta / float(flow.margins(theta).min()) ** 0.5
    size = float(torch.linalg.vector_norm(theta, ord=flow.potential.degree))
    # θ/L has the margin one for the frozen features, hence L/φ for a unit direction.
    assert found.margin * size / 2 == pytest.approx(1, abs=1e-3)
    cosine = found.direction @ theta / found.direction.norm() / theta.norm()
    assert float(cosine) > 0.999


def test_frozen_features_at_a_random_point(small_flow):
    """Negative control: far from a limit the frozen optimum is far better."""
    flow = small_flow("euclidean")
    theta = mo.solve(flow, flow.network.initial(1), until=mo.LogInverseLoss(0.5)).theta[-1]
    found = mo.frozen_feature_max_margin(flow, theta)
    theta = theta / float(flow.margins(theta).min()) ** 0.5
    assert found.margin * float(theta.norm()) / 2 > 1.1


def test_a_linear_flow_tends_to_the_reference():
    """A linear classifier: the KKT residual vanishes, and its margin is that of the reference.

    Of a random point the residual is above 0.1.
    """
    data = mo.Dataset(torch.tensor([[2.0, 1.0], [1.0, -0.5], [-1.0, 1.5]]), torch.ones(3))
    flow = mo.MirrorFlow(mo.MLP((2, 1)), data, mo.Euclidean())
    run = mo.solve(flow, torch.tensor([0.3, -0.2]), until=mo.LogInverseLoss(1e6), rtol=1e-8)
    best = mo.max_margin(data.x, data.y, 2)
    scale = flow.network.output_scale
    assert float(mo.norm_margin(flow, run.theta[-1], 2)) / scale == pytest.approx(best.margin)
    assert mo.kkt(flow, run.theta[-1]).residual <= 1e-3
    assert mo.kkt(flow, torch.tensor([1.0, 1.5])).residual > 0.1


def test_prints_itself():
    x, y = separable(20, 5, 3)
    assert "support vectors" in repr(mo.max_margin(x, y, 2))
    assert isinstance(mo.max_margin(np.asarray(x), np.asarray(y), 1).margin, float)
