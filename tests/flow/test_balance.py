"""Restoration along the rescaling orbit: exact laws, the same function, and honest reports."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

import mirrorode as mo
from mirrorode.flow.balance import Terms, restore
from mirrorode.problem.symmetries import find
from mirrorode.theory.balance import unit_laws


@dataclass(frozen=True)
class Cosh(mo.SeparablePotential):
    """r(t) = cosh t, a potential of one's own, without asymptotic degree."""

    @property
    def degree(self):
        return None

    @property
    def conjugate_at_zero(self):
        return -1.0

    def value(self, theta):
        return theta.cosh()

    def gradient(self, theta):
        return theta.sinh()

    def inverse_gradient(self, dual):
        return dual.asinh()

    def balance_term(self, theta):
        # t sinh t − cosh t + 1 without cancellation.
        return theta * theta.sinh() - 2 * (theta / 2).sinh() ** 2

    def inverse_hessian(self, theta):
        return 1 / theta.cosh()

    def horizon(self, theta):
        return theta.norm(dim=-1)


class Squares(nn.Module):
    """Σ a_j relu(w_j·x)²."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 30, bias=False), nn.Linear(30, 1, bias=False)

    def forward(self, x):
        return self.outer(torch.relu(self.inner(x)) ** 2)


def _convolutional():
    return nn.Sequential(
        nn.Unflatten(1, (1, 6, 6)),
        nn.Conv2d(1, 3, 3, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4, 1, bias=False),
    )


NETWORKS = {
    "two layers": mo.MLP((2, 50, 1)),
    "three layers": mo.MLP((2, 30, 20, 1), activation="leaky_relu"),
    "five layers": mo.MLP((3, 12, 12, 12, 12, 1)),
    "five leaky layers": mo.MLP((3, 12, 12, 12, 12, 1), activation="leaky_relu"),
    "squares": mo.Network(Squares()),
    "convolutional": mo.Network(_convolutional()),
    "diagonal": mo.DiagonalLinear(10, 4),
}
POTENTIALS = {
    "hyperbolic": mo.HyperbolicEntropy(0.1),
    "small lambda": mo.HyperbolicEntropy(1e-4),
    "p = 3": mo.SmoothedHomogeneous(3, 1.0),
    "p = 10": mo.SmoothedHomogeneous(10, 0.1),
    "euclidean": mo.Euclidean(),
    "own": Cosh(),
}


def _layerwise(network, without=""):
    kinds = [potential for name, potential in POTENTIALS.items() if name != without]
    return mo.Layerwise(
        {name: kinds[place % len(kinds)] for place, name in enumerate(network.shapes)}
    ).along(network)


def _restored(network, potential, theta, target):
    units = find(network).to(theta)
    found = restore(units, potential, theta, target)
    return found, Terms.at(units, potential, found.theta).drift(target)


@pytest.mark.parametrize("potential", [*POTENTIALS, "layerwise"])
@pytest.mark.parametrize("network", NETWORKS)
def test_noise_is_restored(network, potential):
    """10 % on every weight: the laws to 1e-13 of their terms, the margins to 1e-12."""
    network = NETWORKS[network]
    potential = _layerwise(network) if potential == "layerwise" else POTENTIALS[potential]
    start = network.initial(0)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(8, network.size, generator=generator, dtype=torch.float64)
    noisy = start * (1 + 0.1 * noise)
    target = Terms.at(find(network).to(start), potential, start).value
    found, left = _restored(network, potential, noisy, target)
    assert not found.left
    assert float(Terms.at(find(network).to(start), potential, noisy).drift(target).min()) > 1e-2
    assert float(left.max()) < 1e-13
    x = torch.randn(40, network.input_dim, generator=generator, dtype=torch.float64)
    before, after = network.output(noisy, x), network.output(found.theta, x)
    assert float((after - before).abs().max() / before.abs().max()) < 1e-12


@pytest.mark.parametrize("potential", ["hyperbolic", "p = 3", "p = 10", "euclidean", "layerwise"])
@pytest.mark.parametrize(
    ("network", "zeros"),
    [("two layers", 0.33), ("five layers", 0.33), ("squares", 0.33), ("narrow", 0.5)],
)
def test_random_targets(network, potential, zeros):
    """Weights from 1e-8 to 1e6, many of them zero in every fifth: solved, or left for a reason.

    What is left is exactly what is off its target, and no iteration is needed to see that.
    """
    network = NETWORKS.get(network, mo.MLP((2, 3, 3, 3, 1)))
    potential = _layerwise(network, without="own") if potential == "layerwise" else potential
    potential = POTENTIALS.get(potential, potential)
    units, generator = find(network), torch.Generator().manual_seed(1)
    units = units.to(torch.zeros(1, dtype=torch.float64))

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def signs(*shape):
        return torch.where(uniform(*shape) < 0.5, -1.0, 1.0).double()

    for trial in range(60):
        theta = 10 ** (14 * uniform(1, network.size) - 8) * signs(1, network.size)
        if trial % 5 == 0:
            theta = theta * (uniform(1, network.size) > zeros)
        target = 10 ** (12 * uniform(len(units)) - 6) * signs(len(units))
        found = restore(units, potential, theta, target)
        off = Terms.at(units, potential, found.theta).drifts(target) > 1e-13
        assert int(off.sum()) == sum(found.left.values())
        assert not any("converge" in reason for reason in found.left)


def test_a_chain_without_a_solution():
    """What sign rules do not see: all that comes into B comes out of A, and C_A + C_B > 0."""
    network = mo.MLP((1, 1, 1, 1))
    theta = torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]).double()
    found, drift = _restored(network, mo.Euclidean(), theta, torch.tensor([-1.0, 5.0]).double())
    assert found.left == {"no weights of it and of the units joined to it have their targets": 2}
    torch.testing.assert_close(found.theta[0], theta[0], rtol=0, atol=0)
    assert float(drift[1]) < 1e-13
    found, drift = _restored(network, mo.Euclidean(), theta, torch.tensor([-5.0, 1.0]).double())
    assert not found.left
    assert float(drift.max()) < 1e-13


def test_single_precision_ends_at_its_own_round_off():
    network = mo.MLP((2, 8, 6, 1))
    start = network.initial(0).float()
    target = Terms.at(find(network).to(start), POTENTIALS["p = 3"], start).value
    noise = torch.randn(4, network.size, generator=torch.Generator().manual_seed(0))
    found, drift = _restored(network, POTENTIALS["p = 3"], start * (1 + 0.1 * noise), target)
    assert not found.left
    assert float(drift.max()) < 1e-6
    assert found.iterations < 20


def test_what_cannot_be_restored_is_left():
    """Units without a path, or with a target of the wrong sign, keep their weights."""
    network = mo.MLP((2, 4, 1))
    theta = network.initial(0)[None].clone()
    weights = network.unflatten(theta)
    weights["W1"][0, 0], weights["W1"][0, 1], weights["W2"][0, 0, 2] = 0.0, 0.0, 0.0
    weights["W1"][0, 3], weights["W2"][0, 0, 3] = 0.0, 0.0
    target = torch.tensor([1.0, -1.0, -1.0, 1.0]).double()
    found, _ = _restored(network, mo.Euclidean(), theta, target)
    after = network.unflatten(found.theta)
    for unit in (0, 2, 3):
        torch.testing.assert_close(after["W1"][0, unit], weights["W1"][0, unit], rtol=0, atol=0)
    # Without incoming weights, what comes out alone can have the negative target.
    assert float(after["W2"][0, 0, 1]) ** 2 / 2 == pytest.approx(1.0)
    assert sorted(found.left.values()) == [1, 1, 1]


@pytest.mark.parametrize("potential", ["hyperbolic", "p = 3", "own"])
@pytest.mark.parametrize("widths", [(2, 12, 1), (2, 8, 6, 1)])
def test_along_a_run(widths, potential):
    """The integrator's drift is reported, the correction is at round-off, the path is the same."""
    network = mo.MLP(widths)
    flow = mo.MirrorFlow(network, mo.teacher_student(30, seed=3), POTENTIALS[potential])
    # Under cosh, weights beyond one hardly move: a loss of 1/e is far enough for two layers.
    end = 0.5 if (potential, len(widths)) == ("own", 3) else 10.0
    start, until = network.initial(0), mo.LogInverseLoss(end)
    run, plain = (
        mo.solve(flow, start, until=until, rtol=1e-5, correct_balance=correct)
        for correct in (True, False)
    )
    assert run.success
    assert run.stats.balance_iterations > 0 == plain.stats.balance_iterations
    assert run.stats.evaluations == plain.stats.evaluations
    torch.testing.assert_close(run.log_time, plain.log_time, rtol=0, atol=0)
    torch.testing.assert_close(run.drift, plain.drift, rtol=0, atol=0)
    assert float(unit_laws(flow, run.theta).drift()) < 1e-13 < float(run.drift.max()) < 1e-3
    assert float(unit_laws(flow, plain.theta).drift()) == pytest.approx(
        float(run.drift[:, : len(flow.symmetries)].max())
    )
    torch.testing.assert_close(
        flow.margins(run.theta), flow.margins(plain.theta), rtol=1e-11, atol=1e-11
    )
    between = torch.stack([run.theta[0], run.at(log_inverse_loss=end / 2)])
    assert float(unit_laws(flow, between).drift()) < 1e-13
    verdicts = {one.statement[:9]: one for one in mo.verify(run)}
    assert verdicts["App. G.5:"].passed
    assert "the integrator drifts by" in verdicts["App. G.5:"].detail
    moved = replace(run, theta=run.theta * (1 + 1e-9 * torch.sin(run.theta * 1e3)))
    assert {one.statement[:9]: one for one in mo.verify(moved)}["App. G.5:"].passed is False


def test_a_drifting_integrator_is_not_hidden(small_flow):
    """What is corrected fails all the same if the integrator lost the law."""
    flow = small_flow("euclidean")
    run = mo.solve(flow, flow.network.initial(0), until=mo.LogInverseLoss(2.0), rtol=1e-5)
    lost = replace(run, drift=run.drift + 0.01)
    assert all(one.passed is False for one in mo.verify(lost)[1:3])


def test_order_is_kept():
    """The error of the end state falls as fast with the tolerance, with and without."""
    network = mo.MLP((2, 6, 5, 1), activation="linear")
    flow = mo.MirrorFlow(network, mo.teacher_student(30, seed=3), mo.HyperbolicEntropy(0.1))
    start, until = network.initial(0), mo.LogTime(0.0)

    def end(rtol, correct):
        found = mo.solve(
            flow, start, until=until, rtol=rtol, atol=rtol, saveat=[], correct_balance=correct
        )
        return found.theta[-1]

    exact = end(1e-11, correct=True)
    errors = torch.tensor(
        [[float((end(rtol, c) - exact).norm()) for rtol in (1e-4, 1e-7)] for c in (True, False)]
    )
    orders = torch.log10(errors[:, 0] / errors[:, 1])
    assert float(orders.min()) > 1.5
    assert abs(float(orders.diff())) < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("potential", ["hyperbolic", "p = 3", "euclidean"])
def test_to_a_billion(potential):
    network = mo.MLP((2, 100, 1))
    flow = mo.MirrorFlow(network, mo.teacher_student(seed=42), POTENTIALS[potential])
    run = mo.solve(flow, network.initial(0), until=mo.LogInverseLoss(1e9), rtol=1e-5)
    assert run.success
    assert float(unit_laws(flow, run.theta).drift()) < 1e-13
    assert float(run.drift.max()) < 1e-3


def test_stored_and_read_again(small_flow, tmp_path):
    flow = small_flow("hyperbolic")
    run = mo.solve(flow, flow.network.initial(0), until=mo.LogInverseLoss(1.0), rtol=1e-4)
    run.save(tmp_path / "run.npz")
    again = mo.Trajectory.load(tmp_path / "run.npz")
    torch.testing.assert_close(again.drift, run.drift, rtol=0, atol=0)
    assert again.balanced
    assert str(again) == str(run)
