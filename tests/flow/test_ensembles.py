"""A row of an ensemble is what it would be alone: its own steps, clock, events and status."""

import os
from dataclasses import replace

import pytest
import torch

import mirrorode as mo
from mirrorode.flow import ensemble, subflow
from mirrorode.flow.layout import Layout
from mirrorode.flow.neurons import Drive, Neurons
from mirrorode.flow.surfaces import Surfaces
from mirrorode.flow.underway import Request

FAR = {"until": mo.LogInverseLoss(100.0), "rtol": 1e-4}
NEAR = {"until": mo.LogInverseLoss(-1.0), "rtol": 1e-4}


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def _starts(flow, count):
    return torch.stack([flow.network.initial(seed) for seed in range(count)])


def _same(one, other):
    assert one.status is other.status
    assert one.stats.steps == other.stats.steps
    assert one.stats.rejected == other.stats.rejected
    assert torch.equal(one.theta, other.theta)
    assert torch.equal(one.log_time, other.log_time)
    assert one.events == other.events


@pytest.mark.parametrize("name", ["hyperbolic", "euclidean", "p3"])
def test_a_row_is_what_it_is_alone(name, small_flow):
    """To the last bit, from the first kink to log(1/loss) = 100."""
    flow = small_flow(name)
    starts = _starts(flow, 2)
    together = mo.solve(flow, starts, **FAR)
    assert len({run.stats.steps for run in together}) > 1
    for start, run in zip(starts, together, strict=True):
        _same(run, mo.solve(flow, start, **FAR))


def test_another_start_is_another_trajectory(small_flow):
    """Negative control: rows do differ, and one a little aside does not give the same bits."""
    flow = small_flow("euclidean")
    start = flow.network.initial(0)
    one, other = mo.solve(flow, torch.stack([start, start * (1 + 1e-9)]), **NEAR)
    assert not torch.equal(one.theta[-1], other.theta[-1])
    torch.testing.assert_close(one.theta[-1], other.theta[-1], rtol=1e-5, atol=1e-5)


def test_a_row_that_overflows_disturbs_no_other(small_flow):
    """It ends with its own status, and the others are what they are without it."""
    flow = small_flow("hyperbolic")
    starts = _starts(flow, 2)
    huge = torch.full_like(starts[:1], 1e200)
    broken, *others = mo.solve(flow, torch.cat([huge, starts]), **NEAR)
    assert broken.status is mo.Status.OVERFLOW
    for run, alone in zip(others, mo.solve(flow, starts, **NEAR), strict=True):
        assert run.success
        _same(run, alone)


def test_rows_end_by_themselves(small_flow):
    """One has arrived before it begins, one runs out of steps, one just has enough."""
    flow = small_flow("euclidean")
    alone = [mo.solve(flow, flow.network.initial(seed), **NEAR) for seed in (0, 1)]
    short, long = sorted(alone, key=lambda run: run.stats.steps)
    assert short.stats.steps < long.stats.steps
    starts = torch.stack([short.theta[-1], short.theta[0], long.theta[0]])
    runs = mo.solve(flow, starts, **NEAR, max_steps=short.stats.steps)
    reached, out = mo.Status.REACHED, mo.Status.MAX_STEPS
    assert [run.status for run in runs] == [reached, reached, out]
    assert [run.stats.steps for run in runs] == [0, short.stats.steps, short.stats.steps]


def test_flows_of_their_own(small_flow):
    """B potentials, of one family and of two, and B data sets, with more and fewer kinks."""
    network, start = mo.MLP((2, 12, 1)), mo.MLP((2, 12, 1)).initial(1)
    data = [mo.teacher_student(count, seed=3) for count in (20, 30, 10)]
    potentials = [mo.HyperbolicEntropy(0.1), mo.HyperbolicEntropy(1.0), mo.Euclidean()]
    flows = [mo.MirrorFlow(network, data[0], potential) for potential in potentials]
    flows += [mo.MirrorFlow(network, one, potentials[0]) for one in data[1:]]
    runs = mo.solve(flows, start, **NEAR)
    assert [run.flow for run in runs] == flows
    for flow, run in zip(flows, runs, strict=True):
        _same(run, mo.solve(flow, start, **NEAR))
    starts = torch.stack([start, 2 * start])
    second = mo.solve(flows[:2], starts, **NEAR)[1]
    _same(second, mo.solve(flows[1], starts[1], **NEAR))


def test_wrong_flows(small_flow):
    flow = small_flow("euclidean")
    start = flow.network.initial(0)
    with pytest.raises(mo.InputError, match="`flow` must be a MirrorFlow or a list of them"):
        mo.solve([flow, None], start, **NEAR)
    with pytest.raises(mo.InputError, match="`flow` must be a MirrorFlow or a list of them"):
        mo.solve([], start, **NEAR)
    with pytest.raises(mo.InputError, match="`theta0` must have 2 rows, but is 3"):
        mo.solve([flow, flow], start.expand(3, -1), **NEAR)


def test_networks_of_several_layers():
    """They are integrated one after the other."""
    flow = mo.MirrorFlow(mo.MLP((2, 3, 2, 1)), mo.teacher_student(6, seed=3), mo.Euclidean())
    for seed, run in enumerate(mo.solve(flow, _starts(flow, 2), **NEAR)):
        _same(run, mo.solve(flow, flow.network.initial(seed), **NEAR))


def test_watched_from_here(small_flow, two_threads):
    """Progress and observing functions see every row, in this process."""
    flow, seen = small_flow("euclidean"), []
    starts = _starts(flow, 2)
    runs = mo.solve(
        flow, starts, **NEAR, saveat=[lambda log_time, theta: theta.norm()],
        progress=lambda log_time, loss, stats: seen.append(stats.steps),
    )  # fmt: skip
    assert len(seen) == sum(run.stats.steps for run in runs)
    assert all(len(run.observed["<lambda>"]) == run.stats.steps + 1 for run in runs)


def test_two_processes(small_flow, two_threads, monkeypatch):
    """What a second process finds is what this one would; the flow does not travel."""
    flow = small_flow("hyperbolic")
    starts = _starts(flow, 3)
    asked = []
    together = ensemble.together
    monkeypatch.setattr(
        ensemble, "together", lambda some: asked.append(len(some)) or together(some)
    )
    runs = mo.solve(flow, starts, **NEAR)
    assert asked == [2]
    assert all(run.flow is flow for run in runs)
    torch.set_num_threads(1)
    for run, alone in zip(runs, mo.solve(flow, starts, **NEAR), strict=True):
        _same(run, alone)


def test_a_process_that_dies_loses_nothing(small_flow, two_threads, monkeypatch):
    flow = small_flow("hyperbolic")
    starts = _starts(flow, 2)
    monkeypatch.setattr(ensemble, "_work", lambda *_: os._exit(9))
    runs = mo.solve(flow, starts, **NEAR)
    torch.set_num_threads(1)
    for run, alone in zip(runs, mo.solve(flow, starts, **NEAR), strict=True):
        _same(run, alone)


def _request(flow, start, weights):
    layout = Layout.of(flow.network, start)
    theta = layout.gather(start)
    surfaces = Surfaces.of(flow.dataset.x, layout.slopes)
    on = theta[:, :-1] @ surfaces.normal.T > 0
    drive = Drive.of(
        flow.potential, len(theta), surfaces, weights * flow.dataset.y, weights.sum(1), 30.0, 1.0
    )
    captured = torch.zeros(len(theta), dtype=torch.bool)
    dual = flow.potential.gradient(theta)
    neurons = Neurons(dual, on, torch.zeros_like(on), captured)
    return Request(drive, neurons, 1e-8)


def _followed(requests):
    convoy, paths = subflow.Convoy(), {}
    convoy.join(dict(enumerate(requests)))
    while len(convoy):
        paths |= convoy.arrive()
    return [paths[number] for number in range(len(requests))]


def test_a_network_that_cannot_be_followed_is_lost_alone(small_flow, monkeypatch):
    """NaN weights, and kinks without end, give None; the neighbours' neurons go where they go."""
    flow = small_flow("euclidean")
    weights = torch.softmax(torch.arange(30.0, dtype=torch.float64), 0).expand(3, -1) + 0.01
    good = [_request(flow, flow.network.initial(seed), weights) for seed in range(2)]
    bad = _request(flow, flow.network.initial(2), weights * torch.nan)
    first, lost, second = _followed([good[0], bad, good[1]])
    assert lost is None
    for path, request in zip((first, second), good, strict=True):
        (alone,) = _followed([request])
        assert len(path.events.s) > 0
        assert torch.equal(path.duals, alone.duals)
        assert torch.equal(path.gained, alone.gained)
    still = replace(good[1], drive=replace(good[1].drive, h=0 * good[1].drive.h))
    monkeypatch.setattr(subflow, "MOST_ROUNDS", 1)
    lost, kept = _followed([good[0], still])
    assert lost is None
    assert kept is not None
