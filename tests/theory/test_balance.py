"""The laws of units, layers and matrices, and what is conserved when."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import mirrorode as mo
from mirrorode.theory.balance import layer_laws, matrix_laws, unit_laws
from tests.conftest import POTENTIALS


def _flow(network, potential):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    return mo.MirrorFlow(network, mo.Dataset(x, torch.sign(x @ torch.ones(2).double())), potential)


@pytest.mark.parametrize("name", POTENTIALS)
def test_diagonal_network(name):
    """κ̃(u_lk) − κ̃(u_{l+1,k}) is constant for every coordinate, and so are the sums of layers."""
    network = mo.DiagonalLinear(2, 3)
    flow = _flow(network, POTENTIALS[name])
    start = network.initial(1).abs() + 0.2
    run = mo.solve(
        flow, start, until=mo.LogInverseLoss(0.3), method="dopri5", rtol=1e-8, correct_balance=False
    )
    assert run.success
    assert len(unit_laws(flow, run.theta)) == 2 * 2
    assert len(layer_laws(flow, run.theta)) == 2
    noise = torch.randn(run.theta.shape, generator=torch.Generator().manual_seed(0)).double()
    noisy = replace(run, theta=run.theta * (1 + 0.01 * noise))
    for laws in (unit_laws, layer_laws):
        assert float(laws(flow, run.theta).drift()) < 1e-6
        assert float(laws(flow, noisy.theta).drift()) > 1e-3
    held = {verdict.statement: verdict.passed for verdict in mo.verify(run)}
    assert held["Lemma 3.1: Q_i − Q_{i+1} is constant"] is True
    assert held["App. G.5: the same for every unit"] is True
    assert all(verdict.passed is not True for verdict in mo.verify(noisy)[1:3])


def test_the_law_of_a_unit_is_the_gradient_of_a_rescaling():
    """C_j from its definition, weight by weight."""
    network = mo.MLP((2, 3, 2, 1))
    flow, theta = _flow(network, mo.HyperbolicEntropy(0.1)), network.initial(3)
    first, second, third = network.unflatten(flow.potential.balance_term(theta)).values()
    by_hand = [*(first.sum(1) - second.sum(0)), *(second.sum(1) - third.sum(0))]
    found = mo.invariants(flow, theta)
    torch.testing.assert_close(found.values[:5], torch.stack(by_hand))
    sums = torch.stack([sum(by_hand[:3]), sum(by_hand[3:])])
    torch.testing.assert_close(found.values[5:], sums)
    assert found.names[4] == "layer 2, unit 1"
    assert "layer 2, unit 1" in str(found)
    assert f"{float(found.values[4]):.6g}" in str(found)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (mo.Network(nn.Linear(2, 1, bias=False)), "no hidden layer"),
        (mo.MLP((2, 1)), "no hidden layer"),
        (mo.DiagonalLinear(2, 1), "no hidden layer"),
    ],
    ids=["module", "linear", "one factor"],
)
def test_not_applicable(network, reason):
    flow = _flow(network, mo.Euclidean())
    run = mo.solve(flow, network.initial(0), until=mo.Time(0.1), method="dopri5")
    assert run.drift is None
    verdicts = [verdict for verdict in mo.verify(run) if verdict.passed is None]
    assert sum(reason in verdict.detail for verdict in verdicts) == 2


def test_matrices_are_conserved_by_gradient_flow_alone():
    """In a linear net WWᵀ − WᵀW stays whole; with hyperbolic entropy only what units conserve."""
    network = mo.MLP((2, 4, 3, 1), activation="linear")
    euclidean, entropy = (_flow(network, POTENTIALS[name]) for name in ("euclidean", "hyperbolic"))
    runs = [
        mo.solve(flow, network.initial(0), until=mo.LogInverseLoss(50.0), rtol=1e-8)
        for flow in (euclidean, entropy)
    ]
    assert all(run.success for run in runs)
    kept, lost = (matrix_laws(run.flow, run.theta) for run in runs)
    assert len(kept) == 6 + 3
    assert float(kept.drift()) < 1e-6
    assert float((lost.values - lost.values[0]).abs().amax()) > 0.3
    assert float(lost.drift()) > 0.1
    assert float(runs[1].drift.amax()) < 1e-6  # the laws of units, before their correction
    assert any("WWᵀ" in name for name in mo.invariants(euclidean, runs[0].theta).names)
    assert not any("WWᵀ" in name for name in mo.invariants(entropy, runs[1].theta).names)
