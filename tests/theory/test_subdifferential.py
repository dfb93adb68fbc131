"""The field of the flow is the element of least norm of −∂°𝓛, in the metric D."""

import pytest
import torch
from scipy.optimize import lsq_linear

import mirrorode as mo
from mirrorode.theory.subdifferential import Clarke, least_norm


def on_kinks(flow, seed=0):
    """A random θ with three neurons on a kink of a sample each, one of them on two."""
    theta = flow.network.initial(seed)
    weights = flow.network.unflatten(theta)
    for unit, sample in ((0, 3), (1, 7), (2, 11)):
        x = flow.dataset.x[sample]
        weights["W1"][unit] -= (weights["W1"][unit] @ x) / (x @ x) * x
    return theta


@pytest.mark.parametrize("name", ["hyperbolic", "euclidean", "p3"])
def test_least_norm_against_bounded_least_squares(small_flow, name):
    """Over ξ ∈ [0, 1] of each pair, by another solver; the off side is longer."""
    flow = small_flow(name)
    theta = on_kinks(flow)
    found = least_norm(flow, theta[None])[0]
    root = flow.potential.inverse_hessian(theta).sqrt()
    weights = flow.weights(theta)
    total = Clarke.at(flow, theta, torch.arange(len(weights))).weighted(weights)
    assert len(total.kinks) == 3
    columns = (total.full[:, :1] * total.normals * root).T.numpy()
    base = (total.gradients[0] * root).numpy()
    best = lsq_linear(columns, -base, bounds=(0, 1), tol=1e-14).x
    expected = total.gradients[0] + (torch.from_numpy(best) * total.full[:, 0]) @ total.normals
    torch.testing.assert_close(found * root, expected * root, rtol=1e-6, atol=1e-7)
    shorter = float((root * found).norm())
    for _ in range(5):
        xi = torch.rand(3, dtype=torch.float64)
        other = total.gradients[0] + (xi * total.full[:, 0]) @ total.normals
        assert shorter <= float((root * other).norm()) + 1e-12


def test_several_kinks_of_one_neuron():
    """Neurons in three dimensions on two kinks each: no closed form, the cone does it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    data = mo.Dataset(x, torch.sign(x[:, 0]))
    flow = mo.MirrorFlow(mo.MLP((3, 4, 1)), data, mo.Euclidean())
    theta = flow.network.initial(2)
    across = torch.linalg.cross(x[0], x[1])
    flow.network.unflatten(theta)["W1"][0] = across / across.norm()
    found = least_norm(flow, theta[None])[0]
    weights = flow.weights(theta)
    total = Clarke.at(flow, theta, torch.arange(12)).weighted(weights)
    assert len(total.kinks) == 2
    columns = (total.full[:, :1] * total.normals).T.numpy()
    best = lsq_linear(columns, -total.gradients[0].numpy(), bounds=(0, 1), tol=1e-14).x
    expected = total.gradients[0] + (torch.from_numpy(best) * total.full[:, 0]) @ total.normals
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_sliding_is_seen(small_run):
    """While a pair slides, the field of least norm keeps it on its kink, and the off side not."""
    run = small_run("p3")
    network, x = run.flow.network, run.flow.dataset.x
    seen = 0
    for slide in (event for event in run.events if event.kind == "slide"):
        after = run.log_inverse_loss > slide.log_inverse_loss
        theta, point = run.theta[after][:1], x[slide.sample]
        w = network.unflatten(theta[0])["W1"][slide.unit]
        if abs(float(w @ point)) > 1e-9 * float(w.norm() * point.norm()):
            continue  # it left the kink before the next saved point
        seen += 1
        inverse = run.flow.potential.inverse_hessian(theta)
        least, off = (
            float(network.unflatten((inverse * field)[0])["W1"][slide.unit] @ point)
            for field in (least_norm(run.flow, theta), run.flow.vector_field(theta))
        )
        assert abs(least) < 1e-6 * abs(off)
    assert seen > 3
