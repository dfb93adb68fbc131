"""θ = u ⊙ v as a network of (u, v): the factors, the degree and the field it gives to θ."""

import pytest
import torch

import mirrorode as mo
from mirrorode.problem.reparameterized import difference, factors, product, reparameterized

LAM = 0.07


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1.0, 1e6])
def test_factors_multiply_to_theta(size):
    """u ⊙ v = θ to round-off at any size, and u² − v² = 2√λ as far as squares can tell."""
    theta = size * torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    uv = factors(theta, LAM)
    torch.testing.assert_close(product(uv), theta, rtol=1e-15, atol=0)
    largest = float(uv.square().max())
    expected = torch.full_like(theta, 2 * LAM**0.5)
    torch.testing.assert_close(difference(uv), expected, rtol=0, atol=1e-15 * largest + 1e-15)
    assert float(uv[:50].min()) > 0


@pytest.mark.parametrize(
    "network",
    [mo.MLP((3, 1)), mo.MLP((2, 5, 1)), mo.MLP((2, 4, 3, 1), activation="linear")],
    ids=repr,
)
def test_its_gradient_flow_is_the_entropys(network):
    """d(u ⊙ v)/dt = −2√(θ² + λ) ∂𝓛, twice the flow of the entropy; not with the paper's 4λ."""
    generator = torch.Generator().manual_seed(0)
    data = mo.Dataset(torch.randn(9, network.input_dim, generator=generator), torch.ones(9))
    theta = network.initial(1)
    uv = factors(theta, LAM)
    ours = mo.MirrorFlow(reparameterized(network), data, mo.Euclidean())
    assert ours.network.degree == 2 * network.degree
    entropy = mo.MirrorFlow(network, data, mo.HyperbolicEntropy(LAM))
    torch.testing.assert_close(ours.margins(uv), entropy.margins(theta), rtol=1e-12, atol=1e-14)
    du, dv = ours.vector_field(uv).chunk(2)
    u, v = uv.chunk(2)
    moved = u * dv + v * du
    field = entropy.vector_field(theta)
    twice = 2 * entropy.potential.inverse_hessian(theta) * field
    torch.testing.assert_close(moved, twice, rtol=1e-10, atol=1e-12)
    paper = mo.HyperbolicEntropy(4 * LAM).inverse_hessian(theta) * field
    assert float((moved - paper).norm() / moved.norm()) > 0.05


def test_refusals():
    theta = torch.ones(3, dtype=torch.float64)
    with pytest.raises(mo.InputError, match=r"`lam` must be positive, but is 0"):
        factors(theta, 0.0)
    with pytest.raises(mo.InputError, match="`theta` must be finite"):
        factors(theta * torch.nan, 1.0)
    with pytest.raises(mo.InputError, match="`network` must be an MLP"):
        reparameterized(reparameterized(mo.MLP((2, 1))))  # type: ignore[arg-type]
