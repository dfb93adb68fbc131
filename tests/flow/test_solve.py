"""`solve`: exact landing, dense output, statuses, storage, batches, bad input."""

import math

import pytest
import torch

import mirrorode as mo


def test_lands_exactly(small_flow):
    flow = small_flow("hyperbolic")
    start = flow.network.initial(0)
    for rule in (mo.Time(3.0), mo.LogTime(4.0), mo.LogInverseLoss(-1.0), mo.LogInverseLoss(77.0)):
        run = mo.solve(flow, start, until=rule, rtol=1e-5)
        log_time, loss = float(run.log_time[-1]), float(run.log_inverse_loss[-1])
        assert run.success
        reached = log_time if rule.by_time else loss
        assert reached == pytest.approx(rule.target, rel=1e-9, abs=1e-9)
        assert float(flow.log_inverse_loss(run.theta[-1])) == pytest.approx(
            loss, rel=1e-5, abs=1e-5
        )


def test_saveat(small_flow):
    flow = small_flow("euclidean")
    rules = [mo.LogInverseLoss(10.0), mo.LogTime(1.0), mo.LogInverseLoss(3.0)]
    run = mo.solve(flow, flow.network.initial(0), until=mo.LogInverseLoss(50), saveat=rules)
    assert len(run.log_time) == 5
    assert float(run.log_time[1]) == pytest.approx(1.0, abs=1e-9)
    expected = [3.0, 10.0, 50.0]
    torch.testing.assert_close(run.log_inverse_loss[2:], torch.tensor(expected).double())


def test_dense_output(small_run):
    run = small_run("euclidean")
    for k in (5, len(run.log_time) // 2, -1):
        theta, loss = run.theta[k], float(run.log_inverse_loss[k])
        scale = float(theta.norm())
        assert float((run.at(log_inverse_loss=loss) - theta).norm()) < 1e-6 * scale
        assert float((run.at(log_time=float(run.log_time[k])) - theta).norm()) < 1e-6 * scale
    between = run.at(log_inverse_loss=123.4)
    assert float(run.flow.log_inverse_loss(between)) == pytest.approx(123.4, rel=1e-4)
    assert float((run.at(time=0.0) - run.theta[0]).norm()) < 1e-12


def test_at_refuses(small_run):
    run = small_run("euclidean")
    with pytest.raises(mo.InputError, match="`at` takes one of"):
        run.at()
    with pytest.raises(mo.InputError, match="`log_inverse_loss` must be between"):
        run.at(log_inverse_loss=1e7)


def test_monotone_loss_and_time(small_run):
    for name in ("hyperbolic", "euclidean", "p3"):
        run = small_run(name)
        assert bool((run.log_inverse_loss.diff() > 0).all())
        assert bool((run.log_time.diff() > 0).all())


def test_tolerance_proportionality(small_flow):
    """The direction at ℓ = 20 converges as the tolerance falls, through every kind of event."""
    flow = small_flow("euclidean")
    ends = {}
    for rtol in (1e-4, 1e-5, 1e-6, 1e-8):
        run = mo.solve(
            flow, flow.network.initial(1), until=mo.LogInverseLoss(20), rtol=rtol, atol=rtol / 100
        )
        ends[rtol] = run.theta[-1] / run.theta[-1].norm()
    assert run.stats.events > 50
    errors = {rtol: float((end - ends[1e-8]).norm()) for rtol, end in ends.items()}
    assert errors[1e-6] < 1e-4
    assert errors[1e-6] < 0.2 * errors[1e-4]


def test_batch_is_row_by_row(small_flow):
    flow = small_flow("hyperbolic")
    starts = torch.stack([flow.network.initial(seed) for seed in range(2)])
    runs = mo.solve(flow, starts, until=mo.LogInverseLoss(5.0), rtol=1e-4)
    alone = mo.solve(flow, starts[1], until=mo.LogInverseLoss(5.0), rtol=1e-4)
    assert len(runs) == 2
    torch.testing.assert_close(runs[1].theta[-1], alone.theta[-1], rtol=0, atol=0)


def test_max_steps_keeps_what_was_computed(small_flow):
    flow = small_flow("p3")
    run = mo.solve(flow, flow.network.initial(0), until=mo.LogInverseLoss(1e6), max_steps=5)
    assert run.status is mo.Status.MAX_STEPS
    assert not run.success
    assert len(run.log_time) == 6
    assert "raise max_steps" in str(run)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_support_samples_cross_kinks_late(activation):
    """Late, a crossing of a support sample changes the multipliers at once; this once blocked."""
    data, network = mo.teacher_student(samples=10, seed=1), mo.MLP((2, 8, 1), activation)
    flow = mo.MirrorFlow(network, data, mo.HyperbolicEntropy(0.1))
    run = mo.solve(flow, network.initial(0), until=mo.LogInverseLoss(50.0), max_steps=500)
    assert run.success
    assert mo.verify(run).passed


def test_duplicate_samples():
    """Two equal samples share one kink."""
    x = torch.tensor([[1, 0.5], [1, 0.5], [-0.3, 1]])
    network = mo.MLP((2, 6, 1))
    flow = mo.MirrorFlow(
        network, mo.Dataset(x, torch.tensor([1, 1, -1])), mo.HyperbolicEntropy(0.1)
    )
    run = mo.solve(flow, network.initial(0), until=mo.LogInverseLoss(50.0), max_steps=500)
    assert run.success


def test_a_parameter_as_start(small_flow):
    """A start that requires gradients, as an nn.Parameter does, is taken by value."""
    flow = small_flow("euclidean")
    start = torch.nn.Parameter(flow.network.initial(0))
    assert not mo.solve(flow, start, until=mo.Time(1e-2)).theta.requires_grad


def test_stationary_start(small_flow):
    flow = small_flow("euclidean")
    run = mo.solve(flow, torch.zeros(flow.network.size), until=mo.Time(1.0))
    assert run.status is mo.Status.STATIONARY
    assert len(run.log_time) == 1


def test_already_there(small_flow):
    flow = small_flow("euclidean")
    run = mo.solve(flow, flow.network.initial(0), until=mo.LogInverseLoss(-100.0))
    assert run.success
    assert len(run.log_time) == 1


def test_save_and_load(small_run, tmp_path):
    run = small_run("p3")
    run.save(tmp_path / "run.npz")
    again = mo.Trajectory.load(tmp_path / "run.npz")
    assert torch.equal(again.theta, run.theta)
    assert again.events == run.events
    assert again.stats == run.stats
    assert again.flow.potential == run.flow.potential
    assert torch.equal(again.at(log_inverse_loss=50.0), run.at(log_inverse_loss=50.0))
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"]
    (tmp_path / "damaged.npz").write_bytes(b"not a trajectory")
    for name in ("nothing.npz", "damaged.npz"):
        with pytest.raises(mo.InputError, match="`path` must be a stored trajectory"):
            mo.Trajectory.load(tmp_path / name)
    with pytest.raises(mo.InputError, match="`path` must be a file to write"):
        run.save(tmp_path / "no" / "folder.npz")


def test_plot(small_run):
    figure = small_run("hyperbolic").plot()
    assert len(figure.axes) == 2


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"theta0": torch.zeros(5)}, "`theta0` must have shape (36,) or (B, 36), but is (5,)"),
        ({"theta0": torch.full((36,), math.nan)}, "`theta0` must be finite"),
        ({"rtol": 0.0}, "`rtol` must be from 1e-12 to below 1, but is 0.0"),
        ({"atol": -1.0}, "`atol` must be positive, but is -1.0"),
        ({"rtol": 1e-16}, "`rtol` must be from 1e-12 to below 1, but is 1e-16"),
        ({"saveat": 3}, "`saveat` must be a list of rules and functions, but is 3"),
        ({"max_steps": 0}, "`max_steps` must be at least 1, but is 0"),
        ({"until": 3.0}, "`until` must be Time, LogTime or LogInverseLoss, but is 3.0"),
        (
            {"saveat": [1.0]},
            "`saveat` must hold stopping rules, functions and Observables, but is 1.0",
        ),
        ({"method": "magic"}, '`method` must be "auto" or one of'),
    ],
)
def test_bad_input(small_flow, change, sentence):
    flow = small_flow("euclidean")
    arguments = {"theta0": flow.network.initial(0), "until": mo.Time(1.0)} | change
    with pytest.raises(mo.InputError) as error:
        mo.solve(flow, arguments.pop("theta0"), **arguments)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize("rule", [lambda: mo.Time(0.0), lambda: mo.LogTime(math.nan)])
def test_bad_rules(rule):
    with pytest.raises(mo.InputError):
        rule()


def test_wrong_parts(small_flow):
    flow = small_flow("euclidean")
    with pytest.raises(mo.InputError, match="`potential` must be a SeparablePotential"):
        mo.MirrorFlow(flow.network, flow.dataset, "euclidean")
    with pytest.raises(mo.InputError, match="`dataset` must have inputs of dimension 3"):
        mo.MirrorFlow(mo.MLP((3, 4, 1)), flow.dataset, flow.potential)
