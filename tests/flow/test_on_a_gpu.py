"""Every way of integrating, on a CUDA device: the same trajectory as on the host."""

import pytest
import torch

import mirrorode as mo
from mirrorode.flow import through

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def _on_both(network, data, potential, target):
    runs = []
    for device in ("cuda", "cpu"):
        flow = mo.MirrorFlow(network, data.to(device), potential)
        run = mo.solve(flow, network.initial(0), until=mo.LogInverseLoss(target))
        assert run.success
        runs.append(run)
    there, host = runs
    assert there.theta.is_cuda
    assert mo.verify(there).passed or there.stats.through_kinks
    return there.theta[-1].cpu(), host.theta[-1]


@pytest.mark.parametrize("potential", [mo.HyperbolicEntropy(0.1), mo.SmoothedHomogeneous(3, 1.0)])
@pytest.mark.parametrize("widths", [(2, 12, 1), (2, 8, 6, 1)])
def test_event_by_event(widths, potential):
    there, host = _on_both(mo.MLP(widths), mo.teacher_student(30, seed=3), potential, 20.0)
    torch.testing.assert_close(there, host, rtol=1e-4, atol=1e-4)


def test_through_kinks(monkeypatch):
    monkeypatch.setattr(through, "MANY", 1)
    network, data = mo.MLP((2, 12, 1)), mo.teacher_student(30, seed=3)
    there, host = _on_both(network, data, mo.Euclidean(), -1.0)
    torch.testing.assert_close(there, host, rtol=1e-6, atol=1e-6)
