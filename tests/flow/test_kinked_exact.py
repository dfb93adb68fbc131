"""Closed solutions with kinks: entering, sliding, leaving, passing, being held; time included."""

import math

import pytest
import torch
from torch import nn

import mirrorode as mo
from tests.kinked import FLOWS

every_flow = pytest.mark.parametrize("exact", FLOWS, ids=lambda it: it.name)


class Neuron(nn.Module):
    """a·σ(w·x) with the output weight a a constant."""

    def __init__(self, dim, output):
        super().__init__()
        self.incoming = nn.Linear(dim, 1, bias=False, dtype=torch.float64)
        self.register_buffer("output", torch.tensor(output, dtype=torch.float64))

    def forward(self, x):
        return self.output * torch.relu(self.incoming(x))


def trained(exact):
    """The flow and start of what is trained of a closed solution."""
    if bool(exact.trainable.all()):
        return exact.flow, exact.start
    data, output = exact.flow.dataset, float(exact.start[-1])
    network = mo.Network(Neuron(data.x.shape[1], output))
    return mo.MirrorFlow(network, data, exact.flow.potential), exact.start[exact.trainable]


@every_flow
def test_theta_in_every_phase(exact):
    flow, start = trained(exact)
    for time in exact.times:
        run = mo.solve(flow, start, until=mo.Time(time), rtol=1e-9, atol=1e-12)
        error = (run.theta[-1] - exact.theta(time)[exact.trainable]).abs().max()
        assert float(error) < 1e-8, (time, float(error))


@every_flow
def test_events_are_where_they_are(exact):
    flow, start = trained(exact)
    run = mo.solve(flow, start, until=mo.Time(2 * max(exact.times[:-1])), rtol=1e-9, atol=1e-12)
    kinds = {"leaves": ["slide", "exit"], "captured": ["slide", "capture"]}
    expected = kinds.get(exact.name, ["cross"] if "stick" in exact.name else ["slide"])
    assert list(dict.fromkeys(event.kind for event in run.events)) == expected
    times = [exact.entry, exact.exit]
    for event, time in zip(run.events, times, strict=False):
        # An exit is tangential: its time is known to less than the path.
        assert event.time == pytest.approx(time, abs=1e-7 if event.kind == "slide" else 1e-5)
    if exact.xi is not None and expected[0] == "slide":
        assert run.events[0].coefficient == pytest.approx(exact.xi(exact.entry), abs=1e-6)


def test_order_across_a_slide_entry():
    """Error against steps, from one tolerance to one ten thousand times smaller."""
    exact = FLOWS[1]
    flow, start = trained(exact)
    points = []
    for rtol in (1e-4, 1e-5, 1e-6, 1e-7, 1e-8):
        run = mo.solve(flow, start, until=mo.Time(exact.times[1]), rtol=rtol, atol=rtol / 1000)
        error = float((run.theta[-1] - exact.theta(exact.times[1])[:-1]).abs().max())
        points.append((math.log(run.stats.steps), math.log(error)))
    steps, errors = torch.tensor(points, dtype=torch.float64).T
    steps, errors = steps - steps.mean(), errors - errors.mean()
    assert float(-(steps @ errors) / (steps @ steps)) > 4.5


def _flow_of(x, y, width=4):
    data = mo.Dataset(torch.tensor(x).double(), torch.tensor(y).double())
    return mo.MirrorFlow(mo.MLP((2, width, 1)), data, mo.Euclidean())


def _end(x, y, start):
    return mo.solve(_flow_of(x, y), start, until=mo.Time(15.0), rtol=1e-8, atol=1e-12)


X = [[1.0, 0.2], [0.3, 1.0], [-1.0, 0.4], [0.5, -1.0]]
Y = [1.0, -1.0, 1.0, -1.0]


def test_a_tie_equals_its_perturbation():
    """Two samples on one line share a kink; moved apart by 1e-13 they still do."""
    start = mo.MLP((2, 4, 1)).initial(3)
    tied = _end([*X, [0.6, 2.0]], [*Y, -1.0], start)
    apart = _end([*X, [0.6, 2.0 + 1e-13]], [*Y, -1.0], start)
    assert tied.success
    torch.testing.assert_close(apart.theta[-1], tied.theta[-1], rtol=1e-9, atol=1e-9)
    both = [e for e in tied.events if e.sample in (1, 4)]
    assert both
    assert len([e for e in both if e.sample == 1]) == len([e for e in both if e.sample == 4])


def test_a_sample_twice_is_one_of_twice_the_weight():
    """Collinear samples against the same flow with the sample repeated: the limit of ties."""
    start = mo.MLP((2, 4, 1)).initial(5)
    twice = _end([*X, X[1]], [*Y, Y[1]], start)
    near = _end([*X, [0.3, 1.0 + 1e-9]], [*Y, Y[1]], start)
    torch.testing.assert_close(near.theta[-1], twice.theta[-1], rtol=1e-6, atol=1e-6)


def test_antipodal_samples_switch_oppositely():
    start = mo.MLP((2, 4, 1)).initial(3)
    tied = _end([*X, [-0.3, -1.0]], [*Y, 1.0], start)
    apart = _end([*X, [-0.3, -1.0 - 1e-9]], [*Y, 1.0], start)
    torch.testing.assert_close(apart.theta[-1], tied.theta[-1], rtol=1e-6, atol=1e-6)


def test_zero_samples_have_no_kink():
    """They only add a constant to the loss."""
    start = mo.MLP((2, 4, 1)).initial(3)
    run = mo.solve(_flow_of([*X, [0.0, 0.0]], [*Y, 1.0]), start, until=mo.Time(30.0), rtol=1e-8)
    without = mo.solve(_flow_of(X, Y), start, until=mo.Time(30.0), rtol=1e-8)
    torch.testing.assert_close(run.theta[-1], without.theta[-1], rtol=1e-6, atol=1e-7)
    assert all(event.sample != 4 for event in run.events)


def test_frozen_neurons_stay():
    """A neuron that is off for every sample does not move and has no events."""
    flow = _flow_of([[1.0, 0.2], [0.3, 1.0]], [1.0, -1.0])
    start = flow.network.initial(1)
    flow.network.unflatten(start)["W1"][2] = torch.tensor([-1.0, -1.0])
    run = mo.solve(flow, start, until=mo.LogTime(3.0), rtol=1e-6)
    weights = flow.network.unflatten(run.theta)["W1"][:, 2]
    assert bool((weights == torch.tensor([-1.0, -1.0])).all())
    assert all(event.unit != 2 for event in run.events)


def test_a_repelling_start_is_a_recorded_choice():
    """A neuron on a kink that pushes it off on both sides takes the off side, and says so."""
    flow = _flow_of([[1.0, 0.0], [0.0, 1.0]], [1.0, -1.0], width=2)
    # a < 0 with y = −1: the second sample's kink is concave; its own pull is away from it.
    start = torch.tensor([1.0, 0.0, -0.3, 0.2, -1.0, 0.7], dtype=torch.float64)
    data = mo.Dataset(torch.tensor([[1.0, -0.2], [0.0, 1.0]]).double(), torch.tensor([-1.0, -1.0]))
    flow = mo.MirrorFlow(flow.network, data, mo.Euclidean())
    run = mo.solve(flow, start, until=mo.Time(0.5), rtol=1e-8)
    assert [(e.kind, e.unit, e.sample) for e in run.events][:1] == [("branch", 0, 1)]
    assert run.events[0].log_time == -math.inf
    assert float(run.theta[-1, 1]) < 0


def test_a_neuron_that_starts_at_zero_is_held_or_let_go():
    """w = 0 with a > 0: held where both samples are negative, let go along a positive one."""
    start = torch.tensor([0.0, 0.0, 1.0, 0.5, 1.0, 0.3], dtype=torch.float64)
    for label, free in ((-1.0, False), (1.0, True)):
        flow = _flow_of([[1.0, 0.3], [0.2, 1.0]], [label, -1.0], width=2)
        run = mo.solve(flow, start, until=mo.Time(1.0), rtol=1e-8)
        moved = float(run.theta[-1, :2].norm())
        assert (moved > 0.01) is free
        released = [e.kind for e in run.events if e.unit == 0][:1]
        assert released == (["release"] if free else [])
