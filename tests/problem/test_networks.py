"""MLPs and diagonal networks: homogeneous, with exact gradients on any activation pattern."""

import pytest
import torch

import mirrorode as mo

NETWORKS = [
    mo.MLP((3, 1)),
    mo.MLP((2, 7, 1)),
    mo.MLP((3, 5, 4, 1)),
    mo.MLP((2, 4, 3, 3, 1), activation="leaky_relu"),
    mo.MLP((2, 4, 3, 1), activation="linear", output_scale=2.0),
]
DIAGONAL = [mo.DiagonalLinear(4, depth) for depth in (1, 2, 3)]
every_network = pytest.mark.parametrize("network", NETWORKS + DIAGONAL, ids=repr)


def _inputs(network):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(11, network.input_dim, generator=generator, dtype=torch.float64)


@every_network
def test_homogeneous(network):
    """f(cθ, x) = c^L f(θ, x)."""
    x, theta = _inputs(network), network.initial(1)
    scaled = network.output(1.7 * theta, x)
    torch.testing.assert_close(scaled, 1.7**network.degree * network.output(theta, x))


@every_network
def test_gradient_against_autograd(network):
    x, theta = _inputs(network), network.initial(2)
    gradient, _ = network.backward(network.forward(theta, x))
    exact = torch.func.jacrev(lambda it: network.output(it, x))(theta)
    torch.testing.assert_close(gradient, exact, rtol=1e-12, atol=1e-14)


@every_network
def test_euler(network):
    """⟨θ, ∂f⟩ = L f, on a pattern that is not the true one as well."""
    x, theta = _inputs(network), network.initial(3)
    pattern = [torch.rand_like(pre) > 0.5 for pre in network.forward(theta, x).preactivations]
    forward = network.forward(theta, x, pattern)
    gradient, _ = network.backward(forward)
    torch.testing.assert_close(gradient @ theta, network.degree * forward.output)


@pytest.mark.parametrize("network", NETWORKS[1:], ids=repr)
def test_normals_and_rates(network):
    """Gradients of pre-activations, and their derivatives along a direction, against autograd."""
    x, theta = _inputs(network), network.initial(4)
    direction = torch.randn_like(theta)
    forward = network.forward(theta, x)
    rates = network.rates(theta, direction, x, forward.pattern)
    for layer in range(network.degree - 1):
        unit = torch.arange(len(x)) % network.widths[layer + 1]
        normals = network.normals(theta, x, forward.pattern, layer, unit)

        def chosen(it, layer=layer, unit=unit):
            return network.forward(it, x).preactivations[layer][torch.arange(len(x)), unit]

        exact = torch.func.jacrev(chosen)(theta)
        torch.testing.assert_close(normals, exact, rtol=1e-12, atol=1e-14)
        found = rates[layer][torch.arange(len(x)), unit]
        torch.testing.assert_close(found, exact @ direction)


@pytest.mark.parametrize("network", [NETWORKS[2], DIAGONAL[2]], ids=repr)
def test_batch_of_parameters(network):
    x = _inputs(network)
    theta = torch.stack([network.initial(seed) for seed in range(3)])
    together = network.output(theta, x)
    torch.testing.assert_close(together, torch.stack([network.output(row, x) for row in theta]))
    gradient, _ = network.backward(network.forward(theta, x))
    alone = [network.backward(network.forward(row, x))[0] for row in theta]
    torch.testing.assert_close(gradient, torch.stack(alone))


def test_the_flow_is_told_of_the_hidden_layers():
    network = mo.MLP((3, 5, 4, 1), activation="leaky_relu")
    assert (network.units, network.fan_in) == ((5, 4), (3, 5))
    assert network.slopes == ((0.01, 1.0),) * 2
    theta = network.initial(0)
    rows = network.incoming(1, torch.tensor([2, 0]))
    assert torch.equal(theta[rows], network.unflatten(theta)["W2"][[2, 0]])
    forward = network.forward(theta, _inputs(network))
    off = ~forward.pattern[0]
    # In double precision: 0.01 of single precision differs in the eighth digit.
    assert torch.equal(forward.entering[1][off], 0.01 * forward.preactivations[0][off])


def test_diagonal_network():
    """f(x) = Σ x_k u_1k u_2k, with the right gradient where a factor is zero."""
    network = mo.DiagonalLinear(2, 2)
    theta, x = torch.tensor([0.0, 3.0, 5.0, 7.0]).double(), torch.tensor([[2.0, -1.0]]).double()
    forward = network.forward(theta, x)
    gradient, signals = network.backward(forward)
    assert forward.output.tolist() == [-21.0]
    assert gradient.tolist() == [[10.0, -7.0, 0.0, -3.0]]
    assert signals == network.rates(theta, theta, x, []) == []
    assert list(network.unflatten(theta)) == ["u1", "u2"]
    assert network.units == network.slopes == network.fan_in == ()


def test_initial_and_unflatten():
    network = mo.MLP((2, 100, 100, 1))
    weights = network.unflatten(network.initial(0))
    assert list(weights) == ["W1", "W2", "W3"]
    assert [tuple(w.shape) for w in weights.values()] == [(100, 2), (100, 100), (1, 100)]
    assert float(weights["W2"].std()) == pytest.approx(0.1, rel=0.05)
    assert torch.equal(network.initial(5), network.initial(5))
    assert network.output_scale == 0.01


@pytest.mark.parametrize(
    ("build", "start"),
    [
        (lambda: mo.MLP((2,)), "`widths` must be two or more positive integers that end in 1"),
        (lambda: mo.MLP((2, 3, 2)), "`widths` must be two or more positive integers that end in 1"),
        (lambda: mo.MLP((2, 3, 1), activation="gelu"), "`activation` must be one of"),
        (
            lambda: mo.MLP((2, 3, 1), output_scale=0.0),
            "`output_scale` must be positive, but is 0.0",
        ),
        (lambda: mo.DiagonalLinear(0), "`dim` must be a positive integer, but is 0"),
        (lambda: mo.DiagonalLinear(2, 1.5), "`depth` must be a positive integer, but is 1.5"),
    ],
)
def test_bad_input(build, start):
    with pytest.raises(mo.InputError, match="^" + start.replace("(", r"\(")):
        build()
