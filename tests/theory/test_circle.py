"""The global L₂ reference: a linear program over directions, closed by exchange."""

import math

import pytest
import torch

import mirrorode as mo


def paper_problem():
    return mo.MirrorFlow(mo.MLP((2, 100, 1)), mo.teacher_student(200, seed=42), mo.Euclidean())


def test_the_certificate():
    """The dual is feasible in all directions to 1e-9, and the neurons given attain the margin."""
    flow = paper_problem()
    found = mo.global_margin(flow)
    assert abs(found.gap) <= 1e-8
    x, y = flow.dataset.x, flow.dataset.y
    output = torch.relu(x @ found.directions.T) @ found.weights / 100
    assert float((y * output).min()) == pytest.approx(1, rel=1e-8)
    assert found.margin == pytest.approx(float(1 / (2 * found.weights.abs().sum())), rel=1e-8)
    angle = torch.linspace(0, 2 * math.pi, 100_001, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    dual = (found.duals * y) @ torch.relu(x @ circle.T)
    # The duals are for an output scale of one over 100.
    assert float(dual.abs().max()) / 100 <= 1 + 1e-8


def test_no_trained_network_is_better(small_run):
    """Limits are at most globally optimal; this one nearly is."""
    run = small_run("euclidean")
    best = mo.global_margin(run.flow).margin
    own = mo.norm_margin(run.flow, run.theta, 2)
    assert bool((own <= best * (1 + 1e-9)).all())
    assert float(own[-1]) > 0.9 * best


def test_one_sample():
    """One neuron along the sample: f = a w·x with |a| = ‖w‖, margin ‖x‖/2."""
    data = mo.Dataset(torch.tensor([[3.0, 4.0]]), torch.tensor([-1.0]))
    flow = mo.MirrorFlow(mo.MLP((2, 7, 1), output_scale=1.0), data, mo.Euclidean())
    found = mo.global_margin(flow)
    assert found.margin == pytest.approx(2.5)
    assert found.directions.tolist() == [pytest.approx([0.6, 0.8], abs=1e-9)]
    assert found.weights.tolist() == [pytest.approx(-0.2)]


def test_opposite_samples_need_two_neurons():
    """±x, both positive: two neurons, half the margin."""
    data = mo.Dataset(torch.tensor([[3.0, 4.0], [-3.0, -4.0]]), torch.ones(2))
    flow = mo.MirrorFlow(mo.MLP((2, 7, 1), output_scale=1.0), data, mo.Euclidean())
    assert mo.global_margin(flow).margin == pytest.approx(1.25)
    leaky = mo.MLP((2, 7, 1), activation="leaky_relu", output_scale=1.0)
    with_leak = mo.global_margin(mo.MirrorFlow(leaky, data, mo.Euclidean())).margin
    assert with_leak < 1.25


def test_only_for_two_inputs_and_one_hidden_layer():
    flow = mo.MirrorFlow(mo.MLP((2, 3, 3, 1)), mo.teacher_student(10, seed=3), mo.Euclidean())
    with pytest.raises(mo.InputError, match="`network` must be an MLP with two inputs"):
        mo.global_margin(flow)


@pytest.mark.parametrize("scale", [1e-9, 1e12])
def test_the_scale_of_the_inputs_is_that_of_the_margin(scale):
    data = mo.teacher_student(20, seed=3)
    flows = [
        mo.MirrorFlow(mo.MLP((2, 10, 1)), mo.Dataset(x, data.y), mo.Euclidean())
        for x in (data.x, scale * data.x)
    ]
    one, other = (mo.global_margin(flow) for flow in flows)
    assert other.margin == pytest.approx(scale * one.margin, rel=1e-8)
    assert other.gap < 1e-8
