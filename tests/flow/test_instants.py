"""What happens at one instant must not leave the path: entries, exits and captures that are not."""

import pytest
import torch

import mirrorode as mo
from mirrorode.flow import events, integrate
from mirrorode.flow.kinks import Pairs
from mirrorode.flow.state import Run, look, start
from mirrorode.flow.step import Mode


def _slides_late():
    """Three layers with kinks slid along until the end, to log(1/loss) = 1e7."""
    network, data = mo.MLP((2, 6, 6, 1)), mo.teacher_student(40, seed=0)
    flow = mo.MirrorFlow(network, data, mo.HyperbolicEntropy(lam=1.0))
    points = [mo.LogInverseLoss(10.0**k) for k in range(8)]
    run = mo.solve(flow, network.initial(0), until=points[-1], saveat=points, rtol=1e-4, atol=1e-6)
    assert run.success
    return run, (run.log_inverse_loss - flow.log_inverse_loss(run.theta)).abs().max()


def test_margins_stay_when_the_dual_is_put_on_its_kinks(monkeypatch):
    """The loss of the saved θ is the loss integrated: margins must be right to 1e-7/1e7."""
    run, residual = _slides_late()
    assert float(residual) < 1e-4
    assert any(event.kind == "slide" for event in run.events)
    monkeypatch.setattr(events, "_keep_margins", lambda flow, dual, mode, snapped, after: snapped)
    assert float(_slides_late()[1]) > 1e-2


def _beside_zero(speed: float):
    """A flow whose unit 0 is within the tolerance of w = 0, and moves to it at ``speed``."""
    network, data = mo.MLP((2, 5, 5, 1)), mo.teacher_student(20, seed=0)
    flow = mo.MirrorFlow(network, data, mo.Euclidean())
    theta = 1e3 * network.initial(0)
    places = network.incoming(1, torch.tensor([0]))[0]
    theta[places] *= 1e-9
    run, state = Run(flow, 1e-5, 1e-7), start(flow, theta)
    point = look(run, state)
    direction = point.direction.clone()
    direction[places] = -speed * theta[places]
    return run, state, integrate.replace(point, direction=direction)


@pytest.mark.parametrize(("speed", "captured"), [(1.0, [(1, 0, -1)]), (1e-3, []), (0.0, [])])
def test_only_a_unit_that_comes_to_zero_soon_is_captured(speed, captured):
    """A dead unit that the growth of all others makes small keeps its weights, and its sides."""
    run, state, point = _beside_zero(speed)
    found = events.vanishing(run, state, point, within=10.0)
    assert list(zip(*found.lists(), strict=True)) == captured


def test_one_pair_leaves_alone():
    """All pairs with a coefficient outside [0, 1] leave, or the one whose turn it is."""
    slides = Pairs.of([(0, 0, 0), (0, 0, 1), (0, 1, 0)], torch.device("cpu"))
    mode = Mode([torch.zeros(2, 2, dtype=torch.bool)], slides, [torch.zeros(2, dtype=torch.bool)])
    xi = torch.tensor([1.7, -0.2, 0.5], dtype=torch.float64)
    after, off, on = events.leave(mode, xi)
    assert (off.lists()[2], on.lists()[2], len(after.slides)) == ([1], [0], 1)
    for turn in range(4):
        after, off, on = events.leave(mode, xi, turn)
        assert (len(on), len(off), len(after.slides)) == (1 - turn % 2, turn % 2, 2)


def test_who_came_back_at_once_leaves_alone():
    """A pair that entered at this instant is not let go together with others."""
    network, data = mo.MLP((2, 5, 5, 1)), mo.teacher_student(20, seed=0)
    flow = mo.MirrorFlow(network, data, mo.Euclidean())
    run, state = Run(flow, 1e-5, 1e-7), start(flow, network.initial(0))
    slides = Pairs.of([(1, 0, 0), (1, 0, 1)], torch.device("cpu"))
    state = integrate.replace(
        state, mode=integrate.replace(state.mode, slides=slides), log_time=5.0
    )
    xi = torch.tensor([1.7, -0.2], dtype=torch.float64)
    run.record("slide", slides, 4.0, 1.0)
    assert integrate._turn(run, state, xi) is None
    run.record("exit", slides, 5.0, 1.0)
    run.record("slide", slides, 5.0, 1.0)
    assert integrate._turn(run, state, xi) == 2
    assert integrate._turn(run, state, torch.tensor([0.5, 0.5])) is None
