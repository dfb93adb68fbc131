"""Any module of linear maps, pooling and kinks is a homogeneous network, its kinks found."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mirrorode as mo
from mirrorode.problem import tournaments
from tests.problem.handmade import Formula, linear


def convolutional():
    return nn.Sequential(
        nn.Unflatten(1, (1, 6, 6)),
        nn.Conv2d(1, 3, 3, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 2, 1, bias=False),
        nn.LeakyReLU(0.2),
        nn.AvgPool2d(2),
        nn.Flatten(),
        linear(2, 1),
    )


def residual():
    """A skip connection that keeps the degree: both ways through two layers."""
    return Formula(
        lambda x, a, b, c, d: (F.relu(F.relu(x @ a) @ b) + (x @ c) ** 2) @ d,
        (3, 4), (4, 5), (3, 5), (5, 1),
    )  # fmt: skip


MODULES = {
    "linear": lambda: linear(3, 1),
    "mlp": lambda: nn.Sequential(linear(3, 5), nn.ReLU(), linear(5, 4), nn.ReLU(), linear(4, 1)),
    "leaky": lambda: nn.Sequential(linear(3, 5), nn.LeakyReLU(0.3), linear(5, 1)),
    "in place": lambda: nn.Sequential(linear(3, 5), nn.ReLU(inplace=True), linear(5, 1)),
    "convolutional": convolutional,
    "residual": residual,
    "abs": lambda: Formula(lambda x, w, a: abs(x @ w) @ a, (3, 5), (5, 1)),
    "maximum": lambda: Formula(
        lambda x, v, w, a: torch.maximum(x @ v, x @ w) @ a, (3, 5), (3, 5), (5, 1)
    ),
    "minimum": lambda: Formula(
        lambda x, v, w, a: torch.min(x @ v, x @ w) @ a, (3, 5), (3, 5), (5, 1)
    ),
    "maxout": lambda: Formula(
        lambda x, w, a: (x @ w).unflatten(1, (4, 3)).max(dim=2).values @ a, (3, 12), (4, 1)
    ),
    "amin": lambda: Formula(lambda x, w: (x @ w).amin(1, keepdim=True), (3, 5)),
    "clamp": lambda: Formula(lambda x, w: (x @ w).clamp(min=0).sum(1), (3, 5)),
    "clamp below": lambda: Formula(lambda x, w: (x @ w).clamp_max(0).sum(1), (3, 5)),
    "changed in place": lambda: Formula(
        lambda x, w, v, a: F.relu(F.relu(x @ w).sub_(x @ v)) @ a, (3, 5), (3, 5), (5, 1)
    ),
    "bias below": lambda: nn.Sequential(linear(3, 5, bias=True), nn.ReLU(), linear(5, 1)),
}
SQUARED = {"squared": lambda: Formula(lambda x, w, a: F.relu(x @ w) ** 2 @ a, (3, 5), (5, 1))}


def cases(modules):
    return pytest.mark.parametrize("build", modules.values(), ids=modules.keys())


def made(build):
    torch.manual_seed(0)
    module = build()
    network = mo.Network(module)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(7, network.dim, generator=generator, dtype=torch.float64)
    return module, network, x


def random_pattern(network, *lead):
    generator = torch.Generator().manual_seed(2)
    return [torch.rand(*lead, units, generator=generator) > 0.5 for units in network.units]


def close(found, expected, tol=1e-10):
    torch.testing.assert_close(found, expected, rtol=tol, atol=tol)


@cases(MODULES | SQUARED)
def test_output_is_that_of_the_module(build):
    module, network, x = made(build)
    expected = copy.deepcopy(module).double()(x).detach().reshape(-1)
    close(network.output(network.current(), x), expected)
    wrong = network.forward(network.current(), x, random_pattern(network, len(x))).output
    assert not network.units or not torch.allclose(wrong, expected)


@cases(MODULES | SQUARED)
def test_derivatives_on_a_frozen_pattern(build):
    """Gradients, normals and rates against central differences, off the true pattern."""
    _, network, x = made(build)
    theta, direction = network.initial(1), network.initial(2)
    pattern = random_pattern(network, len(x))
    h = 1e-4
    line = torch.stack([theta + h * direction, theta - h * direction])
    ends = network.forward(line, x, pattern)
    gradient, _ = network.backward(network.forward(theta, x, pattern))
    slope = (ends.output[0] - ends.output[1]) / (2 * h)
    close(gradient @ direction, slope, 1e-6)
    other, _ = network.backward(network.forward(theta, x))
    assert not network.units or not torch.allclose(other @ direction, slope, rtol=1e-3)
    rates = network.rates(theta, direction, x, pattern)
    assert len(rates) == len(network.units)
    for layer, rate in enumerate(rates):
        pre = ends.preactivations[layer]
        close(rate, (pre[0] - pre[1]) / (2 * h), 1e-6)
        unit = torch.arange(len(x)) % network.units[layer]
        normals = network.normals(theta, x, pattern, layer, unit)
        close(normals @ direction, rate[torch.arange(len(x)), unit])


@cases(MODULES)
def test_signals_say_what_a_switch_does(build):
    """Switching one gate on changes f by signal × (on slope − off slope) × pre-activation."""
    _, network, x = made(build)
    theta, pattern = network.initial(1), random_pattern(network, len(x))
    forward = network.forward(theta, x, pattern)
    _, signals = network.backward(forward)
    for layer, (off, on) in enumerate(network.slopes):
        for unit in range(0, network.units[layer], 3):
            switched = [value.clone() for value in pattern]
            switched[layer][:, unit] ^= True
            sign = torch.where(switched[layer][:, unit], 1.0, -1.0).double()
            change = network.forward(theta, x, switched).output - forward.output
            pre = forward.preactivations[layer][:, unit]
            close(change, sign * signals[layer][:, unit] * (on - off) * pre)


@pytest.mark.parametrize("widths", [(2, 5, 1), (3, 4, 3, 1)])
def test_agrees_with_the_mlp(widths):
    """Everything the flow asks for, on given patterns, with leading dimensions."""
    layers = [linear(*pair) for pair in pairwise(widths)]
    module = nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])
    network, mlp = mo.Network(module), mo.MLP(widths, output_scale=1.0)
    assert network.degree == mlp.degree
    for name in ("input_dim", "units", "slopes", "fan_in", "size"):
        assert getattr(network, name) == getattr(mlp, name)
    theta, velocity = (torch.stack([mlp.initial(s + k) for k in range(3)]) for s in (0, 9))
    assert torch.equal(network.initial(1), theta[1])
    x = torch.randn(6, widths[0], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for pattern in (None, random_pattern(network, 6), random_pattern(network, 3, 6)):
        ours, theirs = (it.forward(theta, x, pattern) for it in (network, mlp))
        close(ours.output, theirs.output)
        assert all(map(torch.equal, ours.pattern, theirs.pattern))
        (gradient, signals), (expected, expected_signals) = (
            network.backward(ours),
            mlp.backward(theirs),
        )
        close(gradient, expected)
        used = ours.pattern
        for layer, units in enumerate(network.units):
            close(ours.preactivations[layer], theirs.preactivations[layer])
            close(ours.entering[layer], theirs.entering[layer])
            close(signals[layer], expected_signals[layer])
            unit = torch.arange(6) % units
            both = [it.normals(theta, x, used, layer, unit) for it in (network, mlp)]
            close(*both)
            assert torch.equal(network.incoming(layer, unit), mlp.incoming(layer, unit))
        both = [it.rates(theta, velocity, x, used) for it in (network, mlp)]
        for ours_rate, their_rate in zip(*both, strict=True):
            close(ours_rate, their_rate)


def test_no_rows():
    """The flow asks for the normals of no pairs at all."""
    _, network, x = made(MODULES["mlp"])
    theta = torch.stack([network.initial(seed) for seed in range(3)])
    pattern = random_pattern(network, 3, 0)
    normals = network.normals(theta, x[:0], pattern, 1, torch.zeros(0, dtype=torch.long))
    assert normals.shape == (3, 0, network.size)
    assert network.forward(theta[0], x[:0]).output.shape == (0,)


@pytest.mark.parametrize(
    ("pool", "size"),
    [
        (nn.MaxPool2d(2), (6, 6)),
        (nn.MaxPool2d(3, stride=1), (4, 5)),
        (nn.MaxPool2d(3, stride=2, padding=1), (7, 6)),
        (nn.MaxPool2d((2, 3), dilation=(2, 1)), (6, 6)),
        (nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), (6, 7)),
        (nn.AdaptiveMaxPool2d((2, 3)), (5, 7)),
        (nn.AdaptiveMaxPool2d((None, 1)), (3, 4)),
        (nn.MaxPool1d(3), (9,)),
        (nn.MaxPool3d(2), (4, 2, 2)),
    ],
    ids=str,
)
def test_max_pooling(pool, size):
    convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(size)](1, 2, 1, bias=False)
    module = nn.Sequential(nn.Unflatten(1, (1, *size)), convolution, pool, nn.Flatten())
    module = nn.Sequential(module, nn.LazyLinear(1, bias=False))
    dim = int(torch.tensor(size).prod())
    module(torch.zeros(1, dim))
    network = mo.Network(module)
    assert network.dim == dim
    x = torch.randn(4, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = copy.deepcopy(module).double()(x).detach()[:, 0]
    close(network.output(network.current(), x), expected)


def test_a_tournament_has_no_match_twice_and_none_against_oneself():
    """Overlapping windows share their matches in the first round."""
    rounds = []

    def choose(a, b):
        rounds.append(list(zip(a.tolist(), b.tolist(), strict=True)))
        return torch.maximum(a, b)

    windows = [tournaments.sliding(5, 3, 1, 1, 1, ceil_mode=False)] * 2
    best = tournaments.play(choose, torch.arange(25.0).reshape(5, 5), windows)
    assert torch.equal(best, F.max_pool2d(torch.arange(25.0).reshape(1, 5, 5), 3, 1, 1)[0])
    assert len(set(rounds[0])) == len(rounds[0])
    assert all(a != b for matches in rounds for a, b in matches)


def test_no_kink_is_touched_all_the_time():
    """A ReLU below max pooling is moved above it: where all are off, nothing is at its kink."""
    _, network, x = made(convolutional)
    assert network.units == (3 * 2 * 4, 3 * 4, 3 * 4, 2 * 4)
    for pre in network.forward(network.initial(0), x).preactivations[:3]:
        assert bool((pre != 0).all())

    def pooled(x, w, a):
        hidden = F.relu((x @ w).unflatten(1, (2, 4)))
        return F.max_pool1d(hidden, 2).flatten(1) @ a + 0 * hidden.flatten(1).sum(1, keepdim=True)

    control = mo.Network(Formula(pooled, (3, 8), (4, 1)))  # used twice: it cannot be moved
    pre = control.forward(control.initial(0), x[:, :3]).preactivations[1]
    assert bool((pre == 0).any())


def test_a_relu_on_a_relu_is_no_kink():
    twice = mo.Network(nn.Sequential(linear(3, 5), nn.ReLU(), nn.ReLU(), linear(5, 1)))
    assert twice.units == (5,)


def test_frozen_parameters_and_buffers_are_constants():
    torch.manual_seed(0)
    module = nn.Sequential(
        linear(3, 6, bias=True), nn.ReLU(), linear(6, 4), nn.ReLU(), linear(4, 1)
    )
    module[0].requires_grad_(False)
    module.register_buffer("unused", torch.ones(2))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    network = mo.Network(module)
    assert network.degree == 2
    assert network.shapes == {"2.weight": (4, 6), "4.weight": (1, 4)}
    assert network.units == (4,)  # the kinks of the frozen layer do not move
    x = torch.randn(5, 3, dtype=torch.float64)
    expected = copy.deepcopy(module).double()(x).detach()[:, 0]
    theta = network.current()
    close(network.output(theta, x), expected)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.dtype == before[name].dtype
    with torch.no_grad():
        module[0].weight.zero_()
    close(network.output(theta, x), expected)


def test_a_bias_is_an_incoming_weight():
    """u = w·x + b = ⟨(w, b), (x, 1)⟩, with weights where `incoming` says."""
    _, network, x = made(MODULES["bias below"])
    assert network.fan_in == (4,)
    theta, unit = network.initial(0), torch.tensor([4, 0, 2])
    forward = network.forward(theta, x)
    found = forward.entering[0] @ theta[network.incoming(0, unit)].T
    close(found, forward.preactivations[0][:, unit])
    module = MODULES["bias below"]()
    module[0].bias.requires_grad_(False).zero_()
    assert mo.Network(module).fan_in == (0,)  # u is not w·z of the parameters alone


def test_weights_that_are_shared_are_not_a_units_own():
    """Only a kink straight on a linear map used once can come to rest at zero weights."""
    assert mo.Network(nn.Sequential(linear(3, 5), nn.ReLU(), linear(5, 1))).fan_in == (3,)
    shared = linear(3, 3)
    tied = mo.Network(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), linear(3, 1)))
    assert tied.fan_in == (0, 0)
    assert tied.size == 9 + 3
    skip = Formula(lambda x, w, a: (F.linear(x, w).square() + F.relu(F.linear(x, w)) ** 2) @ a,
                   (5, 3), (5, 1))  # fmt: skip
    assert mo.Network(skip).fan_in == (0,)
    assert mo.Network(convolutional()).fan_in == (0, 0, 0, 0)
    assert mo.Network(convolutional()).incoming(0, torch.arange(3)).shape == (3, 0)


@settings(max_examples=10, deadline=None)
@given(
    widths=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    seed=st.integers(0, 1000),
    power=st.sampled_from([1, 2]),
)
def test_degree_is_found(widths, seed, power):
    """Depth by depth: with a power p of the activation, d ↦ p·d + 1."""
    shapes = list(zip(widths, [*widths[1:], 1], strict=True))

    def formula(x, *weights):
        for weight in weights[:-1]:
            x = abs(x @ weight) ** power
        return x @ weights[-1]

    network = mo.Network(Formula(formula, *shapes), dim=widths[0])
    degree = 1
    for _ in shapes[1:]:
        degree = power * degree + 1
    assert network.degree == degree
    x = torch.randn(4, widths[0], generator=torch.Generator().manual_seed(seed)).double()
    theta = network.initial(seed)
    close(network.output(1.5 * theta, x), 1.5**degree * network.output(theta, x), 1e-9)


@pytest.mark.parametrize("widths", [[1] * 5, [2] * 13])
def test_deep_and_narrow(widths):
    """Dead for most starts, or of high degree: verified all the same."""
    parts = [part for pair in pairwise(widths) for part in (linear(*pair), nn.ReLU())]
    assert mo.Network(nn.Sequential(*parts, linear(widths[-1], 1))).degree == len(widths)


def test_dropout_at_rest_is_the_identity():
    module = nn.Sequential(linear(3, 5), nn.Dropout(), nn.ReLU(), linear(5, 1)).eval()
    assert mo.Network(module).units == (5,)
