"""Functions of the state in `saveat`: at every step, where asked for, stored, and failing."""

import pytest
import torch

import mirrorode as mo

LINEAR = mo.MirrorFlow(
    mo.MLP((2, 1)),
    mo.Dataset(torch.tensor([[1.0, 2.0], [2.0, -1.0]]).double(), torch.ones(2)),
    mo.HyperbolicEntropy(0.1),
)
START = torch.tensor([0.1, 0.2]).double()
END = mo.LogInverseLoss(50.0)


def size(log_time, theta):
    return theta.norm()


def shares(log_time, theta):
    return torch.stack([theta.new_tensor(log_time), *theta])


def test_every_step_while_no_state_is_kept():
    whole = mo.solve(LINEAR, START, until=END)
    run = mo.solve(LINEAR, START, until=END, saveat=[size])
    assert len(run.log_time) == 2
    seen = run.observed["size"]
    assert len(seen) == run.stats.steps + 1
    assert torch.equal(seen.log_time, whole.log_time)
    torch.testing.assert_close(seen.values, whole.theta.norm(dim=-1), rtol=1e-12, atol=0)
    assert "observed     size" in str(run)


def test_on_a_grid_in_either_clock():
    grid = torch.linspace(1.0, 40.0, 7).tolist()
    by_loss = mo.Observable(shares, [mo.LogInverseLoss(it) for it in grid], "by loss")
    by_time = mo.Observable(shares, [mo.LogTime(it) for it in grid])
    run = mo.solve(LINEAR, START, until=END, saveat=[by_loss, mo.LogTime(2.0), by_time])
    assert len(run.log_time) == 3
    expected = torch.tensor(grid).double()
    torch.testing.assert_close(run.observed["by loss"].log_inverse_loss, expected)
    found = run.observed["shares"]
    torch.testing.assert_close(found.log_time, expected)
    assert found.values.shape == (7, 3)
    assert torch.equal(found.values[:, 0], found.log_time)
    at_two = LINEAR.log_inverse_loss(run.theta[1])
    torch.testing.assert_close(at_two, run.log_inverse_loss[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["auto", "dopri5"])
def test_stored(tmp_path, method):
    run = mo.solve(LINEAR, START, until=mo.LogTime(1.0), saveat=[shares], method=method)
    run.save(tmp_path / "run.npz")
    again = mo.Trajectory.load(tmp_path / "run.npz").observed["shares"]
    for part in ("log_time", "log_inverse_loss", "values"):
        assert torch.equal(getattr(again, part), getattr(run.observed["shares"], part))
    assert len(again) > 1


def test_what_the_start_has_passed_is_not_looked_at():
    """As for states: the start is at log(1/loss) = −0.3 or so, not at −5."""
    early = mo.Observable(size, [mo.LogInverseLoss(-5.0), mo.LogInverseLoss(2.0)])
    run = mo.solve(LINEAR, START, until=mo.LogInverseLoss(3.0), saveat=[early])
    torch.testing.assert_close(
        run.observed["size"].log_inverse_loss, torch.tensor([2.0]).double(), rtol=1e-9, atol=0
    )


def test_numbers_keep_their_digits():
    run = mo.solve(LINEAR, START, until=mo.LogTime(1.0), saveat=[lambda log_time, _: log_time])
    seen = run.observed["<lambda>"]
    assert torch.equal(seen.values, seen.log_time)


def test_what_fails_ends_nothing():
    def breaks(log_time, theta):
        if log_time > 2:
            raise ZeroDivisionError("by zero")
        return 1.0

    run = mo.solve(LINEAR, START, until=END, saveat=[breaks, size])
    assert run.success
    assert "`breaks` failed at log t = " in run.message
    assert "(by zero)" in run.message
    assert 1 < len(run.observed["breaks"]) < len(run.observed["size"])
    assert float(run.observed["breaks"].log_time[-1]) <= 2


@pytest.mark.parametrize(
    ("saveat", "sentence"),
    [
        (lambda: [size, size], "`saveat` must hold observables of different names, but is size"),
        (lambda: "ab", "`saveat` must be a list of rules and functions, but is 'ab'"),
        (lambda: [mo.Observable(3)], "`function` must be callable, but is 3"),
        (lambda: [mo.Observable(size, 3)], "`at` must hold stopping rules, but is 3"),
        (lambda: [mo.Observable(size, [1.0])], r"`at` must hold stopping rules, but is \[1.0\]"),
    ],
)
def test_refused(saveat, sentence):
    with pytest.raises(mo.InputError, match=sentence):
        mo.solve(LINEAR, START, until=END, saveat=saveat())
