"""A stored trajectory brings its network back, unless that is made of a module."""

import pytest
import torch
from torch import nn

import mirrorode as mo


def _run(network):
    flow = mo.MirrorFlow(network, mo.teacher_student(8, seed=1), mo.Euclidean())
    return mo.solve(flow, network.initial(0), until=mo.Time(0.01), method="dopri5")


@pytest.mark.parametrize(
    "network", [mo.MLP((2, 3, 1), "leaky_relu", 2.0), mo.DiagonalLinear(2, 3)], ids=repr
)
def test_rebuilt_from_its_fields(network, tmp_path):
    _run(network).save(tmp_path / "run.npz")
    assert mo.Trajectory.load(tmp_path / "run.npz").flow.network == network


def test_a_module_must_be_given(tmp_path):
    run = _run(mo.Network(nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False))))
    run.save(tmp_path / "run.npz")
    with pytest.raises(mo.InputError, match=r"^`flow` must be given to load a trajectory of a net"):
        mo.Trajectory.load(tmp_path / "run.npz")
    again = mo.Trajectory.load(tmp_path / "run.npz", run.flow)
    assert torch.equal(again.theta, run.theta)


def test_the_dimension_must_fit():
    for network in (mo.DiagonalLinear(3), mo.Network(nn.Linear(3, 1, bias=False))):
        with pytest.raises(mo.InputError, match="`dataset` must have inputs of dimension 3, but"):
            _run(network)
    with pytest.raises(mo.InputError, match="`network` must be an MLP, a DiagonalLinear or a Netw"):
        mo.MirrorFlow(nn.Linear(2, 1), mo.teacher_student(8), mo.Euclidean())
