"""The balance laws of networks other than an MLP: known for diagonal ones, not for modules."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import mirrorode as mo
from mirrorode.theory.balance import layer_balance, neuron_balance
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
    run = mo.solve(flow, start, until=mo.LogInverseLoss(0.3), method="dopri5", rtol=1e-8)
    assert run.success
    assert neuron_balance(flow, run.theta).value.shape[-1] == 2 * 2
    assert layer_balance(flow, run.theta).value.shape[-1] == 2
    noise = torch.randn(run.theta.shape, generator=torch.Generator().manual_seed(0)).double()
    noisy = replace(run, theta=run.theta * (1 + 0.01 * noise))
    for laws in (neuron_balance, layer_balance):
        assert float(laws(flow, run.theta).drift()) < 1e-6
        assert float(laws(flow, noisy.theta).drift()) > 1e-3
    held = {verdict.statement: verdict.passed for verdict in mo.verify(run)}
    assert held["Lemma 3.1: Q_i − Q_{i+1} is constant"] is True
    assert held["App. G.5: the same for every neuron"] is True


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (mo.Network(nn.Linear(2, 1, bias=False)), "a module, whose symmetries are not found yet"),
        (mo.MLP((2, 1)), "has no hidden layer"),
        (mo.DiagonalLinear(2, 1), "has no hidden layer"),
    ],
    ids=["module", "linear", "one factor"],
)
def test_not_applicable(network, reason):
    flow = _flow(network, mo.Euclidean())
    run = mo.solve(flow, network.initial(0), until=mo.Time(0.1), method="dopri5")
    verdicts = [verdict for verdict in mo.verify(run) if verdict.passed is None]
    assert sum(reason in verdict.detail for verdict in verdicts) == 2
