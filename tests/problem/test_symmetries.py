"""Hidden units and their weights, found from networks of every kind."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import mirrorode as mo
from mirrorode.problem import symmetries
from mirrorode.problem.symmetries import Symmetries, find


class Composed(nn.Module):
    """Layers of the given widths, without biases, and what a function makes of them."""

    def __init__(self, function, *widths):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair, bias=False) for pair in pairwise(widths))
        self.function = function

    def forward(self, x):
        return self.function(x, *self.layers)


def _three(x, first, second, third):
    return third(torch.relu(second(torch.relu(first(x)))))


def _frozen(name, *widths):
    module = Composed(_three, *widths)
    module.get_parameter(name).requires_grad_(False)
    return module


def _convolutional():
    return nn.Sequential(
        nn.Unflatten(1, (1, 6, 6)),
        nn.Conv2d(1, 3, 3, bias=False, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 6, 2, bias=False, groups=3),
        nn.LeakyReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(6, 1, bias=False),
    )


def _maxima(x, first, second):
    """Of pairs of units, each of which is one as far as rescaling goes."""
    best = torch.maximum(first(x)[:, :3], first(x)[:, 3:])
    return second(torch.cat([best, best], 1))


class Factors(nn.Module):
    """x·(u ⊙ v)."""

    def __init__(self):
        super().__init__()
        self.u, self.v = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x @ (self.u * self.v)


FOUND = {
    "mlp": (mo.MLP((2, 5, 4, 1)), 9, {1}),
    "diagonal": (mo.DiagonalLinear(3, 4), 9, {1}),
    "module": (Composed(_three, 2, 5, 4, 1), 9, {1}),
    "channels": (_convolutional(), 9, {1}),
    "factors": (Factors(), 3, {1}),
    "a frozen first layer": (_frozen("layers.0.weight", 2, 5, 4, 1), 4, {1}),
    "a frozen layer between": (_frozen("layers.1.weight", 2, 5, 4, 1), 1, {1}),
    "a frozen last layer": (_frozen("layers.2.weight", 2, 5, 4, 1), 5, {1}),
    "a bias": (nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1, bias=False)), 5, {1}),
    "squares": (Composed(lambda x, a, b: b(torch.relu(a(x)) ** 2), 2, 5, 1), 5, {1, 2}),
    "cubes": (Composed(lambda x, a, b: b(a(x) * a(x).square()), 2, 5, 1), 5, {1, 3}),
    "maxima": (Composed(_maxima, 2, 6, 1), 3, {1}),
    "a sum": (Composed(lambda x, a, b: b(torch.relu(a(x)) + a(x).abs()), 2, 4, 1), 4, {1}),
    "a layer used twice": (
        Composed(lambda x, a, b, c: c(torch.relu(b(torch.relu(b(a(x)))))), 2, 4, 4, 1),
        4,
        {1},
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_units_are_found(name):
    """As many as there are, and rescaling them changes nothing; rescaling what comes in does."""
    network, count, degrees = FOUND[name]
    network = mo.Network(network) if isinstance(network, nn.Module) else network
    units = find(network)
    assert len(units) == len(set(units.names)) == count, units.missing
    assert set(units.degree.tolist()) == degrees
    theta, x = network.initial(1), torch.randn(7, network.input_dim).double()
    s = torch.linspace(-1, 1, count).double()
    moved = theta * torch.exp(units.to(theta).exponents(s))
    torch.testing.assert_close(network.output(moved, x), network.output(theta, x))
    half = theta * torch.exp(0.5 * units.to(theta).exponents(s) + 0.1)
    assert float((network.output(half, x) - network.output(theta, x)).abs().max()) > 1e-3


def test_a_channel_has_all_taps_of_its_kernel():
    network = mo.Network(_convolutional())
    units = find(network)
    ones = torch.ones(network.size).double()
    into, out = units.to(ones).into(ones), units.to(ones).out_of(ones)
    assert into.tolist() == [9] * 3 + [4] * 6  # 3 × 3 taps of one channel; 2 × 2 of one in a group
    assert out.tolist() == [2 * 4] * 3 + [1] * 6
    assert units.names[0] == "1.weight, unit 0"
    assert units.layer.tolist() == [1] * 3 + [2] * 6


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (mo.MLP((2, 1)), "no hidden layer"),
        (mo.Network(Composed(lambda x, a, b: b(torch.relu(a(x)) * a(x).abs().roll(1, 1)), 2, 4, 1)),
         "no hidden layer whose weights all"),
        (mo.Network(Composed(lambda x, a, b: torch.einsum("kj,oj->k", torch.relu(a(x)), b.weight),
                             2, 4, 1)), "it calls einsum"),
    ],
    ids=["linear", "gated by others", "einsum"],
)  # fmt: skip
def test_none_are_invented(network, reason):
    units = find(network)
    assert len(units) == 0
    assert reason in units.missing


def test_what_is_found_is_verified(monkeypatch):
    """Symmetries that are none are not reported."""
    network = mo.MLP((2, 5, 1))
    good = find(network)
    wrong = Symmetries(good.source, good.target, 2 * good.degree, good.names, good.layer)
    monkeypatch.setattr(symmetries, "_known", lambda network: wrong)
    assert "changes its output" in find(network).missing
